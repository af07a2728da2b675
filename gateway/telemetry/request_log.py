"""Where records go, once on every path out: one terminal log event, the metrics, and memory. No I/O but that.

What a record holds is `record.py`.
"""

from __future__ import annotations

from typing import Any

import structlog
import trio

from gateway.telemetry.metrics import Metrics
from gateway.telemetry.observation import Observer, observe
from gateway.telemetry.recent import Recent
from gateway.telemetry.request_record import Record

__all__ = ["Accounts"]

OBSERVERS_LIMIT = 8  # of one alias; each costs its requests a call


class Accounts:
    """Where records go: the metrics, the log, the list of requests under way, and that of the last to have ended."""

    def __init__(self, metrics: Metrics, *, log_requests: bool, remembered: int = 1000) -> None:
        self.metrics = metrics
        self.log = structlog.get_logger("cortex.request")
        self.log_requests = log_requests
        self.live: dict[int, Record] = {}
        """Every request between its first and last byte, by an id of ours: two clients may send one request id."""
        self.recent = Recent(remembered)
        self.served = 0
        self._observers: dict[str, list[Observer]] = {}

    def watch(self, alias: str, observer: Observer) -> None:
        """Have every request for the alias observed from its end, until `unwatch`.

        It is called synchronously, on the request's way out; if it raises, that is logged and changes nothing.
        """
        watching = self._observers.setdefault(alias, [])
        if len(watching) >= OBSERVERS_LIMIT:
            raise RuntimeError(f"'{alias}' is watched by {OBSERVERS_LIMIT} already")
        watching.append(observer)

    def unwatch(self, alias: str, observer: Observer) -> None:
        """The observer hears of no request that ends from now on."""
        watching = self._observers.get(alias, [])
        if observer in watching:
            watching.remove(observer)
        if not watching:
            self._observers.pop(alias, None)

    def is_watched(self, alias: str | None) -> bool:
        """Whether more than usual is to be learned of its requests. One look-up: every request asks this."""
        return alias in self._observers

    def open(self, request_id: str, path: str) -> Record:
        """A context manager around one request. Leaving it writes the record, however it is left."""
        return Record(self, request_id, path)

    def close(self, record: Record) -> None:
        """The request is over, in whichever way: count it, tell who watches, log it, and remember it for a while."""
        now = trio.current_time()
        self.served += 1
        record.take_usage()
        self._count(record, now)
        if record.watched:
            self._tell(record, now)
        if self.log_requests:
            self.log.info("request", **_event(record, now))
        record.release_payload(now)
        self.recent.add(record)

    def _tell(self, record: Record, now: float) -> None:
        """A watched request has ended."""
        seen = observe(record, now)
        if seen is None:
            return
        for observer in list(self._observers.get(seen.alias, ())):
            try:
                observer(seen)
            except Exception:
                self.log.exception("observer_failed", alias=seen.alias)

    def _count(self, record: Record, now: float) -> None:
        metrics, route = self.metrics, ("" if record.is_unknown_model else record.model or "", record.node or "")
        code = _error_code(record)
        if code is not None:
            metrics.errors(*route, code).inc()
        if record.outcome == "client_disconnected":
            metrics.disconnects(*route).inc()
        if record.alias is not None and record.model is not None:
            metrics.alias_requests(record.alias, record.model).inc()
            self._count_for_its_alias(record, record.alias, record.model, code, now)
        if record.node is None:
            return
        metrics.duration(*route).observe(now - record.started_at)
        self._count_overhead(record)
        self._count_tokens(record, route)

    def _count_for_its_alias(self, record: Record, alias: str, target: str, code: str | None, now: float) -> None:
        first_at = None if record.meter is None else record.meter.first_at
        self.metrics.by_target.record(
            alias,
            target,
            record.generation,
            code=code,
            duration_s=None if record.node is None else now - record.started_at,
            first_token_s=None if first_at is None else first_at - record.started_at,
        )

    def _count_overhead(self, record: Record) -> None:
        """Our own time: before the neuron was asked (waiting for a model is not ours), and from its first token on."""
        metrics = self.metrics
        if (
            record.read_at is not None
            and record.routed_at is not None
            and not record.phases_ms.keys() & {"load", "queue"}
        ):
            metrics.overhead("route").observe(record.routed_at - record.read_at)
        came_at = record.meter.first_at if record.meter is not None else record.first_byte_at
        if came_at is not None and record.sent_first_at is not None and record.sent_first_at >= came_at:
            metrics.overhead("relay").observe(record.sent_first_at - came_at)

    def _count_tokens(self, record: Record, route: tuple[str, str]) -> None:
        metrics, usage = self.metrics, record.usage
        if usage is not None:
            completion = metrics.estimated_completion_tokens if record.estimated else metrics.completion_tokens
            for series, tokens in (
                (metrics.prompt_tokens, usage.prompt_tokens),
                (completion, usage.completion_tokens),
                (metrics.cached_prompt_tokens, usage.cached_tokens),
                (metrics.reasoning_tokens, usage.reasoning_tokens),
            ):
                if tokens is not None:
                    series(*route).inc(tokens)
        if record.meter is None or record.meter.first_at is None or record.meter.last_at is None:
            return
        metrics.first_token(*route).observe(record.meter.first_at - record.started_at)
        window_s = record.meter.last_at - record.meter.first_at
        if usage is not None and usage.completion_tokens and window_s > 0:
            metrics.tokens_per_second(*route).observe(usage.completion_tokens / window_s)


def _error_code(record: Record) -> str | None:
    """From a closed list: our codes, or the class of an upstream status."""
    if record.error is not None:
        return record.error.code or "bad_request"
    if record.outcome == "upstream_error":
        return f"upstream_{(record.upstream_status or 0) // 100}xx"
    return None


def _event(record: Record, now: float) -> dict[str, Any]:
    event: dict[str, Any] = {
        "request_id": record.request_id,
        "path": record.path,
        "alias": record.alias,
        "model": record.model,
        "node": record.node,
        "status": record.status,
        "outcome": record.outcome,
        "stream": record.stream,
        "duration_ms": round((now - record.started_at) * 1000, 3),
        "phases_ms": record.phases_ms,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
    }
    if record.meter is not None and record.meter.first_at is not None:
        event["first_token_ms"] = round((record.meter.first_at - record.started_at) * 1000, 3)
    if record.usage is not None:
        event["prompt_tokens"] = record.usage.prompt_tokens
        event["completion_tokens"] = record.usage.completion_tokens
        event["cached_tokens"] = record.usage.cached_tokens
        event["reasoning_tokens"] = record.usage.reasoning_tokens
        event["tokens_estimated"] = record.estimated
    if record.retries:
        event["retries"] = record.retries
    if record.target != record.model:
        event["fell_back_from"] = record.target
    if record.hedge is not None:
        event["hedge"] = record.hedge
    if record.error is not None:
        event["error"] = record.error.code
        event["message"] = record.error.message
    return event
