"""The limit on a model's concurrent requests (`max_concurrent`), and the queue of requests over it. No I/O.

    every slot is taken, or an older request waits ---> the request's ticket joins the model's queue
    a lease ends, or a ticket leaves the queue -------> the first ticket that waits for a slot chooses again
    the replicas or the catalogue change -------------> every ticket chooses again

A slot is a lease of the fleet, so nothing is counted or given back here. A request that is woken chooses again, takes
its lease and leaves the queue in one synchronous step: no slot is lost in between, and no later request overtakes it.
A request that waits for its model to be loaded waits in the same queue, so the order of arrival holds after a load too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from math import ceil
from types import TracebackType
from typing import Literal, Self

import msgspec
import trio

from catalogue.models import Catalogue
from catalogue.source import CatalogueSource
from gateway.errors import Overloaded
from gateway.fleet.model_names import holders_of, names_on_neurons
from gateway.fleet.routing.choose import Decision, Route, WaitForSlot, choose
from gateway.fleet.state import Fleet

__all__ = ["AdmissionQueues", "QueueTicket", "QueueView"]

# Time alone can make a slot usable: a circuit breaker cools down, a Retry-After passes. No event reports that, so a
# waiting request also chooses again after this time. Choosing costs ten microseconds.
RECHECK_S = 1.0
LONGEST_RETRY_S = 60

WaitsFor = Literal["place", "load"]


class QueueView(
    msgspec.Struct, frozen=True, rename={"max_concurrent": "ceiling", "waiting_for_slot": "waiting_for_place"}
):
    """One model's queue, for the admin API.

    `max_concurrent` is per neuron, None for no limit. `leases` counts those on all neurons. `oldest_s` is the longest
    wait for a slot so far, in seconds.
    """

    model: str
    max_concurrent: int | None
    leases: int
    waiting_for_slot: int
    waiting_for_load: int
    oldest_s: float


class AdmissionQueues:
    """The queues of all models of one gateway.

    Args:
        fleet: Reports changes of replicas and the end of leases.
        catalogue: Gives each model's `max_concurrent`.
        limit: At most this many requests wait for a slot at a time, over all models.
    """

    def __init__(self, fleet: Fleet, *, catalogue: CatalogueSource, limit: int) -> None:
        self.fleet = fleet
        self._catalogue = catalogue
        self._limit = limit
        self._queues: dict[str, _ModelQueue] = {}  # no empty ones
        self._admitted_at: deque[float] = deque(maxlen=16)
        fleet.replica_observers.append(self._replicas_changed)
        fleet.return_observers.append(self._lease_returned)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot now."""
        return sum(len(queue.waiting_for_slot) for queue in self._queues.values())

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue in force."""
        return self._catalogue.current

    def max_concurrent(self, model: str) -> int | None:
        """How many requests for the model one neuron gets at a time; None for no limit."""
        profile = self._catalogue.current.models.get(model)
        return None if profile is None else profile.max_concurrent

    def ticket(self, model: str, since: float) -> QueueTicket:
        """A request's ticket for a model. Tickets are ordered by `since`: when the request came (Trio's clock, s)."""
        return QueueTicket(self, model, since)

    def wake_all(self) -> None:
        """Have every waiting request choose again. For a new catalogue, whose limits may differ."""
        for queue in self._queues.values():
            queue.wake_all()

    def views(self) -> list[QueueView]:
        """Every queue that is not empty, by model."""
        return [self._view(model, queue) for model, queue in sorted(self._queues.items())]

    def _view(self, model: str, queue: _ModelQueue) -> QueueView:
        now = trio.current_time()
        return QueueView(
            model,
            self.max_concurrent(model),
            sum(replica.leases for replica in holders_of(model, self.fleet, self.catalogue)),
            len(queue.waiting_for_slot),
            len(queue.tickets) - len(queue.waiting_for_slot),
            max((now - ticket.waiting_since for ticket in queue.waiting_for_slot), default=0.0),
        )

    # Events of the fleet ..............................................................................................

    def _replicas_changed(self, name: str) -> None:
        for model, queue in self._queues.items():
            if name in names_on_neurons(model, self.catalogue):
                queue.wake_all()

    def _lease_returned(self, name: str) -> None:
        for model, queue in self._queues.items():
            if name in names_on_neurons(model, self.catalogue):
                queue.wake_first()

    # Called by the tickets ............................................................................................

    def has_ticket_ahead(self, ticket: QueueTicket, node: str) -> bool:
        """Whether an older request for the model could take a slot at `node`."""
        queue = self._queues.get(ticket.model)
        return queue is not None and any(ahead.could_take(node) for ahead in queue.before(ticket))

    def join(self, ticket: QueueTicket) -> _ModelQueue:
        """Put a ticket into its model's queue, in the order of arrival."""
        queue = self._queues.setdefault(ticket.model, _ModelQueue())
        queue.tickets.insert(queue.rank(ticket), ticket)
        return queue

    def leave(self, ticket: QueueTicket, queue: _ModelQueue) -> None:
        """Take a ticket out of its queue; the next one chooses again."""
        queue.tickets.remove(ticket)
        if queue.tickets:
            queue.wake_first()
        else:
            del self._queues[ticket.model]

    def refuse_if_full(self, ticket: QueueTicket) -> None:
        """Raise Overloaded if the limit of waiting requests is reached."""
        waiting = self.waiting
        if waiting < self._limit:
            return
        queue = self._queues.get(ticket.model)
        same_model = 0 if queue is None else len(queue.waiting_for_slot)
        raise Overloaded(
            f"the queue is full: {waiting} requests wait for a neuron, {same_model} of them for '{ticket.model}'"
            f" (limits.queue = {self._limit})",
            retry_after_s=self._retry_after_s(),
        )

    def note_admission(self) -> None:
        """A waiting request was admitted."""
        self._admitted_at.append(trio.current_time())

    def _retry_after_s(self) -> int:
        """When the queue will have room, from the mean interval between the last admissions."""
        if not self._admitted_at:
            return 1
        interval_s = (trio.current_time() - self._admitted_at[0]) / len(self._admitted_at)
        return min(max(ceil(interval_s), 1), LONGEST_RETRY_S)


class _ModelQueue:
    """The waiting requests of one model, oldest first; some wait for a slot, others for a load."""

    __slots__ = ("tickets", "waiting_for_slot")

    def __init__(self) -> None:
        self.tickets: list[QueueTicket] = []
        self.waiting_for_slot: set[QueueTicket] = set()

    def rank(self, ticket: QueueTicket) -> int:
        """The index at which a ticket joins: behind every ticket that is as old or older."""
        return bisect_right(self.tickets, ticket.since, key=lambda other: other.since)

    def before(self, ticket: QueueTicket) -> Iterator[QueueTicket]:
        return islice(self.tickets, self.tickets.index(ticket) if ticket.is_in_queue else self.rank(ticket))

    def behind(self, ticket: QueueTicket) -> Iterator[QueueTicket]:
        return islice(self.tickets, self.tickets.index(ticket) + 1, None)

    def wake_all(self) -> None:
        for ticket in self.tickets:
            ticket.wake()

    def wake_first(self) -> None:
        """Wake the first ticket that waits for a slot. When it leaves or waits on, it wakes the next."""
        if self.waiting_for_slot:  # spares a long queue for a load the search; its tickets leave one by one
            _wake_first(self.tickets)

    @contextmanager
    def waits_for_slot(self, ticket: QueueTicket) -> Iterator[None]:
        self.waiting_for_slot.add(ticket)
        try:
            yield
        finally:
            self.waiting_for_slot.discard(ticket)


class QueueTicket:
    """One request's ticket for one model. `with` it around the wait; leaving wakes the next ticket.

    `avoided_nodes` failed this request and do not get it again, so tickets behind it need not wait for a slot there.
    Owned by its request; not for use by two tasks.
    """

    __slots__ = (
        "_is_exempt_from_limit",
        "_is_woken",
        "_queue",
        "_queues",
        "_scope",
        "avoided_nodes",
        "model",
        "since",
        "waiting_since",
        "waits_for",
    )

    def __init__(self, queues: AdmissionQueues, model: str, since: float) -> None:
        self._queues = queues
        self._queue: _ModelQueue | None = None
        self._scope: trio.CancelScope | None = None
        self._is_woken = False
        self._is_exempt_from_limit = False
        self.model = model
        self.since = since
        self.avoided_nodes: frozenset[str] = frozenset()
        self.waits_for: WaitsFor | None = None
        self.waiting_since = 0.0

    @property
    def is_in_queue(self) -> bool:
        """Whether its request is waiting."""
        return self._queue is not None

    @property
    def position(self) -> int | None:
        """Its position in the queue, from 1; None outside the queue."""
        return None if self._queue is None else self._queue.tickets.index(self) + 1

    def choose(self, catalogue: Catalogue, exclude: Collection[str] = ()) -> Decision:
        """`choose` under the model's limit, and WaitForSlot while an older request could take the slot.

        A request keeps the model that it resolved by `catalogue`. Where that model runs, and which models it may
        displace, is decided by the catalogue in force: loads are decided by it too, and a long wait must not go by
        priorities that no longer hold. Only if the catalogue in force has lost the model, `catalogue` decides.

        Synchronous: take the lease of a returned route before the next checkpoint.

        Raises:
            GatewayError: As `choose`.
        """
        queues = self._queues
        limit = queues.max_concurrent(self.model)
        in_force = queues.catalogue
        if self.model in in_force.models or self.model not in catalogue.models:
            catalogue = in_force
        decision = choose(self.model, queues.fleet, catalogue, exclude=exclude, max_concurrent=limit)
        # Without a limit there is a slot for every request, so the order does not matter.
        if limit is not None and isinstance(decision, Route) and queues.has_ticket_ahead(self, decision.node):
            return WaitForSlot(self.model)
        return decision

    def could_take(self, node: str) -> bool:
        """Whether it waits for a slot, or is about to choose one, and does not avoid `node`."""
        return (self.waits_for != "load" or self._is_woken) and node not in self.avoided_nodes

    def exempt_from_limit(self) -> None:
        """The request has been admitted once: it is not refused if it has to wait again."""
        self._is_exempt_from_limit = True

    def __enter__(self) -> Self:
        if self._queue is not None:
            raise RuntimeError("this ticket is in a queue already")
        self.waiting_since = trio.current_time()
        self._queue = self._queues.join(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        queue, self._queue = self._queue, None
        if queue is None:
            raise RuntimeError("this ticket is in no queue")
        self._queues.leave(self, queue)
        if kind is None:
            self._queues.note_admission()

    async def wait_for_slot(self) -> None:
        """Wait until choosing again may help. The caller has chosen since the last checkpoint.

        Raises:
            Overloaded: The queue is full, and this request has not waited before.
        """
        if self._queue is None:
            raise RuntimeError("enter the ticket before waiting")
        if not self._is_exempt_from_limit:
            self._queues.refuse_if_full(self)
        with self._queue.waits_for_slot(self):
            await self._wait("place", _recheck_interval)
        if self.avoided_nodes and self._is_woken:
            # The slot may be at a node that this request avoids, so the ticket behind it has to look too.
            _wake_first(self._queue.behind(self))

    async def wait_for_load(self, until_news: Callable[[], Awaitable[None]]) -> None:
        """Wait while the model is loaded: until `until_news` returns or the replicas of the model change."""
        await self._wait("load", until_news)

    async def _wait(self, what: WaitsFor, until_news: Callable[[], Awaitable[None]]) -> None:
        self.exempt_from_limit()
        self.waits_for = what
        self._is_woken = False
        try:
            with trio.CancelScope() as self._scope:
                await until_news()
        finally:
            self._scope = None
            self.waits_for = None

    def wake(self) -> None:
        """End the wait: choosing again may help."""
        self._is_woken = True
        if self._scope is not None:
            self._scope.cancel()


async def _recheck_interval() -> None:
    await trio.sleep(RECHECK_S)


def _wake_first(tickets: Iterable[QueueTicket]) -> None:
    for ticket in tickets:
        if ticket.waits_for == "place":
            ticket.wake()
            return
