"""One request before two neurons: the second is asked when no token has come in time, and who has one first answers.

    first ----------------------- its first token: it answers, the second is called off (or never asked)
      +-- after_s --> second ---- its first token: it answers, the first is called off

Who answers is settled by one synchronous claim (docs/decisions/0009-hedging.md). Both belong to the nursery of `run`,
so neither outlives the request. One that fails leaves the other running.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import trio

from catalogue.models import Catalogue
from gateway import errors
from gateway.fleet.node import NodeModel
from gateway.fleet.routing.choose import Route, replicas_of
from gateway.fleet.routing.queue import QueueTicket
from gateway.fleet.state import Fleet
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.proxy.attempt import Attempt, Refused, Retriable
from gateway.proxy.client_response import ClientGone
from gateway.telemetry.attempt_record import AttemptRecord
from gateway.telemetry.request_record import Record

__all__ = ["HedgeLeg", "Race", "beside"]


class HedgeLeg:
    """One attempt, with what it does not share with another: where it goes, and its phases.

    `error` is how it failed, once it has.
    """

    __slots__ = ("attempt", "error", "phases", "route", "routed")

    attempt: Attempt

    def __init__(self, route: Route, routed: AttemptRecord, phases: PhaseDeadlines) -> None:
        self.route = route
        self.routed = routed
        self.phases = phases
        self.error: Exception | None = None


class Race:
    """See above. `run` once.

    Args:
        record: Of the request.
        after_s: So long the first has to itself.
        first: Under way from the moment that `run` is called.
        second: Decides on another in the step in which it is asked; None if there is to be none.
        ask: Runs a leg, its lease taken before the first checkpoint.
        won: Told which leg answers, in the step in which that is settled.
    """

    def __init__(
        self,
        record: Record,
        after_s: float,
        first: HedgeLeg,
        *,
        second: Callable[[], HedgeLeg | None],
        ask: Callable[[HedgeLeg], Awaitable[None]],
        won: Callable[[HedgeLeg], None],
    ) -> None:
        self._record = record
        self._after_s = after_s
        self._first = first
        self._decide = second
        self._ask = ask
        self._won = won
        self._second: HedgeLeg | None = None
        self._first_scope, self._second_scope = trio.CancelScope(), trio.CancelScope()
        self._winner: HedgeLeg | None = None

    async def run(self) -> None:
        """Returns when one has answered and nothing is left of the other.

        Raises:
            Retriable, Refused, GatewayError, ClientGone: What befell the one that began to answer; if neither did,
                whichever of the two tells the client more.
        """
        self._record.is_contested = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_another_in_time)
                with self._first_scope:
                    await self._run(self._first)
                if self._second is None:
                    self._second_scope.cancel()
        finally:
            self._record.is_contested = False
            if self._second is not None:
                self._record.hedge = self._result(self._second)
        outcome = self._winner or self._better(self._first, self._second)
        if outcome.error is not None:
            raise outcome.error

    def claim(self, leg: HedgeLeg) -> bool:
        """Whether `leg` is the one that answers. The first to ask is, and calls the other off before it goes on.

        Synchronous: two that have their first token in one moment ask one after the other.
        """
        if self._winner is None:
            self._winner = leg
            self._record.is_contested = False
            self._call_off_the_other(leg)
            self._won(leg)
        return self._winner is leg

    def _call_off_the_other(self, leg: HedgeLeg) -> None:
        if leg is not self._first:
            self._first.routed.lost()
            self._first_scope.cancel()
            return
        if self._second is not None:
            self._second.routed.lost()
        self._second_scope.cancel()  # also if it has not been asked yet

    async def _ask_another_in_time(self) -> None:
        with self._second_scope:
            await trio.sleep(self._after_s)
            self._second = self._decide()
            if self._second is not None:
                await self._run(self._second)

    async def _run(self, leg: HedgeLeg) -> None:
        """What it raises is kept: it must neither cancel the other nor come out as a group."""
        try:
            await self._ask(leg)
        except (Retriable, Refused, errors.GatewayError, ClientGone) as error:
            leg.error = error

    def _result(self, second: HedgeLeg) -> str:
        if self._winner is second:
            return "won"
        if second.error is not None:
            return "failed"
        return "lost" if self._winner is self._first else "cancelled"

    @staticmethod
    def _better(first: HedgeLeg, second: HedgeLeg | None) -> HedgeLeg:
        if second is None or _tells(first.error) >= _tells(second.error):
            return first
        return second


def _tells(error: Exception | None) -> int:
    """How much of use a client learns from it."""
    if isinstance(error, Refused):
        return 4  # what is wrong with its request
    if not isinstance(error, Retriable):
        return 0  # that this one could not even be asked
    if error.refusal is not None:
        return 3  # that it is busy, and until when
    return 1 if error.not_loaded else 2


def beside(
    route: Route, turn: QueueTicket, catalogue: Catalogue, fleet: Fleet, *, failed_on: Collection[str] = ()
) -> Route | None:
    """Where else the request could go now: to a loaded replica that is well and not busier; None if there is none.

    Its place must be free, with nobody in line for it. Never a reason to load anything, nor a breaker's trial.
    """
    candidates = {held.node.name: held for held in replicas_of(turn.model, fleet, catalogue)}
    asked = candidates.get(route.node)
    if asked is None or len(candidates) == 1:
        return None
    try:
        decision = turn.choose(catalogue, {route.node, *failed_on})
    except errors.GatewayError:
        return None
    other = candidates.get(decision.node) if isinstance(decision, Route) else None
    if other is None or not isinstance(decision, Route):
        return None
    return decision if _is_well(other, fleet.now()) and other.load <= asked.load else None


def _is_well(held: NodeModel, now: float) -> bool:
    return held.node.breaker.closed and held.busy_until <= now
