"""One request's path, from its first byte to its last.

Read top to bottom: `app.py` (admit, open the nursery, watch the client), `request.py` (read the body), `dispatch.py`
(resolve the alias, choose a replica, retry), `attempt.py` (send to one replica), `relay.py` (from
`upstream_stream.py` to `response/client_response.py`).
`context.py` lists what the path uses. What most requests do not need is beside it: `route_wait.py`, `fallback.py`
and the packages `hedging`, `shadow` and `forms`. The client's side is in `response`.

Not here: choosing replicas and queues (`fleet`), API formats (`dialects`), connections (`http`), metrics and logs
(`telemetry`).
"""
