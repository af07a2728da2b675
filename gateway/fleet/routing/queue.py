"""The limit on a model's concurrent requests (`max_concurrent`), and the queue of requests over it. No I/O.

    every slot is taken, or a request waits for it ---> the request's ticket joins the model's queue
    a lease ends, or a ticket leaves the queue -------> the first ticket that waits for a slot chooses again
    the replicas or the catalogue change -------------> every ticket chooses again

Which ticket is first is decided by `fair_queue.py`. A slot is a lease of the fleet, so nothing is counted or given back
here. A request that is woken chooses again, takes its lease and leaves the queue in one synchronous step: no slot is
lost in between. A ticket that finds another one before it wakes that one. A request that waits for its model to be
loaded waits in the same queue, so the order holds after a load too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from math import ceil
from types import TracebackType
from typing import Literal, Self

import msgspec
import trio

from catalogue.models import Catalogue
from catalogue.source import CatalogueSource
from gateway.errors import Overloaded
from gateway.fleet.model_names import holders_of, names_on_neurons, replicas_of
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import Decision, WaitForSlot, choose
from gateway.fleet.routing.decision_log import NotedDecision, route_to_one_of
from gateway.fleet.routing.fair_queue import NO_KEY, FairQueue, Priority, QueuedKey, SlotUse
from gateway.fleet.routing.queue_room import QueueRoom
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
    wait for a slot so far, in seconds. `waiting_batch` are those of `waiting_for_slot` with the priority `batch`.
    """

    model: str
    max_concurrent: int | None
    leases: int
    waiting_for_slot: int
    waiting_for_load: int
    oldest_s: float
    waiting_batch: int = 0


class AdmissionQueues:
    """The queues of all models of one gateway.

    Args:
        fleet: Reports changes of replicas and the end of leases.
        catalogue: Gives each model's `max_concurrent`.
        limit: At most this many requests wait for a slot at a time, over all models.

    Attributes:
        fleet: The same.
        room: The requests that wait for a slot, by key.
    """

    def __init__(self, fleet: Fleet, *, catalogue: CatalogueSource, limit: int) -> None:
        self.fleet = fleet
        self._catalogue = catalogue
        self.room = QueueRoom(limit)
        self._queues: dict[str, _ModelQueue] = {}  # no empty ones
        self._admitted_at: deque[float] = deque(maxlen=16)
        fleet.replica_observers.append(self._replicas_changed)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot now."""
        return self.room.waiting

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue in force."""
        return self._catalogue.current

    def max_concurrent(self, model: str) -> int | None:
        """How many requests for the model one neuron gets at a time; None for no limit."""
        profile = self._catalogue.current.models.get(model)
        return None if profile is None else profile.max_concurrent

    def ticket(self, model: str, since: float, key: QueuedKey | None = None) -> QueueTicket:
        """A request's ticket for a model.

        Tickets of a key are ordered by `since`: when the request came (Trio's clock, s). `key` is None for a request
        without one; these share one place in the order of keys.
        """
        return QueueTicket(self, model, since, key or NO_KEY)

    def plain_route(self, model: str, catalogue: Catalogue, notes: list[NotedDecision], now: float) -> Route | None:
        """As `QueueTicket.choose` and `note_decision` in the common case: every replica is well and has no limit.

        Such a request needs no ticket. None if anything stands in the way of a replica. `notes` are the request's,
        `now` is Trio's time.
        """
        in_force = self._catalogue.current
        profile = in_force.models.get(model)
        if (model in catalogue.models) if profile is None else (profile.max_concurrent is not None):
            return None
        fleet, by_id = self.fleet, profile is None or profile.source is None
        replicas = fleet.replicas(model) if by_id else replicas_of(model, fleet, in_force)
        if len(replicas) == 1:
            return None if replicas[0].troubled else replicas[0].route
        return route_to_one_of(model, replicas, notes, now)

    def wake_all(self) -> None:
        """Have every waiting request choose again. For a new catalogue, whose limits may differ."""
        for queue in self._queues.values():
            queue.wake_all()

    def views(self) -> list[QueueView]:
        """Every queue that is not empty, by model."""
        return [self._view(model, queue) for model, queue in sorted(self._queues.items())]

    def waiting_counts(self) -> dict[tuple[str, str], int]:
        """How many requests wait for a slot, by model and priority; without empty queues."""
        counts = {}
        for view in self.views():
            counts[view.model, "interactive"] = view.waiting_for_slot - view.waiting_batch
            if view.waiting_batch:
                counts[view.model, "batch"] = view.waiting_batch
        return counts

    def _view(self, model: str, queue: _ModelQueue) -> QueueView:
        now = trio.current_time()
        return QueueView(
            model,
            self.max_concurrent(model),
            sum(replica.leases for replica in holders_of(model, self.fleet, self.catalogue)),
            len(queue.waiting_for_slot),
            len(queue) - len(queue.waiting_for_slot),
            max((now - ticket.waiting_since for ticket in queue.waiting_for_slot), default=0.0),
            sum(ticket.key.priority == "batch" for ticket in queue.waiting_for_slot),
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

    def ticket_ahead(self, ticket: QueueTicket, node: str) -> QueueTicket | None:
        """The waiting request that gets a slot at `node` before this one, if there is any.

        A request that has not joined the queue yet is behind all that wait.
        """
        queue = self._queues.get(ticket.model)
        first = None if queue is None else queue.first(lambda waiting: waiting.could_take(node))
        return None if first is ticket else first

    def join(self, ticket: QueueTicket) -> _ModelQueue:
        """Put a ticket into its model's queue."""
        if not self._queues:
            self.fleet.return_observers.append(self._lease_returned)
        queue = self._queues.setdefault(ticket.model, _ModelQueue())
        queue.join(ticket)
        return queue

    def leave(self, ticket: QueueTicket, queue: _ModelQueue, *, wake_next: bool) -> None:
        """Take a ticket out of its queue; with `wake_next` the next one chooses again."""
        queue.leave(ticket)
        if not queue:
            del self._queues[ticket.model]
            if not self._queues:
                self.fleet.return_observers.remove(self._lease_returned)
        elif wake_next:
            queue.wake_first()

    def make_room(self, ticket: QueueTicket) -> None:
        """Raise Overloaded if the limit of waiting requests is reached and no other request has to give way."""
        if self.room.waiting < self.room.limit:
            return
        longest = self.room.longest_beside(ticket.key)
        candidates = (
            waiting
            for queue in self._queues.values()
            for waiting in queue.waiting_for_slot
            if waiting.key.id == longest and not waiting.was_admitted
        )
        newest = None if longest is None else max(candidates, key=lambda waiting: waiting.since, default=None)
        if newest is None:
            raise self._is_full(ticket)
        newest.refuse(self._is_full(newest))

    def _is_full(self, ticket: QueueTicket) -> Overloaded:
        queue = self._queues.get(ticket.model)
        same_model = 0 if queue is None else len(queue.waiting_for_slot)
        return Overloaded(
            f"the queue is full: {self.room.waiting} requests wait for a neuron, {same_model} of them for"
            f" '{ticket.model}' (limits.queue = {self.room.limit})",
            retry_after_s=self._retry_after_s(ticket.key),
        )

    def note_admission(self) -> None:
        """A waiting request was admitted."""
        self._admitted_at.append(trio.current_time())

    def _retry_after_s(self, key: QueuedKey) -> int:
        """When a request of the key leaves: the mean interval between admissions, over the key's share of them."""
        if not self._admitted_at:
            return 1
        interval_s = (trio.current_time() - self._admitted_at[0]) / len(self._admitted_at)
        return min(max(ceil(interval_s / self.room.share(key)), 1), LONGEST_RETRY_S)


class _ModelQueue(FairQueue["QueueTicket"]):
    """The waiting requests of one model; some wait for a slot, others for a load."""

    __slots__ = ("waiting_for_slot",)

    def __init__(self) -> None:
        super().__init__()
        self.waiting_for_slot: set[QueueTicket] = set()

    def wake_all(self) -> None:
        for ticket in self:
            ticket.wake()

    def wake_first(self) -> None:
        """Wake the first ticket that waits for a slot. When it leaves or waits on, it wakes the next."""
        if self.waiting_for_slot:  # spares a long queue for a load the search; its tickets leave one by one
            first = self.first(_waits_for_slot)
            if first is not None:
                first.wake()

    def wake_behind(self, ticket: QueueTicket) -> None:
        """Wake the first ticket behind this one that waits for a slot."""
        order = self.order()
        behind = next(filter(_waits_for_slot, order[order.index(ticket) + 1 :]), None)
        if behind is not None:
            behind.wake()


class QueueTicket:
    """One request's ticket for one model. `with` it around the wait; leaving wakes the next ticket.

    Owned by its request; not for use by two tasks. Most requests need none: see `AdmissionQueues.plain_route`.

    Attributes:
        model: The concrete id.
        since: When the request came.
        key: Whose request it is.
        avoided_nodes: These failed this request and do not get it again, so tickets behind it need not wait for a slot
            there.
        waits_for: What it waits for now.
        waiting_since: When it last joined the queue.
        was_admitted: It had a slot before, so it is not refused if it has to wait again.
        slot: The slot that it waited for and got: `end` it with the request. None for a request that never waited.
    """

    __slots__ = (
        "_has_waited",
        "_is_woken",
        "_queue",
        "_queues",
        "_refusal",
        "_scope",
        "avoided_nodes",
        "key",
        "model",
        "since",
        "slot",
        "waiting_since",
        "waits_for",
        "was_admitted",
    )

    def __init__(self, queues: AdmissionQueues, model: str, since: float, key: QueuedKey) -> None:
        self._queues = queues
        self._queue: _ModelQueue | None = None
        self._scope: trio.CancelScope | None = None
        self._is_woken = False
        self._refusal: Overloaded | None = None
        self._has_waited = False
        self.model = model
        self.since = since
        self.key = key
        self.was_admitted = False
        self.slot: SlotUse | None = None
        self.avoided_nodes: frozenset[str] = frozenset()
        self.waits_for: WaitsFor | None = None
        self.waiting_since = 0.0

    @property
    def is_in_queue(self) -> bool:
        """Whether its request is waiting."""
        return self._queue is not None

    @property
    def position(self) -> int | None:
        """How many requests get a slot before it, plus 1, if none joins the queue; None outside the queue."""
        return None if self._queue is None else self._queue.order().index(self) + 1

    @property
    def priority(self) -> Priority:
        """Its key's."""
        return self.key.priority

    def choose(self, catalogue: Catalogue, exclude: Collection[str] = ()) -> Decision:
        """`choose` under the model's limit, and WaitForSlot while a request before this one could take the slot.

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
        if limit is not None and isinstance(decision, Route):
            ahead = queues.ticket_ahead(self, decision.node)
            if ahead is not None:
                ahead.wake()  # it may not have heard of the slot
                return WaitForSlot(self.model)
        return decision

    def could_take(self, node: str) -> bool:
        """Whether it waits for a slot, or is about to choose one, and does not avoid `node`."""
        if self._refusal is not None or node in self.avoided_nodes:
            return False
        return self.waits_for != "load" or self._is_woken

    def __enter__(self) -> Self:
        if self._queue is not None:
            raise RuntimeError("this ticket is in a queue already")
        if self.slot is not None:
            self.end_slot()
        self.waiting_since = trio.current_time()
        self._queue = self._queues.join(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        queue, self._queue = self._queue, None
        if queue is None:
            raise RuntimeError("this ticket is in no queue")
        if kind is None:
            self.slot = queue.admit(self)
            self._queues.note_admission()
        # A ticket that leaves without a slot, and was not woken for one, leaves none to others.
        self._queues.leave(self, queue, wake_next=kind is None or self._is_woken)

    def end_slot(self) -> None:
        """The request is done with the slot that it waited for."""
        if self.slot is not None:
            self.slot.end()
            self.slot = None

    async def wait_for_slot(self) -> None:
        """Wait until choosing again may help. The caller has chosen since the last checkpoint.

        Raises:
            Overloaded: The queue is full, and this request has not waited before; or another one needs its place.
        """
        if self._queue is None:
            raise RuntimeError("enter the ticket before waiting")
        if not self._has_waited and not self.was_admitted:
            self._queues.make_room(self)
        with self._counted_as_waiting(self._queue):
            await self._wait("place", _recheck_interval)
        if self._refusal is not None:
            raise self._refusal
        if self.avoided_nodes and self._is_woken:
            # The slot may be at a node that this request avoids, so the ticket behind it has to look too.
            self._queue.wake_behind(self)

    @contextmanager
    def _counted_as_waiting(self, queue: _ModelQueue) -> Iterator[None]:
        queue.waiting_for_slot.add(self)
        self._queues.room.add(self.key)
        try:
            yield
        finally:
            self._no_longer_waits(queue)

    def _no_longer_waits(self, queue: _ModelQueue) -> None:
        if self in queue.waiting_for_slot:
            queue.waiting_for_slot.remove(self)
            self._queues.room.remove(self.key)

    def refuse(self, error: Overloaded) -> None:
        """End the wait for a slot with an error. It counts no longer from now on."""
        if self._queue is not None:
            self._no_longer_waits(self._queue)
        self._refusal = error
        self.wake()

    async def wait_for_load(self, until_news: Callable[[], Awaitable[None]]) -> None:
        """Wait while the model is loaded: until `until_news` returns or the replicas of the model change."""
        await self._wait("load", until_news)

    async def _wait(self, what: WaitsFor, until_news: Callable[[], Awaitable[None]]) -> None:
        self._has_waited = True
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


def _waits_for_slot(ticket: QueueTicket) -> bool:
    return ticket.waits_for == "place"
