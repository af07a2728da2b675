"""What is recorded about a request: its record, the metrics, the log, and the answer to "what happened to it".

Here: `request_record.py` (one record per request; read it first) with its parts `routing_record.py`,
`attempt_record.py` and `answer_record.py`; `request_log.py` (where a record goes at its end); `recent.py` and
`explain.py` (ended requests, for operators); `observation.py` (what rollouts learn); `meter.py` (tokens in an answer);
`metrics.py` and `target_metrics.py` (Prometheus), with `series.py` (plain numbers until a scrape) and
`key_metrics.py` (per key); `log.py` (structured logs) and `recent_log.py` (its last events); `tracing/` (OTLP).

Not here: decisions. Nothing in this package changes what happens to a request.
"""
