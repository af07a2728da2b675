"""How one request was routed: its alias and model, each decision, each attempt, and each fallback."""

from __future__ import annotations

from typing import Literal, NamedTuple

import structlog
import trio

from catalogue.models import Resolution
from gateway.errors import GatewayError
from gateway.fleet.routing.decision_log import NotedDecision
from gateway.fleet.routing.queue import QueueTicket
from gateway.telemetry.attempt_record import AttemptRecord, ErrorSummary
from gateway.telemetry.metrics import Metrics

__all__ = ["FallbackRecord", "RoutingRecord"]

NAME_CHARACTERS = 300  # of the name of a model that does not exist: the client chose it, and its length

log = structlog.get_logger("cortex.accounting")


class FallbackRecord(NamedTuple):
    """A fallback from `model` to `to`, at a time by Trio's clock.

    `error` is why `model` could not serve the request; if `is_skipped`, why `to` cannot either.
    """

    at: float
    model: str
    to: str
    error: ErrorSummary
    is_skipped: bool = False


class RoutingRecord:
    """The routing of one request.

    Attributes:
        generation: Of the catalogue snapshot that resolved the request.
        resolution: None until the request is resolved.
        alias: The alias the client asked for, if it did.
        target: The model that it was resolved to.
        model: The same, or the fallback model the request has come to.
        is_unknown_model: The client made up the name, so it must not become a metric label: labels are kept for ever.
        node: The neuron of the last attempt, or of the one that answers.
        is_contested: Two attempts race, so no response header names a neuron yet.
        hedge: The result of the second attempt: `won`, `lost`, `failed` or `cancelled`.
        decisions: Routing decisions, where anything stood in the way of one.
        ticket: The request's place in the model's queue, while the request runs. None if it has not had to wait.
        note_count: How many entries take memory beyond what every request takes, once the request has ended.
    """

    __slots__ = (
        "_metrics",
        "_request_id",
        "alias",
        "attempts",
        "decisions",
        "fallbacks",
        "generation",
        "hedge",
        "is_contested",
        "is_unknown_model",
        "model",
        "node",
        "note_count",
        "resolution",
        "retries",
        "target",
        "ticket",
    )

    def __init__(self, metrics: Metrics, request_id: str) -> None:
        self._metrics = metrics
        self._request_id = request_id
        self.generation = 0
        self.resolution: Resolution | None = None
        self.alias: str | None = None
        self.target: str | None = None
        self.model: str | None = None
        self.is_unknown_model = False
        self.node: str | None = None
        self.is_contested = False
        self.hedge: str | None = None
        self.decisions: list[NotedDecision] = []
        self.attempts: list[AttemptRecord] = []
        self.fallbacks: tuple[FallbackRecord, ...] = ()
        self.retries = 0
        self.ticket: QueueTicket | None = None
        self.note_count = 0

    def start_attempt(self, model: str, node: str, now: float | None = None) -> AttemptRecord:
        """The record of an attempt, whose replica was chosen `now`, by Trio's clock."""
        self.model, self.node = model, node
        attempt = AttemptRecord(self._metrics, model, node, trio.current_time() if now is None else now)
        self.attempts.append(attempt)
        return attempt

    def start_hedge(self, model: str, node: str) -> AttemptRecord:
        """The record of a second, concurrent attempt. `node` stays: which attempt answers is not decided yet."""
        attempt = AttemptRecord(self._metrics, model, node, trio.current_time(), is_hedge=True)
        self.attempts.append(attempt)
        return attempt

    def retried(self) -> None:
        """Count that the last attempt failed and another follows."""
        self.retries += 1
        self._metrics.retries(self.model or "", self.node or "").inc()

    def fell_back(self, model: str, error: GatewayError) -> None:
        """Record that no replica could serve the model so far, and that `model` is tried next."""
        before, alias = self.model or "", self.alias or ""
        self._metrics.fallbacks(alias, before, model).inc()
        log.warning(
            "fallback",
            request_id=self._request_id,
            alias=alias,
            model=before,
            falls_back_to=model,
            reason=error.message,
        )
        self.fallbacks += (FallbackRecord(trio.current_time(), before, model, ErrorSummary.of(error)),)
        self.model, self.node = model, None
        self.end_slot()

    def end_slot(self) -> None:
        """The request is done with the model whose ticket it has."""
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            ticket.end_slot()

    def skipped_fallback(self, model: str, error: GatewayError) -> None:
        """Record that `model` would be the next fallback, but cannot serve this request at all."""
        log.info(
            "fallback_passed_over", request_id=self._request_id, alias=self.alias, model=model, reason=error.message
        )
        self.fallbacks += (
            FallbackRecord(trio.current_time(), self.model or "", model, ErrorSummary.of(error), is_skipped=True),
        )

    @property
    def is_waiting(self) -> bool:
        """Whether the request waits in a queue, or for its model to be loaded: no neuron is at work for it."""
        return self.ticket is not None and self.ticket.is_in_queue

    @property
    def state(self) -> Literal["arriving", "queued", "loading", "running"]:
        """The state of a running request, for operators. `arriving`: its body is being read."""
        if self.ticket is None or not self.ticket.is_in_queue:
            return "running" if self.attempts else "arriving"
        return "loading" if self.ticket.waits_for == "load" else "queued"

    @property
    def place(self) -> dict[str, str | int | None]:
        """The request's place in the queue, as JSON; both are null unless it waits."""
        ticket = self.ticket
        if ticket is None or not ticket.is_in_queue:
            return {"position": None, "priority": None}
        return {"position": ticket.position, "priority": ticket.priority}

    def release(self, now: float) -> None:
        """The request has ended: drop what would keep it in memory, and what a client can make long."""
        for attempt in self.attempts:
            if attempt.ended_at is None:
                attempt.ended_at = now
        self.ticket = None
        self.note_count = len(self.attempts)
        if self.fallbacks or self.decisions:
            verdicts = sum([len(choice.verdicts) + len(choice.loads) for choice in self.decisions])
            self.note_count += len(self.fallbacks) + verdicts
        if self.is_unknown_model and self.model is not None:
            self.model, self.target, self.resolution = self.model[:NAME_CHARACTERS], None, None
