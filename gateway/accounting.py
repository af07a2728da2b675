"""One record per request, written once on every path out: one terminal log event, and the metrics. No I/O but that."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import structlog
import trio

from gateway.errors import GatewayError
from gateway.metering import StreamMeter, Usage
from gateway.metrics import Metrics
from gateway.phases import Phases

__all__ = ["Accounts", "Outcome", "Record", "Routed"]

Outcome = Literal["ok", "error", "upstream_error", "client_disconnected", "cancelled"]


class Waiting(Protocol):
    """A request's place among those who wait for its model; for display, and for the drain."""

    @property
    def is_in_line(self) -> bool:
        """Whether it waits now."""
        ...

    @property
    def waits_for(self) -> str | None:
        """Which of place and load it waits for, None if neither."""
        ...

    @property
    def position(self) -> int | None:
        """1 for whoever is first, None if it does not wait."""
        ...


class Accounts:
    """Where records go: the metrics, the log, and the list of requests under way."""

    def __init__(self, metrics: Metrics, *, log_requests: bool) -> None:
        self.metrics = metrics
        self.log = structlog.get_logger("cortex.request")
        self.log_requests = log_requests
        self.live: dict[int, Record] = {}
        """Every request between its first and last byte, by an id of ours: two clients may send one request id."""
        self.served = 0

    def open(self, request_id: str, path: str) -> Record:
        """A context manager around one request. Leaving it writes the record, however it is left."""
        return Record(self, request_id, path)


class Record:
    """What is known of one request so far. Sync throughout: nothing can come between an end and its bookkeeping."""

    __slots__ = (
        "_accounts",
        "_key",
        "alias",
        "bytes_in",
        "bytes_out",
        "cancel",
        "error",
        "estimated",
        "first_byte_at",
        "made_up",
        "meter",
        "model",
        "node",
        "outcome",
        "path",
        "phases",
        "phases_ms",
        "read_at",
        "request_id",
        "retries",
        "routed_at",
        "sent_first_at",
        "started_at",
        "started_unix",
        "status",
        "stream",
        "turn",
        "upstream_status",
        "usage",
    )  # fmt: skip

    def __init__(self, accounts: Accounts, request_id: str, path: str) -> None:
        self._accounts = accounts
        self.request_id = request_id
        self.path = path
        self.started_at = trio.current_time()
        self.started_unix = time.time()
        self.alias: str | None = None
        self.model: str | None = None
        self.made_up = False  # the model's name is the client's own: no label, or it could fill the memory with them
        self.node: str | None = None
        self.stream = False
        self.status = 0
        self.upstream_status: int | None = None
        self.outcome: Outcome = "cancelled"  # until somebody knows better
        self.error: GatewayError | None = None
        self.retries = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.read_at: float | None = None
        self.routed_at: float | None = None
        self.first_byte_at: float | None = None
        self.sent_first_at: float | None = None
        self.phases: Phases | None = None  # from when it is routed
        self.phases_ms: dict[str, float] = {}
        self.usage: Usage | None = None
        self.estimated = False
        self.meter: StreamMeter | None = None
        self.turn: Waiting | None = None
        self.cancel: Callable[[GatewayError], None] = _nothing_to_cancel

    def routed(self, model: str, node: str) -> Routed:
        """A context manager around one attempt at one neuron: counts it, and that it is under way."""
        self.model, self.node = model, node
        return Routed(self._accounts.metrics, model, node)

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for a place or a load: no neuron is at work for it."""
        return self.turn is not None and self.turn.is_in_line

    @property
    def state(self) -> Literal["arriving", "queued", "loading", "running"]:
        """Where it is on its way: its body is arriving, it waits for a place or a load, or is at a neuron."""
        if self.turn is None:
            return "arriving"
        if not self.turn.is_in_line:
            return "running"
        return "loading" if self.turn.waits_for == "load" else "queued"

    def retried(self) -> None:
        """The attempt under way is given up for another."""
        self.retries += 1
        self._accounts.metrics.retries(self.model or "", self.node or "").inc()

    def failed(self, error: GatewayError) -> None:
        """The request ends in an error of ours."""
        self.outcome, self.error = "error", error

    def __enter__(self) -> Self:
        self._key = id(self)
        self._accounts.live[self._key] = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        now = trio.current_time()
        del self._accounts.live[self._key]
        self._accounts.served += 1
        self._take_usage()
        self._count(now)
        if self._accounts.log_requests:
            self._accounts.log.info("request", **self._event(now))

    def _take_usage(self) -> None:
        """From upstream's own words, else an estimate: one token per generated delta, marked as such."""
        if self.meter is None:
            return
        self.usage = self.meter.usage
        if self.usage is None and self.meter.generated:
            self.usage = Usage(completion_tokens=self.meter.generated)
            self.estimated = True

    def _count(self, now: float) -> None:
        metrics, route = self._accounts.metrics, ("" if self.made_up else self.model or "", self.node or "")
        code = self._error_code()
        if code is not None:
            metrics.errors(*route, code).inc()
        if self.outcome == "client_disconnected":
            metrics.disconnects(*route).inc()
        if self.alias is not None and self.model is not None:
            metrics.alias_requests(self.alias, self.model).inc()
        if self.node is None:
            return
        metrics.duration(*route).observe(now - self.started_at)
        self._count_overhead()
        self._count_tokens(route)

    def _count_overhead(self) -> None:
        """Our own time: before the neuron was asked (waiting for a model is not ours), and from its first token on."""
        metrics = self._accounts.metrics
        if self.read_at is not None and self.routed_at is not None and not self.phases_ms.keys() & {"load", "queue"}:
            metrics.overhead("route").observe(self.routed_at - self.read_at)
        came_at = self.meter.first_at if self.meter is not None else self.first_byte_at
        if came_at is not None and self.sent_first_at is not None and self.sent_first_at >= came_at:
            metrics.overhead("relay").observe(self.sent_first_at - came_at)

    def _count_tokens(self, route: tuple[str, str]) -> None:
        metrics, usage = self._accounts.metrics, self.usage
        if usage is not None and not self.estimated:
            if usage.prompt_tokens is not None:
                metrics.prompt_tokens(*route).inc(usage.prompt_tokens)
            if usage.completion_tokens is not None:
                metrics.completion_tokens(*route).inc(usage.completion_tokens)
            if usage.cached_tokens is not None:
                metrics.cached_prompt_tokens(*route).inc(usage.cached_tokens)
        if self.meter is None or self.meter.first_at is None or self.meter.last_at is None:
            return
        metrics.first_token(*route).observe(self.meter.first_at - self.started_at)
        window_s = self.meter.last_at - self.meter.first_at
        if usage is not None and usage.completion_tokens and window_s > 0:
            metrics.tokens_per_second(*route).observe(usage.completion_tokens / window_s)

    def _error_code(self) -> str | None:
        """From a closed list: our codes, or the class of an upstream status."""
        if self.error is not None:
            return self.error.code or "bad_request"
        if self.outcome == "upstream_error":
            return f"upstream_{(self.upstream_status or 0) // 100}xx"
        return None

    def _event(self, now: float) -> dict[str, Any]:
        event: dict[str, Any] = {
            "request_id": self.request_id,
            "path": self.path,
            "alias": self.alias,
            "model": self.model,
            "node": self.node,
            "status": self.status,
            "outcome": self.outcome,
            "stream": self.stream,
            "duration_ms": round((now - self.started_at) * 1000, 3),
            "phases_ms": self.phases_ms,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }
        if self.meter is not None and self.meter.first_at is not None:
            event["first_token_ms"] = round((self.meter.first_at - self.started_at) * 1000, 3)
        if self.usage is not None:
            event["prompt_tokens"] = self.usage.prompt_tokens
            event["completion_tokens"] = self.usage.completion_tokens
            event["cached_tokens"] = self.usage.cached_tokens
            event["tokens_estimated"] = self.estimated
        if self.retries:
            event["retries"] = self.retries
        if self.error is not None:
            event["error"] = self.error.code
            event["message"] = self.error.message
        return event


class Routed:
    """See `Record.routed`."""

    __slots__ = ("_gauge", "_metrics", "_route")

    def __init__(self, metrics: Metrics, model: str, node: str) -> None:
        self._metrics = metrics
        self._route = (model, node)

    def __enter__(self) -> None:
        self._metrics.requests(*self._route).inc()
        self._gauge = self._metrics.inflight(*self._route)
        self._gauge.inc()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._gauge.dec()


def _nothing_to_cancel(_: GatewayError) -> None:
    """A request that is still being read ends by its own deadline."""
