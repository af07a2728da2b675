"""An inquiry: one neuron asked on a request's behalf, and another beside it if the alias hedges and the first is slow.

Whom to ask first, and what to do when nobody has answered, is the errand's; how two are kept apart, `race.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from catalogue.models import Alias, Catalogue
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.errors import GatewayError
from gateway.fleet.routing.choose import Route, replicas_of
from gateway.fleet.routing.queue import QueueTicket
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.proxy.attempt import Attempt, Refused, Retriable
from gateway.proxy.hedging.hedge_race import HedgeLeg, Race, beside
from gateway.proxy.keepalive import KeepAlive
from gateway.proxy.request import InferenceRequest
from gateway.telemetry.request_record import Record

if TYPE_CHECKING:
    from gateway.proxy.app import Inference

__all__ = ["Failures", "HedgedAttempt"]


class Failures:
    """Who has failed a request so far, and what it was told.

    `on` are their names. `suspects` broke over the request or answered nonsense: it may have been the request.
    `shortest` is the refusal with the shortest Retry-After: what the client is told when every replica is busy.
    """

    __slots__ = ("on", "shortest", "suspects")

    def __init__(self) -> None:
        self.on: set[str] = set()
        self.suspects: list[tuple[Route, str]] = []
        self.shortest: UpstreamErrorResponse | None = None

    def note(self, route: Route, failure: Retriable) -> None:
        """One more."""
        self.on.add(route.node)
        if failure.may_be_the_request:
            self.suspects.append((route, failure.error.message))
        refusal = failure.refusal
        if refusal is not None and (self.shortest is None or _patience_s(refusal) <= _patience_s(self.shortest)):
            self.shortest = refusal


def _patience_s(refusal: UpstreamErrorResponse) -> float:
    return math.inf if refusal.retry_after_s is None else refusal.retry_after_s


class HedgedAttempt:
    """For one request; asked again for every attempt.

    `attempt` is the one that answers, or else the last; `phases` are what the request has waited for, whoever answers.
    `policy` is what its alias says, and `listens` whether what is answered is to be remembered: set before the first.
    """

    __slots__ = (
        "_hedge_phases",
        "_pacer",
        "_record",
        "_request",
        "_shared",
        "attempt",
        "listens",
        "phases",
        "policy",
    )

    def __init__(self, shared: Inference, request: InferenceRequest, record: Record, pacer: KeepAlive) -> None:
        self._shared = shared
        self._request = request
        self._record = record
        self._pacer = pacer
        self._hedge_phases: PhaseDeadlines | None = None
        self.phases = PhaseDeadlines(shared.settings.deadlines)
        self.attempt: Attempt | None = None
        self.policy: Alias | None = None
        self.listens = False

    async def ask(self, route: Route, turn: QueueTicket, catalogue: Catalogue, failures: Failures) -> None:
        """One neuron, or two. To be called in the step in which `route` was chosen: its lease is taken in it.

        Raises:
            Retriable, Refused, GatewayError, ClientGone: As `Attempt.run`; failures have been noted by then.
        """
        leg = HedgeLeg(route, self._record.routed(turn.model, route.node), self.phases)
        after_s = self._hedge_after_s(turn, catalogue, failures)
        try:
            if after_s is None:
                self.attempt = leg.attempt = self._attempt_of(leg, None)
                await self._try(leg, turn, failures)
            else:
                await self._race(leg, after_s, turn, catalogue, failures)
        finally:
            self._learn_from(leg)

    def interrupt(self, error: GatewayError) -> None:
        """Stop what is going on, whatever it is; see `PhaseDeadlines.interrupt`."""
        self.phases.interrupt(error)
        if self._hedge_phases is not None:
            self._hedge_phases.interrupt(error)

    async def _try(self, leg: HedgeLeg, turn: QueueTicket, failures: Failures) -> None:
        route = leg.route
        try:
            # Decision and lease in one synchronous step: nobody can evict the model in between.
            with self._shared.fleet.lease(route.node, route.model_id), leg.routed:
                turn.entitle()
                if self._shared.shadows is not None:
                    self._shared.shadows.give_way(route.node)
                await leg.attempt.run(route)
        except Retriable as failure:
            leg.routed.failed(failure.error)
            failures.note(route, failure)
            self._shared.note_failure(route, failure)
            raise
        except Refused as refused:
            leg.routed.refused(refused.error)
            raise

    def _attempt_of(self, leg: HedgeLeg, claim: Callable[[Attempt], bool] | None) -> Attempt:
        attempt = Attempt(
            self._shared,
            self._request,
            self._record,
            self._pacer,
            phases=leg.phases,
            routed=leg.routed,
            policy=self.policy,
            claim=claim,
        )
        attempt.listens = self.listens
        return attempt

    # And another beside it...

    async def _race(
        self, first: HedgeLeg, after_s: float, turn: QueueTicket, catalogue: Catalogue, failures: Failures
    ) -> None:
        def entered(leg: HedgeLeg) -> HedgeLeg:
            leg.attempt = self._attempt_of(leg, lambda _: race.claim(leg))
            return leg

        def second() -> HedgeLeg | None:
            leg = self._hedge(first.route, turn, catalogue, failures)
            return None if leg is None else entered(leg)

        ask = partial(self._try, turn=turn, failures=failures)
        race = Race(self._record, after_s, entered(first), second=second, ask=ask, won=self._won_by)
        try:
            await race.run()
        finally:
            self._hedge_phases = None
            if self.policy is not None and self._record.hedge is not None:
                self._shared.hedging.ended(self.policy, turn.model, self._record.hedge)

    def _hedge_after_s(self, turn: QueueTicket, catalogue: Catalogue, failures: Failures) -> float | None:
        """How long the first neuron has to itself; None for as long as it likes: nearly always.

        Nobody is asked beside a retry, for a fallback, for a model that was loaded for this request and is slow with
        its first answer, or with a form: of that there is one, and it may be on its way.
        """
        policy = self.policy
        if policy is None or policy.hedge is None or failures.on or turn.model != self._record.target:
            return None
        after_s = self._shared.hedging.after_s(policy, turn.model, stream=self._request.stream)
        if self._request.upload is not None or self.phases.was_entered("load"):
            return None
        return after_s if len(replicas_of(turn.model, self._shared.fleet, catalogue)) > 1 else None

    def _hedge(self, route: Route, turn: QueueTicket, catalogue: Catalogue, failures: Failures) -> HedgeLeg | None:
        """The second attempt, or None: nobody is free, the budget is spent, or the request is about to end."""
        shared, policy = self._shared, self.policy
        if policy is None or shared.draining or self.phases.interrupted:
            return None
        other = beside(route, turn, catalogue, shared.fleet, failed_on=failures.on)
        if other is None or not shared.hedging.spend(policy):
            shared.hedging.withheld(policy, turn.model, "replica" if other is None else "budget")
            return None
        phases = self._hedge_phases = PhaseDeadlines(shared.settings.deadlines)
        return HedgeLeg(other, self._record.hedged(turn.model, other.node), phases)

    def _won_by(self, leg: HedgeLeg) -> None:
        """From here on the request is where this attempt of it is."""
        self.attempt = leg.attempt
        if leg.phases is not self.phases:
            leg.phases.continue_from(self.phases)
            self.phases = self._record.phases = leg.phases

    def _learn_from(self, first: HedgeLeg) -> None:
        """How long a first token took is what the next one's patience depends on. Not if it was the model's first."""
        policy, record = self.policy, self._record
        came_at = record.first_byte_at if record.meter is None else record.meter.first_at
        if policy is None or policy.hedge is None or came_at is None or self.phases.was_entered("load"):
            return
        after_s = came_at - first.routed.began_at
        self._shared.hedging.answered(policy, first.routed.model, stream=self._request.stream, after_s=after_s)
