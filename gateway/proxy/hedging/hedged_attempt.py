"""An attempt for an alias that has `hedge`: if it has no token in time, a second replica gets the request, too."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

from catalogue.models import Alias, Catalogue
from gateway.errors import GatewayError
from gateway.fleet.model_names import replicas_of
from gateway.fleet.route import Route
from gateway.fleet.routing.queue import QueueTicket
from gateway.fleet.state import Fleet
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.proxy.attempt import Attempt
from gateway.proxy.attempt_failures import AttemptFailures
from gateway.proxy.context import ProxyContext
from gateway.proxy.hedging.hedge_race import Race
from gateway.proxy.request import InferenceRequest
from gateway.telemetry.attempt_record import AttemptRecord
from gateway.telemetry.request_record import RequestRecord

__all__ = ["HedgedAttempt", "NewAttempt"]

NewAttempt: TypeAlias = Callable[[Route, AttemptRecord, PhaseDeadlines, AttemptFailures], Attempt]


class HedgedAttempt:
    """Call `run` once.

    Args:
        context: The shared collaborators.
        policy: The request's alias, which has `hedge`.
        request: The client's request.
        record: The request's record.
        first: The attempt at the replica that was chosen first, not yet run.
        ticket: The request's place in the model's queue.
        catalogue: The request's snapshot.
        failures: The attempts at this model that have failed.
        new_attempt: Makes the second attempt.

    Attributes:
        attempt: The attempt that answers; the first one if neither does.
    """

    __slots__ = (
        "_catalogue",
        "_context",
        "_failures",
        "_first",
        "_hedge_phases",
        "_new_attempt",
        "_policy",
        "_record",
        "_request",
        "_ticket",
        "attempt",
    )

    def __init__(
        self,
        context: ProxyContext,
        policy: Alias,
        request: InferenceRequest,
        record: RequestRecord,
        first: Attempt,
        *,
        ticket: QueueTicket,
        catalogue: Catalogue,
        failures: AttemptFailures,
        new_attempt: NewAttempt,
    ) -> None:
        self._context = context
        self._policy = policy
        self._request = request
        self._record = record
        self._first = self.attempt = first
        self._ticket = ticket
        self._catalogue = catalogue
        self._failures = failures
        self._new_attempt = new_attempt
        self._hedge_phases: PhaseDeadlines | None = None

    async def run(self) -> None:
        """Run the first attempt, and the second if it comes to that. Raises as `Attempt.run` does."""
        delay_s = self._delay_s()
        try:
            if delay_s is None:
                await self._first.run()
            else:
                await self._race(delay_s)
        finally:
            self._learn()

    def _delay_s(self) -> float | None:
        """How long to wait before the second attempt; None for no second attempt.

        There is none for a retry, a fallback model, a model that was loaded for this request (its first answer is slow)
        or a form (which may be sent while it arrives, and so only once).
        """
        model = self._ticket.model
        if self._failures.nodes or model != self._record.routing.target:
            return None
        delay_s = self._context.hedge_policy.delay_s(self._policy, model, stream=self._request.stream)
        if self._request.upload is not None or self._first.phases.was_entered("load"):
            return None
        return delay_s if len(replicas_of(model, self._context.fleet, self._catalogue)) > 1 else None

    async def _race(self, delay_s: float) -> None:
        record = self._record
        record.cancel = self._interrupt
        race = Race(record, delay_s, self._first, make_second=self._make_second, on_win=self._on_win)
        try:
            await race.run()
        finally:
            self._hedge_phases = None
            record.cancel = self.attempt.phases.interrupt
            if record.routing.hedge is not None:
                self._context.hedge_policy.count_hedge(self._policy, self._ticket.model, record.routing.hedge)

    def _interrupt(self, error: GatewayError) -> None:
        """Cancel both attempts; see `PhaseDeadlines.interrupt`."""
        self.attempt.phases.interrupt(error)
        if self._hedge_phases is not None:
            self._hedge_phases.interrupt(error)

    def _make_second(self) -> Attempt | None:
        """Choose the second replica. None if no replica is free, the budget is spent, or the request is to end."""
        context, model = self._context, self._ticket.model
        if context.draining.is_set() or self.attempt.phases.interrupted:
            return None
        route = _second_route(self._first.route, self._ticket, self._catalogue, context.fleet, self._failures.nodes)
        if route is None or not context.hedge_policy.spend(self._policy):
            reason = "replica" if route is None else "budget"
            context.hedge_policy.count_withheld(self._policy, model, reason)
            return None
        phases = self._hedge_phases = PhaseDeadlines(context.settings.deadlines, self._first.phases.request_scope)
        return self._new_attempt(route, self._record.routing.start_hedge(model, route.node), phases, self._failures)

    def _on_win(self, attempt: Attempt) -> None:
        phases = self.attempt.phases
        self.attempt = attempt
        if attempt.phases is not phases:
            attempt.phases.continue_from(phases)
            self._record.phases = attempt.phases

    def _learn(self) -> None:
        """The delay of later hedges depends on this first token, unless it was the first after a load."""
        record = self._record
        came_at = record.first_byte_at if record.answer.meter is None else record.answer.meter.first_at
        if came_at is None or self.attempt.phases.was_entered("load"):
            return
        first = self._first.attempt_record
        after_s = came_at - first.began_at
        self._context.hedge_policy.add_first_token(
            self._policy, first.model, stream=self._request.stream, after_s=after_s
        )


def _second_route(
    first: Route, ticket: QueueTicket, catalogue: Catalogue, fleet: Fleet, failed_on: Collection[str]
) -> Route | None:
    """Another replica that is loaded, healthy, no busier than the first, and has room without a queue; else None.

    A hedge never causes a load and is never the trial request of a circuit breaker.
    """
    replicas = {replica.node.name: replica for replica in replicas_of(ticket.model, fleet, catalogue)}
    first_replica = replicas.get(first.node)
    if first_replica is None or len(replicas) == 1:
        return None
    try:
        decision = ticket.choose(catalogue, {first.node, *failed_on})
    except GatewayError:
        return None
    if not isinstance(decision, Route) or (replica := replicas.get(decision.node)) is None:
        return None
    is_healthy = replica.breakers_closed and replica.busy_until <= fleet.now()
    return decision if is_healthy and replica.load <= first_replica.load else None
