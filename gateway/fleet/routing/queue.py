"""Who may go to a neuron at once, and who waits in line for it: one ceiling and one line per model. No I/O.

    choose says that all places are taken, or somebody is ahead --> a turn in the model's line
    a lease comes back, or somebody leaves the line ---------------> the first who waits for a place looks again
    other replicas than before, or another catalogue --------------> everybody does

A place is a lease of the fleet's, so there is nothing to count here and nothing to give back. Who looks again decides
anew, takes its lease and leaves the line in one synchronous step: no place is lost between two of them, and nobody
behind can be quicker. A request that waits for its model to be loaded stands in the same line, so that the first to
come is the first to be served then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from math import ceil
from types import TracebackType
from typing import Literal, Self

import trio

from catalogue.models import Catalogue
from catalogue.source import CatalogueSource
from gateway.errors import Overloaded
from gateway.fleet.routing.choose import Decision, Route, WaitForPlace, choose, neuron_model_id
from gateway.fleet.state import Fleet

__all__ = ["Admission", "LineView", "QueueTicket"]

# Time alone can make a place usable: a breaker has cooled down, a Retry-After is over. Nobody announces that, so who
# waits looks this often anyway. It costs ten microseconds.
RECHECK_S = 1.0
LONGEST_RETRY_S = 60

WaitsFor = Literal["place", "load"]


@dataclass(frozen=True, slots=True)
class LineView:
    """One model's line, for status. `ceiling` is per neuron, None if there is none; `leases` are out on all of them.

    `oldest_s` is how long the longest of those who wait for a place has waited, in seconds.
    """

    model: str
    ceiling: int | None
    leases: int
    waiting_for_place: int
    waiting_for_load: int
    oldest_s: float


class Admission:
    """All lines of one gateway.

    Args:
        fleet: Says what has changed, and holds the leases.
        catalogue: For the ceilings.
        limit: So many requests may wait for a place at a time, over all models.
    """

    def __init__(self, fleet: Fleet, *, catalogue: CatalogueSource, limit: int) -> None:
        self.fleet = fleet
        self._catalogue = catalogue
        self._limit = limit
        self._lines: dict[str, _Line] = {}  # a line is there as long as somebody stands in it
        self._admitted_at: deque[float] = deque(maxlen=16)
        fleet.replica_observers.append(self._replicas_changed)
        fleet.return_observers.append(self._lease_returned)

    @property
    def waiting(self) -> int:
        """How many requests wait for a place now."""
        return sum(len(line.waiting_for_slot) for line in self._lines.values())

    @property
    def catalogue(self) -> Catalogue:
        """The one in force."""
        return self._catalogue.current

    def ceiling(self, model: str) -> int | None:
        """How many requests for the model one neuron is given at a time; None is as many as come."""
        profile = self._catalogue.current.models.get(model)
        return None if profile is None else profile.max_concurrent

    def turn(self, model: str, since: float) -> QueueTicket:
        """A request's turn at a model. Turns are in the order of `since` (Trio's clock, s), when the request came."""
        return QueueTicket(self, model, since)

    def look_again(self) -> None:
        """Everybody who waits decides anew: there is a new catalogue, perhaps with other ceilings."""
        for line in self._lines.values():
            line.wake_all()

    def lines(self) -> list[LineView]:
        """Every line that somebody stands in, by model."""
        return [self._view(model, line) for model, line in sorted(self._lines.items())]

    def _view(self, model: str, line: _Line) -> LineView:
        now = trio.current_time()
        return LineView(
            model,
            self.ceiling(model),
            sum(held.leases for name in self._names(model) for held in self.fleet.holders(name)),
            len(line.waiting_for_slot),
            len(line.turns) - len(line.waiting_for_slot),
            max((now - turn.waiting_since for turn in line.waiting_for_slot), default=0.0),
        )

    def _names(self, model: str) -> set[str]:
        """What neurons call it: its id, and what it is called once it was loaded from its source."""
        profile = self._catalogue.current.models.get(model)
        return {model} if profile is None else {model, neuron_model_id(profile)}

    # What happens .....................................................................................................

    def _replicas_changed(self, name: str) -> None:
        for model, line in self._lines.items():
            if name in self._names(model):
                line.wake_all()

    def _lease_returned(self, name: str) -> None:
        for model, line in self._lines.items():
            if name in self._names(model):
                line.wake_first()

    # Kept by the turns ................................................................................................

    def is_anybody_ahead(self, turn: QueueTicket, node: str) -> bool:
        """Whether somebody who came before `turn` could take a place at `node`."""
        line = self._lines.get(turn.model)
        return line is not None and any(ahead.could_take(node) for ahead in line.before(turn))

    def join(self, turn: QueueTicket) -> _Line:
        """Put a turn where it belongs in its model's line."""
        line = self._lines.setdefault(turn.model, _Line())
        line.turns.insert(line.rank(turn), turn)
        return line

    def leave(self, turn: QueueTicket, line: _Line) -> None:
        """Take a turn out of its line; who is next looks again."""
        line.turns.remove(turn)
        if line.turns:
            line.wake_first()
        else:
            del self._lines[turn.model]

    def refuse_if_full(self, turn: QueueTicket) -> None:
        """Raise Overloaded if nobody more may wait for a place."""
        waiting = self.waiting
        if waiting < self._limit:
            return
        line = self._lines.get(turn.model)
        same = 0 if line is None else len(line.waiting_for_slot)
        told = f"{waiting} requests wait for a place at a neuron, {same} of them for '{turn.model}', and no more may"
        raise Overloaded(told, retry_after_s=self._retry_after_s())

    def note_admission(self) -> None:
        """Somebody's wait has come to a good end."""
        self._admitted_at.append(trio.current_time())

    def _retry_after_s(self) -> int:
        """When a place in line will be free, by how often one was lately."""
        if not self._admitted_at:
            return 1
        interval_s = (trio.current_time() - self._admitted_at[0]) / len(self._admitted_at)
        return min(max(ceil(interval_s), 1), LONGEST_RETRY_S)


class _Line:
    """Those who wait for one model, in order; some for a place, some for it to be loaded first."""

    __slots__ = ("turns", "waiting_for_slot")

    def __init__(self) -> None:
        self.turns: list[QueueTicket] = []
        self.waiting_for_slot: set[QueueTicket] = set()

    def rank(self, turn: QueueTicket) -> int:
        """Where a turn belongs that is not in the line: behind all who came before it or with it."""
        return bisect_right(self.turns, turn.since, key=lambda other: other.since)

    def before(self, turn: QueueTicket) -> Iterator[QueueTicket]:
        return islice(self.turns, self.turns.index(turn) if turn.is_in_line else self.rank(turn))

    def behind(self, turn: QueueTicket) -> Iterator[QueueTicket]:
        return islice(self.turns, self.turns.index(turn) + 1, None)

    def wake_all(self) -> None:
        for turn in self.turns:
            turn.wake()

    def wake_first(self) -> None:
        """The first who waits for a place; when it goes or stays, it sees to the next."""
        if self.waiting_for_slot:  # a line that waits for a load may be long, and leaves one by one
            _wake_first(self.turns)

    @contextmanager
    def waiting_for_place(self, turn: QueueTicket) -> Iterator[None]:
        self.waiting_for_slot.add(turn)
        try:
            yield
        finally:
            self.waiting_for_slot.discard(turn)


class QueueTicket:
    """One request's turn at one model. `with` it around the wait, and leaving that wakes whoever is next.

    `avoids` are the nodes that this request will not go to because they have failed it: nobody need wait behind it for
    a place there. Owned by its request; none of it is for two tasks.
    """

    __slots__ = (
        "_admission",
        "_is_entitled",
        "_is_woken",
        "_line",
        "_scope",
        "avoids",
        "model",
        "since",
        "waiting_since",
        "waits_for",
    )

    def __init__(self, admission: Admission, model: str, since: float) -> None:
        self._admission = admission
        self._line: _Line | None = None
        self._scope: trio.CancelScope | None = None
        self._is_woken = False
        self._is_entitled = False
        self.model = model
        self.since = since
        self.avoids: frozenset[str] = frozenset()
        self.waits_for: WaitsFor | None = None
        self.waiting_since = 0.0

    @property
    def is_in_line(self) -> bool:
        """Whether it is waiting."""
        return self._line is not None

    @property
    def position(self) -> int | None:
        """1 for whoever is first; None outside the line."""
        return None if self._line is None else self._line.turns.index(self) + 1

    def choose(self, catalogue: Catalogue, exclude: Collection[str] = ()) -> Decision:
        """`routing.choose` under the model's ceiling, and only if it is this request's turn. Raises the same.

        A request keeps the name that it resolved by `catalogue`; where that goes, and who makes room for it, is decided
        by the one in force, unless that has lost the model. Else a wait that began under other residency classes would
        go by them for as long as it lasts, while whoever loads goes by today's.

        Synchronous: whoever is given a route takes the lease before the next checkpoint.
        """
        admission = self._admission
        ceiling = admission.ceiling(self.model)
        in_force = admission.catalogue
        if self.model in in_force.models or self.model not in catalogue.models:
            catalogue = in_force
        decision = choose(self.model, admission.fleet, catalogue, exclude=exclude, ceiling=ceiling)
        # With room for everybody, order is nobody's gain.
        if ceiling is not None and isinstance(decision, Route) and admission.is_anybody_ahead(self, decision.node):
            return WaitForPlace(self.model)
        return decision

    def could_take(self, node: str) -> bool:
        """Whether it will look for a place soon, or waits for one, and might take one at `node`."""
        return (self.waits_for != "load" or self._is_woken) and node not in self.avoids

    def entitle(self) -> None:
        """The request has been let through before: it is not turned away should it have to wait again."""
        self._is_entitled = True

    def __enter__(self) -> Self:
        if self._line is not None:
            raise RuntimeError("already in line")
        self.waiting_since = trio.current_time()
        self._line = self._admission.join(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        line, self._line = self._line, None
        if line is None:
            raise RuntimeError("left without having been entered")
        self._admission.leave(self, line)
        if kind is None:
            self._admission.note_admission()

    async def wait_for_place(self) -> None:
        """Return when it is worth choosing again; whoever calls has chosen since the last checkpoint.

        Raises:
            Overloaded: As many wait as may, and this request has not waited before.
        """
        if self._line is None:
            raise RuntimeError("a turn is waited for in line")
        if not self._is_entitled:
            self._admission.refuse_if_full(self)
        with self._line.waiting_for_place(self):
            await self._wait("place", _a_moment)
        if self.avoids and self._is_woken:
            # It may have been woken for a place that it avoids, or that it will not take: the one behind it looks too.
            _wake_first(self._line.behind(self))

    async def wait_for_load(self, until_news: Callable[[], Awaitable[None]]) -> None:
        """The same while the model is not loaded: until `until_news` returns, or the model is there without it."""
        await self._wait("load", until_news)

    async def _wait(self, what: WaitsFor, until_news: Callable[[], Awaitable[None]]) -> None:
        self.entitle()
        self.waits_for = what
        self._is_woken = False
        try:
            with trio.CancelScope() as self._scope:
                await until_news()
        finally:
            self._scope = None
            self.waits_for = None

    def wake(self) -> None:
        """It is worth looking again."""
        self._is_woken = True
        if self._scope is not None:
            self._scope.cancel()


async def _a_moment() -> None:
    await trio.sleep(RECHECK_S)


def _wake_first(turns: Iterable[QueueTicket]) -> None:
    for turn in turns:
        if turn.waits_for == "place":
            turn.wake()
            return
