"""One record per request, written once on every path out: one terminal log event, and the metrics. No I/O but that.

For a while after that it is remembered, for `cortex explain`. On the way there it lets go of whatever is large, or
holds on to the request: the client may have sent 64 MiB.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self

import structlog
import trio

from catalogue.resolve import Resolution
from gateway.asgi import Headers
from gateway.choices import Choice
from gateway.errors import GatewayError
from gateway.metering import BodyMeter, StreamMeter, Usage
from gateway.metrics import Metrics
from gateway.observation import Observer, is_retry, observe
from gateway.phases import Phases
from gateway.recent import Recent
from gateway.tool_calls import ToolCalls

log = structlog.get_logger("cortex.accounting")

__all__ = ["Accounts", "End", "Fallback", "Outcome", "Record", "Routed"]

Outcome = Literal["ok", "error", "upstream_error", "client_disconnected", "cancelled"]

OBSERVERS_LIMIT = 8  # of one alias; each costs its requests a call
NAME_CHARACTERS, MESSAGE_CHARACTERS = 300, 1000  # of what is remembered: a name that nobody knows may be any length


class End(NamedTuple):
    """What an error was, once it is only remembered."""

    code: str | None
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: GatewayError) -> End:
        """Without the exception: its traceback holds on to everything that was going on."""
        return cls(error.code, error.message[:MESSAGE_CHARACTERS], error.param)


class Fallback(NamedTuple):
    """What its alias falls back to was tried in a model's place, or passed over; at a time by Trio's clock.

    `end` is why: what the model ended with, or why this one cannot serve either.
    """

    at: float
    model: str
    to: str
    end: End
    is_passed_over: bool = False


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

    def tell(self, record: Record, now: float) -> None:
        """A watched request has ended."""
        seen = observe(record, now)
        if seen is None:
            return
        for observer in list(self._observers.get(seen.alias, ())):
            try:
                observer(seen)
            except Exception:
                self.log.exception("observer_failed", alias=seen.alias)

    def open(self, request_id: str, path: str) -> Record:
        """A context manager around one request. Leaving it writes the record, however it is left."""
        return Record(self, request_id, path)


class Record:
    """What is known of one request so far. Sync throughout: nothing can come between an end and its bookkeeping."""

    __slots__ = (
        "_accounts",
        "_key",
        "_whole",
        "alias",
        "attempts",
        "bytes_in",
        "bytes_out",
        "cancel",
        "choices",
        "end",
        "ended_at",
        "error",
        "estimated",
        "fallbacks",
        "first_byte_at",
        "first_token_at",
        "generation",
        "hedge",
        "is_contested",
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
        "resolution",
        "retries",
        "routed_at",
        "sent_first_at",
        "started_at",
        "started_unix",
        "status",
        "stream",
        "target",
        "turn",
        "upstream_status",
        "usage",
        "watched",
    )  # fmt: skip

    def __init__(self, accounts: Accounts, request_id: str, path: str) -> None:
        self._accounts = accounts
        self.request_id = request_id
        self.path = path
        self.started_at = trio.current_time()
        self.started_unix = time.time()
        self.ended_at: float | None = None
        self.generation = 0  # of the catalogue it was resolved by
        self.resolution: Resolution | None = None
        self.alias: str | None = None
        self.model: str | None = None
        self.target: str | None = None  # what the alias stood for; `model` may be a fallback by now
        self.watched = False
        self.made_up = False  # the model's name is the client's own: no label, or it could fill the memory with them
        self.node: str | None = None
        self.is_contested = False  # while either of two neurons may answer: neither is named to the client
        self.hedge: str | None = None  # what became of asking another neuron as well
        self.stream = False
        self.status = 0
        self.upstream_status: int | None = None
        self.outcome: Outcome = "cancelled"  # until somebody knows better
        self.error: GatewayError | None = None
        self.end: End | None = None  # of `error`, once it is over
        self.choices: list[Choice] = []
        self.attempts: list[Routed] = []
        self.fallbacks: tuple[Fallback, ...] = ()
        self.retries = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.read_at: float | None = None
        self.routed_at: float | None = None
        self.first_byte_at: float | None = None
        self.first_token_at: float | None = None  # once it is over
        self.sent_first_at: float | None = None
        self.phases: Phases | None = None  # from when it is routed
        self.phases_ms: dict[str, float] = {}
        self.usage: Usage | None = None
        self.estimated = False
        self.meter: StreamMeter | None = None
        self.turn: Waiting | None = None
        self._whole: BodyMeter | None = None
        self.cancel: Callable[[GatewayError], None] = _nothing_to_cancel

    def resolved(self, resolution: Resolution, generation: int, headers: Headers) -> None:
        """What was asked for stands for this model, by the catalogue of this generation."""
        self.resolution, self.generation = resolution, generation
        self.alias, self.model, self.target = resolution.alias, resolution.model, resolution.model
        self.watched = self._accounts.is_watched(self.alias) and not is_retry(headers)

    def falls_back(self, model: str, error: GatewayError) -> None:
        """Nobody could serve the model it was for; now it is for another one, and without a neuron again."""
        before, alias = self.model or "", self.alias or ""
        self._accounts.metrics.fallbacks(alias, before, model).inc()
        log.warning(
            "fallback", request_id=self.request_id, alias=alias, model=before, falls_back_to=model, reason=error.message
        )
        self.fallbacks += (Fallback(trio.current_time(), before, model, End.of(error)),)
        self.model, self.node = model, None

    def passes_over(self, model: str, error: GatewayError) -> None:
        """It would be the next to fall back to, but it could not serve this request at all."""
        log.info(
            "fallback_passed_over", request_id=self.request_id, alias=self.alias, model=model, reason=error.message
        )
        self.fallbacks += (Fallback(trio.current_time(), self.model or "", model, End.of(error), is_passed_over=True),)

    def stream_meter(self) -> StreamMeter:
        """What to show an answer to that is a stream: it is the request's `meter` once it is the one that counts."""
        return StreamMeter(ToolCalls() if self.watched else None)

    def meter_whole(self, content_type: bytes | None) -> BodyMeter:
        """What to show the answer to if it is none."""
        self._whole = BodyMeter(ToolCalls() if self.watched else None, content_type)
        return self._whole

    @property
    def finish_reason(self) -> str | None:
        """The neuron's word for why it stopped. Of an answer that is no stream, only if it is watched."""
        meter = self._meter
        return None if meter is None else meter.finish_reason

    @property
    def tool_calls_valid(self) -> bool | None:
        """Whether a client can use the tool calls; None if there are none, or nobody watched."""
        meter = self._meter
        return None if meter is None or meter.tool_calls is None else meter.tool_calls.valid

    @property
    def _meter(self) -> StreamMeter | BodyMeter | None:
        return self.meter if self.meter is not None else self._whole

    def tokens_per_s(self, now: float) -> float | None:
        """Completion tokens over the window between first and last; of an answer in one piece, over the request."""
        tokens = None if self.usage is None else self.usage.completion_tokens
        meter = self.meter
        if meter is not None:
            window_s = 0.0 if meter.first_at is None or meter.last_at is None else meter.last_at - meter.first_at
        else:
            window_s = now - self.started_at
        return tokens / window_s if tokens and window_s > 0 else None

    def routed(self, model: str, node: str) -> Routed:
        """A context manager around one attempt at one neuron: counts it, and that it is under way."""
        self.model, self.node = model, node
        began_at = trio.current_time() if self.attempts or self.routed_at is None else self.routed_at
        routed = Routed(self._accounts.metrics, model, node, began_at)
        self.attempts.append(routed)
        return routed

    def hedged(self, model: str, node: str) -> Routed:
        """The same for an attempt beside the one under way: who answers is not settled, so `node` stays."""
        routed = Routed(self._accounts.metrics, model, node, trio.current_time(), is_hedge=True)
        self.attempts.append(routed)
        return routed

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
        if self.watched:
            self._accounts.tell(self, now)
        if self._accounts.log_requests:
            self._accounts.log.info("request", **self._event(now))
        self._let_go(now)
        self._accounts.recent.add(self)

    @property
    def notes(self) -> int:
        """How much there is to be remembered of it, beyond what there is of every request."""
        verdicts = sum(len(choice.verdicts) + len(choice.loads) for choice in self.choices) if self.choices else 0
        return len(self.attempts) + len(self.fallbacks) + verdicts

    def _let_go(self, now: float) -> None:
        """It will be around for a while; what it was about must not be, nor anything that a client can make long."""
        self.ended_at = now
        for attempt in self.attempts:
            attempt.ended_at = now if attempt.ended_at is None else attempt.ended_at
        self.cancel = _nothing_to_cancel
        self.phases = self.turn = None
        if self.meter is not None:
            self.first_token_at, self.meter = self.meter.first_at, None
        self._whole = None
        if self.error is not None:
            self.end, self.error = End.of(self.error), None
        if self.made_up and self.model is not None:
            self.model, self.target, self.resolution = self.model[:NAME_CHARACTERS], None, None

    def _take_usage(self) -> None:
        """From upstream's own words; what these leave out, one completion token per generated delta, is an estimate."""
        if self.meter is None:
            return
        self.usage = usage = self.meter.usage
        told = None if usage is None else usage.completion_tokens
        # Anthropic begins a stream with a count of 1: of one that was cut off, the deltas tell more.
        if self.meter.generated and (told is None or (told < self.meter.generated and not self.meter.finished)):
            self.usage = (usage or Usage()).updated_by(Usage(completion_tokens=self.meter.generated))
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
            self._count_for_its_alias(self.alias, self.model, code, now)
        if self.node is None:
            return
        metrics.duration(*route).observe(now - self.started_at)
        self._count_overhead()
        self._count_tokens(route)

    def _count_for_its_alias(self, alias: str, target: str, code: str | None, now: float) -> None:
        first_at = None if self.meter is None else self.meter.first_at
        self._accounts.metrics.by_target.record(
            alias,
            target,
            self.generation,
            code=code,
            duration_s=None if self.node is None else now - self.started_at,
            first_token_s=None if first_at is None else first_at - self.started_at,
        )

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
        if usage is not None:
            completion = metrics.estimated_completion_tokens if self.estimated else metrics.completion_tokens
            for series, tokens in (
                (metrics.prompt_tokens, usage.prompt_tokens),
                (completion, usage.completion_tokens),
                (metrics.cached_prompt_tokens, usage.cached_tokens),
                (metrics.reasoning_tokens, usage.reasoning_tokens),
            ):
                if tokens is not None:
                    series(*route).inc(tokens)
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
            event["reasoning_tokens"] = self.usage.reasoning_tokens
            event["tokens_estimated"] = self.estimated
        if self.retries:
            event["retries"] = self.retries
        if self.target != self.model:
            event["fell_back_from"] = self.target
        if self.hedge is not None:
            event["hedge"] = self.hedge
        if self.error is not None:
            event["error"] = self.error.code
            event["message"] = self.error.message
        return event


class Routed:
    """One attempt at one neuron. See `Record.routed`.

    `result` says how it ended: `answered`, `refused` (the neuron's own no went to the client), `failed`, `lost` to
    another at the same request, or `cancelled` by whatever ended the request. Times are Trio's clock.
    """

    __slots__ = ("_gauge", "_metrics", "began_at", "end", "ended_at", "is_hedge", "model", "node", "result")

    def __init__(self, metrics: Metrics, model: str, node: str, began_at: float, *, is_hedge: bool = False) -> None:
        self._metrics = metrics
        self.model = model
        self.node = node
        self.began_at = began_at
        self.is_hedge = is_hedge
        self.ended_at: float | None = None
        self.result: str | None = None  # while it is under way
        self.end: End | None = None

    def __enter__(self) -> Self:
        self._metrics.requests(self.model, self.node).inc()
        self._gauge = self._metrics.inflight(self.model, self.node)
        self._gauge.inc()
        return self

    def failed(self, error: GatewayError) -> None:
        """The neuron did not answer, or not to the end."""
        self.result, self.end = "failed", End.of(error)

    def lost(self) -> None:
        """Another was quicker."""
        self.result = self.result or "lost"

    def refused(self, error: GatewayError) -> None:
        """The neuron said no, and that is the answer."""
        self.result, self.end = "refused", End.of(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._gauge.dec()
        if error is None:
            self.result = self.result or "answered"  # and the request ends with it
            return
        self.ended_at = trio.current_time()
        if isinstance(error, GatewayError):
            self.failed(error)
        elif self.result is None:
            self.result = "cancelled"


def _nothing_to_cancel(_: GatewayError) -> None:
    """A request that is still being read ends by its own deadline."""
