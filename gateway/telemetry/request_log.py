"""Where every request's record goes at its end: metrics, observers, one log event, and the list of recent requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
import trio
from msgspec import UNSET, Struct, UnsetType

from catalogue.models import Resolution
from gateway import errors
from gateway.asgi import Headers
from gateway.dialects.usage_fields import Usage
from gateway.telemetry.log import write_info
from gateway.telemetry.meter import StreamMeter
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.observation import Observation, Observer, is_retry
from gateway.telemetry.printable import hide_secret
from gateway.telemetry.recent import RecentRequests
from gateway.telemetry.request_record import RequestRecord
from gateway.telemetry.series import NumberCell
from gateway.telemetry.target_metrics import TargetCells
from gateway.telemetry.tracing.request_tracer import RequestTracer

__all__ = ["RequestEvent", "RequestLog", "RequestTotals"]

OBSERVERS_LIMIT = 8  # of one alias; each costs its requests a call
_FINISH_REASON_CHARACTERS = 32
_NOT_THE_TARGETS_FAULT = (errors.ShuttingDown, errors.Overloaded)


@dataclass(slots=True)
class RequestTotals:
    """Sums over all requests that have ended: those whose client got an error, and the tokens of their usage."""

    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class _RouteCells:
    """The series that each request for an alias or model at one neuron is counted in, looked up once for all of them.

    Counters appear with their first sample, so those that a request may not need are None before.
    """

    __slots__ = (
        "completion_tokens", "duration", "first_token", "inter_token", "labels", "prompt_tokens", "requests", "target",
        "tokens_per_second",
    )  # fmt: skip

    def __init__(
        self, metrics: Metrics, alias: str | None, model: str | None, node: str | None, generation: int
    ) -> None:
        self.labels = (model or "", node or "")
        self.duration = metrics.duration(*self.labels)
        self.first_token = metrics.first_token(*self.labels)
        self.tokens_per_second = metrics.tokens_per_second(*self.labels)
        self.inter_token = metrics.inter_token(*self.labels)
        self.prompt_tokens: NumberCell | None = None
        self.completion_tokens: NumberCell | None = None
        self.target: TargetCells | None = None
        if alias is not None and model is not None:
            self.requests = metrics.alias_requests(alias, model)
            self.target = metrics.by_target.cells_of(alias, model, generation)


class RequestLog:
    """Opens a record for each request, and takes it at the end.

    Args:
        metrics: Counts requests.
        log_requests: Whether to write a log event for each request.
        remembered: How many ended requests to keep for `explain.py`.
        remembered_refused: How many further ones that were refused before a neuron was asked.
        tracer: Traces requests; None if none is traced.

    Attributes:
        live: The running requests, by the identity of the record: two clients may send the same request id.
        recent: The requests that ended last.
        served: The number of requests that have ended.
        totals: Sums over these.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        log_requests: bool,
        remembered: int = 1000,
        remembered_refused: int = 100,
        tracer: RequestTracer | None = None,
    ) -> None:
        self.metrics = metrics
        self.log = structlog.get_logger("cortex.request")
        self.log_requests = log_requests
        self.tracer = tracer
        self.live: dict[int, RequestRecord] = {}
        self.recent = RecentRequests(remembered, remembered_refused)
        self.served = 0
        self.totals = RequestTotals()
        self._observers: dict[str, list[Observer]] = {}
        self._overhead_of_route, self._overhead_of_relay = metrics.overhead("route"), metrics.overhead("relay")
        self._cells: dict[tuple[str | None, str | None, str | None], _RouteCells] = {}  # of this generation
        self._generation = 0
        self._now: Callable[[], float] | None = None  # `trio.current_time` takes four times as long to find the clock

    def open(self, request_id: str, path: str, headers: Headers | None = None) -> RequestRecord:
        """The record of a new request. Its owner calls `close` when it has ended, in any case."""
        if self._now is None:
            self._now = trio.lowlevel.current_clock().current_time
        record = RequestRecord(request_id, path, self.metrics, self._now)
        self.live[id(record)] = record
        if self.tracer is not None:
            self.tracer.begin(record, headers or [])
        return record

    def close(self, record: RequestRecord) -> None:
        """The request has ended."""
        now = record.now()
        del self.live[id(record)]
        self.served += 1
        if record.answer.meter is not None:
            record.answer.finish()
        self._count(record, now)
        if record.answer.is_observed:
            self._call_observers(record, now)
        if self.log_requests:
            write_info(self.log, RequestEvent.of(record, now))
        if record.trace is not None and self.tracer is not None:
            self.tracer.end(record, now)
        record.release(now)
        self.recent.add(record)

    def resolved(self, record: RequestRecord, resolution: Resolution, generation: int, headers: Headers) -> None:
        """Record what the requested name stands for in the catalogue of this generation, and whether it is observed."""
        routing = record.routing
        routing.resolution, routing.generation = resolution, generation
        routing.alias, routing.model, routing.target = resolution.alias, resolution.model, resolution.model
        if resolution.alias in self._observers:
            record.answer.is_observed = not is_retry(headers)

    def watch(self, alias: str, observer: Observer) -> None:
        """Call `observer` with each request for the alias that ends, until `unwatch`.

        The call is synchronous, at the end of the request. If it raises, that is logged and changes nothing.

        Raises:
            RuntimeError: The alias has `OBSERVERS_LIMIT` observers.
        """
        observers = self._observers.setdefault(alias, [])
        if len(observers) >= OBSERVERS_LIMIT:
            raise RuntimeError(f"alias '{alias}' has {OBSERVERS_LIMIT} observers already")
        observers.append(observer)

    def unwatch(self, alias: str, observer: Observer) -> None:
        """Stop calling `observer`."""
        observers = self._observers.get(alias, [])
        if observer in observers:
            observers.remove(observer)
        if not observers:
            self._observers.pop(alias, None)

    def is_watched(self, alias: str | None) -> bool:
        """Whether the alias has observers. One look-up, because every request asks."""
        return alias in self._observers

    def _call_observers(self, record: RequestRecord, now: float) -> None:
        observation = _observation_of(record, now)
        if observation is None:
            return
        for observer in list(self._observers.get(observation.alias, ())):
            try:
                observer(observation)
            except Exception:
                self.log.exception("observer_failed", alias=observation.alias)

    # Metrics...

    def _count(self, record: RequestRecord, now: float) -> None:
        metrics, routing, answer, started_at = self.metrics, record.routing, record.answer, record.started_at
        if routing.generation != self._generation:
            self._cells.clear()
            self._generation = routing.generation
        route = (routing.alias, "" if routing.is_unknown_model else routing.model, routing.node)
        try:
            cells = self._cells[route]
        except KeyError:
            cells = self._cells[route] = _RouteCells(metrics, *route, self._generation)
        code = None
        if record.outcome != "ok" or record.error is not None:
            code = self._count_failure(record, cells.labels)
        if metrics.by_key is not None and record.key_id is not None:
            metrics.by_key.count(record.key_id, record.key_name or "", answer.usage)
        duration_s = None if routing.node is None else now - started_at
        if cells.target is not None:
            cells.requests.value += 1
            first_at = None if answer.meter is None else answer.meter.first_at
            cells.target.record(code, duration_s, None if first_at is None else first_at - started_at)
        if duration_s is None:
            return
        cells.duration.observe(duration_s)
        if record.trace is not None:
            cells.duration.name_trace(duration_s, record.trace.trace_id)
        self._count_overhead(record)
        if answer.usage is not None:
            self._count_tokens(answer.usage, cells, is_estimated=answer.is_estimated)
        if answer.meter is not None:
            self._count_stream(record, answer.meter, cells)

    def _count_failure(self, record: RequestRecord, labels: tuple[str, str]) -> str | None:
        """Returns the error's code; None if the client got none."""
        code = _error_code(record)
        if code is not None:
            self.totals.errors += 1
            self.metrics.errors(*labels, code).inc()
        if record.outcome == "client_disconnected":
            self.metrics.disconnects(*labels).inc()
        return code

    def _count_overhead(self, record: RequestRecord) -> None:
        """The gateway's own time: from reading the request to sending it, without waiting; and relaying."""
        answer = record.answer
        waited = "queue" in record.phases_ms or "load" in record.phases_ms
        if record.read_at is not None and record.routing.attempts and not waited:
            self._overhead_of_route.observe(record.routing.attempts[0].began_at - record.read_at)
        came_at = answer.meter.first_at if answer.meter is not None else record.first_byte_at
        if came_at is not None and record.sent_first_at is not None and record.sent_first_at >= came_at:
            self._overhead_of_relay.observe(record.sent_first_at - came_at)

    def _count_tokens(self, usage: Usage, cells: _RouteCells, *, is_estimated: bool) -> None:
        metrics, totals = self.metrics, self.totals
        if (prompt := usage.prompt_tokens) is not None:
            totals.prompt_tokens += prompt
            cells.prompt_tokens = cells.prompt_tokens or metrics.prompt_tokens.cells[cells.labels]
            cells.prompt_tokens.value += prompt
        if (completion := usage.completion_tokens) is not None:
            totals.completion_tokens += completion
            if is_estimated:
                metrics.estimated_completion_tokens.cells[cells.labels].value += completion
            else:
                cells.completion_tokens = cells.completion_tokens or metrics.completion_tokens.cells[cells.labels]
                cells.completion_tokens.value += completion
        if (cached := usage.cached_tokens) is not None:
            totals.cached_tokens += cached
            metrics.cached_prompt_tokens.cells[cells.labels].value += cached
        if usage.reasoning_tokens is not None:
            metrics.reasoning_tokens.cells[cells.labels].value += usage.reasoning_tokens

    def _count_stream(self, record: RequestRecord, meter: StreamMeter, cells: _RouteCells) -> None:
        if meter.first_at is None or meter.last_at is None:
            return
        usage, first_token_s = record.answer.usage, meter.first_at - record.started_at
        cells.first_token.observe(first_token_s)
        if record.trace is not None:
            cells.first_token.name_trace(first_token_s, record.trace.trace_id)
        window_s = meter.last_at - meter.first_at
        if usage is not None and usage.completion_tokens and window_s > 0:
            cells.tokens_per_second.observe(usage.completion_tokens / window_s)
            if usage.completion_tokens > 1:  # once per stream: once per token would cost more than relaying the chunk
                between = usage.completion_tokens - 1
                cells.inter_token.observe_many(window_s / between, between)


def _error_code(record: RequestRecord) -> str | None:
    """From a closed list: the gateway's codes, or the class of the neuron's status."""
    if record.error is not None:
        return record.error.code or "bad_request"
    if record.outcome == "upstream_error":
        return f"upstream_{(record.upstream_status or 0) // 100}xx"
    return None


# Observations...


def _observation_of(record: RequestRecord, now: float) -> Observation | None:
    """What the request says of its target; None if it says nothing.

    A client's mistake that the gateway caught says nothing. One that the neuron refused does: another model may not.
    """
    routing, answer, started_at = record.routing, record.answer, record.started_at
    if routing.alias is None or routing.target is None or isinstance(record.error, _NOT_THE_TARGETS_FAULT):
        return None
    failed, error = _failure(record)
    if failed is None and record.outcome != "client_disconnected":
        return None
    first_at, reason = answer.first_token_at, answer.finish_reason
    return Observation(
        routing.alias,
        routing.target,
        failed,
        error,
        first_token_s=None if first_at is None else first_at - started_at,
        waited_s=now - started_at if failed is None and first_at is None else None,
        tokens_per_s=answer.tokens_per_s(now - started_at),
        finish_reason=None if reason is None else reason[:_FINISH_REASON_CHARACTERS],
        tool_calls_valid=answer.tool_calls_valid,
    )


def _failure(record: RequestRecord) -> tuple[bool | None, str | None]:
    if record.outcome == "ok":
        fell_back = record.routing.model != record.routing.target
        return fell_back, "fell back" if fell_back else None
    if record.outcome == "upstream_error":
        return True, f"upstream {record.upstream_status}"
    if record.error is not None and (record.error.status >= 500 or isinstance(record.error, errors.ModelNotFound)):
        return True, record.error.code
    return None, None


# The log event...


class RequestEvent(Struct, gc=False):
    """The line leaves out what is UNSET. It is made and encoded in half the time that a dictionary takes."""

    request_id: str
    path: str
    alias: str | None
    model: str | None
    node: str | None
    status: int
    outcome: str
    stream: bool
    duration_ms: float
    phases_ms: dict[str, float]
    bytes_in: int
    bytes_out: int
    key: str | UnsetType | None = UNSET
    key_id: str | UnsetType = UNSET
    first_token_ms: float | UnsetType = UNSET
    prompt_tokens: int | UnsetType | None = UNSET
    completion_tokens: int | UnsetType | None = UNSET
    cached_tokens: int | UnsetType | None = UNSET
    reasoning_tokens: int | UnsetType | None = UNSET
    tokens_estimated: bool | UnsetType = UNSET
    retries: int | UnsetType = UNSET
    fell_back_from: str | UnsetType | None = UNSET
    hedge: str | UnsetType = UNSET
    ignored: str | UnsetType = UNSET
    error: str | UnsetType | None = UNSET
    message: str | UnsetType = UNSET
    event: str = "request"
    level: str = "info"
    timestamp: str = ""

    @classmethod
    def of(cls, record: RequestRecord, now: float) -> RequestEvent:
        """Of a request that has ended at `now` (Trio's clock), and has not been released yet."""
        routing, answer, started_at = record.routing, record.answer, record.started_at
        # By position: names take twice the time.
        event = cls(
            record.request_id,
            record.path,
            routing.alias,
            routing.model,
            routing.node,
            record.status,
            record.outcome,
            record.stream,
            _ms(now - started_at),
            record.phases_ms,
            record.bytes_in,
            record.bytes_out,
        )
        if record.key_id is not None:
            event.key, event.key_id = record.key_name, record.key_id
        if answer.meter is not None and answer.meter.first_at is not None:
            event.first_token_ms = _ms(answer.meter.first_at - started_at)
        if (usage := answer.usage) is not None:
            event.prompt_tokens = usage.prompt_tokens
            event.completion_tokens = usage.completion_tokens
            event.cached_tokens = usage.cached_tokens
            event.reasoning_tokens = usage.reasoning_tokens
            event.tokens_estimated = answer.is_estimated
        if routing.retries:
            event.retries = routing.retries
        if routing.target != routing.model:
            event.fell_back_from = routing.target
        if routing.hedge is not None:
            event.hedge = routing.hedge
        if record.ignored:
            event.ignored = record.ignored.decode()
        if record.error is not None:
            event.error, event.message = record.error.code, record.error.message
        if record.error is not None or "ctx_" in record.request_id:  # only then is a text in it the client's own
            event._hide_secrets()
        return event

    def fields(self) -> dict[str, Any]:
        """Those that are set, by name."""
        values = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return {name: value for name, value in values if value is not UNSET}

    def _hide_secrets(self) -> None:
        for name, value in self.fields().items():
            if isinstance(value, str):
                setattr(self, name, hide_secret(value))


def _ms(seconds: float) -> float:
    """Rounded to three decimals; `round` takes twice the time."""
    return int(seconds * 1_000_000 + 0.5) / 1000
