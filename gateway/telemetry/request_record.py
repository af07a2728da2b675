"""What is known of one request, from its first byte to its last, and for a while after that.

On the way there it lets go of whatever is large, or holds on to the request: the client may have sent 64 MiB. What
becomes of it at its end is `accounting.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, Self

import structlog
import trio

from catalogue.resolve import Resolution
from gateway.asgi import Headers
from gateway.dialects.tool_calls import ToolCalls
from gateway.dialects.usage_fields import Usage
from gateway.errors import GatewayError
from gateway.fleet.routing.decision_log import Choice
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.telemetry.attempt_record import AttemptRecord, End
from gateway.telemetry.meter import BodyMeter, StreamMeter
from gateway.telemetry.observation import is_retry

if TYPE_CHECKING:
    from gateway.telemetry.request_log import Accounts

__all__ = ["Fallback", "Outcome", "Record"]

Outcome = Literal["ok", "error", "upstream_error", "client_disconnected", "cancelled"]

NAME_CHARACTERS = 300  # of what is remembered: a name that nobody knows may be any length

log = structlog.get_logger("cortex.accounting")


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
        "is_unknown_model",
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
        self.is_unknown_model = (
            False  # the model's name is the client's own: no label, or it could fill the memory with them
        )
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
        self.attempts: list[AttemptRecord] = []
        self.fallbacks: tuple[Fallback, ...] = ()
        self.retries = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.read_at: float | None = None
        self.routed_at: float | None = None
        self.first_byte_at: float | None = None
        self.first_token_at: float | None = None  # once it is over
        self.sent_first_at: float | None = None
        self.phases: PhaseDeadlines | None = None  # from when it is routed
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

    def start_attempt(self, model: str, node: str) -> AttemptRecord:
        """A context manager around one attempt at one neuron: counts it, and that it is under way."""
        self.model, self.node = model, node
        began_at = trio.current_time() if self.attempts or self.routed_at is None else self.routed_at
        routed = AttemptRecord(self._accounts.metrics, model, node, began_at)
        self.attempts.append(routed)
        return routed

    def start_hedge(self, model: str, node: str) -> AttemptRecord:
        """The same for an attempt beside the one under way: who answers is not settled, so `node` stays."""
        routed = AttemptRecord(self._accounts.metrics, model, node, trio.current_time(), is_hedge=True)
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
        del self._accounts.live[self._key]
        self._accounts.close(self)

    @property
    def notes(self) -> int:
        """How much there is to be remembered of it, beyond what there is of every request."""
        verdicts = sum(len(choice.verdicts) + len(choice.loads) for choice in self.choices) if self.choices else 0
        return len(self.attempts) + len(self.fallbacks) + verdicts

    def release_payload(self, now: float) -> None:
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
        if self.is_unknown_model and self.model is not None:
            self.model, self.target, self.resolution = self.model[:NAME_CHARACTERS], None, None

    def take_usage(self) -> None:
        """From upstream's own words; what these leave out, one completion token per generated delta, is an estimate."""
        if self.meter is None:
            return
        self.usage = usage = self.meter.usage
        told = None if usage is None else usage.completion_tokens
        # Anthropic begins a stream with a count of 1: of one that was cut off, the deltas tell more.
        if self.meter.generated and (told is None or (told < self.meter.generated and not self.meter.finished)):
            self.usage = (usage or Usage()).updated_by(Usage(completion_tokens=self.meter.generated))
            self.estimated = True


def _nothing_to_cancel(_: GatewayError) -> None:
    """A request that is still being read ends by its own deadline."""
