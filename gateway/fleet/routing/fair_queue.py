"""The order in which waiting requests get slots: by priority, then weighted fair queueing over keys. No I/O.

The waiting requests of one key are a flow, in the order of arrival. Each flow has a virtual time: the slot-seconds that
it got, divided by its weight. The next slot goes to the flow with the least (start-time fair queueing, as in Kubernetes
API Priority and Fairness). So keys that wait share the slots by weight, however many requests each of them sends.

- What a request takes is known when it ends. Until then its flow is charged the mean of its last requests.
- A flow that had nothing waiting starts at the virtual time of the flow served last: time without demand is no credit.
- Flows of the priority `interactive` go before those of `batch`, except for every `BATCH_TURN`th slot while both wait.

One `FairQueue` exists per model, while requests wait for it. Requests that did not have to wait are not charged.
"""

from __future__ import annotations

from bisect import insort_right
from collections.abc import Callable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import trio

__all__ = ["BATCH_TURN", "NO_KEY", "FairQueue", "Priority", "QueuedKey", "SlotUse"]

Priority = Literal["interactive", "batch"]

BATCH_TURN = 10  # of so many slots one goes to `batch` while `interactive` waits too
FIRST_ESTIMATE_S = 1.0  # what a slot is taken for to be used, before any request of the queue has ended
MEAN_OF_LAST = 8  # requests that the mean of a flow reaches back to, about


class QueuedKey(Protocol):
    """What the order depends on: the key of a request."""

    @property
    def id(self) -> str:
        """Requests with the same id share one flow."""

    @property
    def weight(self) -> int:
        """Its share, relative to that of other keys; above 0."""

    @property
    def priority(self) -> Priority:
        """Of all its requests."""


class _NoKey(NamedTuple):
    id: str = ""
    weight: int = 100
    priority: Priority = "interactive"


NO_KEY: QueuedKey = _NoKey()
"""For requests without a key: all of them are one flow."""


class Waiter(Protocol):
    """A waiting request. Times are Trio's clock in s."""

    @property
    def since(self) -> float:
        """When it came; the order within its flow."""

    @property
    def key(self) -> QueuedKey:
        """Whose request it is."""


W = TypeVar("W", bound=Waiter)


class SlotUse:
    """The slot that a request got from the queue; its flow has been charged for it by estimate."""

    __slots__ = ("_began_at", "_estimate_s", "_flow", "_queue", "_weight")

    def __init__(self, queue: FairQueue[W], flow: _Flow[W], estimate_s: float) -> None:
        self._queue = queue
        self._flow = flow
        self._estimate_s = estimate_s
        self._weight = flow.weight
        self._began_at = trio.current_time()

    def end(self) -> None:
        """The slot is free again: charge what it was used for. Call it once."""
        used_s = trio.current_time() - self._began_at
        self._flow.virtual_time += (used_s - self._estimate_s) / self._weight
        self._flow.mean_s = _mean(self._flow.mean_s, used_s)
        self._queue.mean_s = _mean(self._queue.mean_s, used_s)


class FairQueue(Generic[W]):
    """The waiting requests of one model.

    Attributes:
        mean_s: How long the last requests used a slot; None before one has ended.
    """

    __slots__ = ("_batch", "_interactive", "_order", "_turn", "mean_s")

    def __init__(self) -> None:
        self._interactive: _Level[W] = _Level()
        self._batch: _Level[W] = _Level()
        self._turn = 0  # how many slots `interactive` got in a row while `batch` waited
        self._order: list[W] | None = None  # computed when it is asked for
        self.mean_s: float | None = None

    def __len__(self) -> int:
        return sum(len(flow.waiters) for flow in self.flows())

    def __iter__(self) -> Iterator[W]:
        """The waiting requests, in no particular order."""
        return chain.from_iterable(flow.waiters for flow in self.flows())

    def __bool__(self) -> bool:
        return bool(self._interactive.waiting or self._batch.waiting)

    def flows(self) -> Iterator[_Flow[W]]:
        """Those with waiting requests."""
        return chain(self._interactive.waiting.values(), self._batch.waiting.values())

    def join(self, waiter: W) -> None:
        """Put a request behind those of its flow that came before it."""
        self._order = None
        key = waiter.key
        level = self._level(key.priority)
        flow = level.waiting.get(key.id)
        if flow is None:
            flow = level.flows.setdefault(key.id, _Flow())
            flow.virtual_time = max(flow.virtual_time, level.virtual_time)
            level.waiting[key.id] = flow
        flow.weight = key.weight
        insort_right(flow.waiters, waiter, key=_since)

    def leave(self, waiter: W) -> None:
        """Take a request out. Nothing remembers that it waited."""
        self._order = None
        level = self._level(waiter.key.priority)
        flow = level.waiting[waiter.key.id]
        flow.waiters.remove(waiter)
        if not flow.waiters:
            del level.waiting[waiter.key.id]
        if not self._batch.waiting:
            self._turn = 0

    def admit(self, waiter: W) -> SlotUse:
        """Charge a waiting request's flow for the slot that it gets now. The request is still to `leave`."""
        level = self._level(waiter.key.priority)
        if level is self._batch:
            self._turn = 0
        elif self._batch.waiting:
            self._turn += 1
        flow = level.waiting[waiter.key.id]
        level.virtual_time = max(level.virtual_time, flow.virtual_time)
        estimate_s = self._estimate_s(flow)
        flow.virtual_time += estimate_s / flow.weight
        return SlotUse(self, flow, estimate_s)

    def first(self, accepts: Callable[[W], bool]) -> W | None:
        """Of the requests that `accepts` agrees to, the one whose turn it is."""
        levels = self._interactive, self._batch
        for level in levels if self._turn < BATCH_TURN - 1 else reversed(levels):
            found = level.first(accepts)
            if found is not None:
                return found
        return None

    def order(self) -> list[W]:
        """All waiting requests, in the order in which they get slots if none joins and none leaves otherwise."""
        if self._order is None:
            self._order = self._expected_order()
        return self._order

    def _expected_order(self) -> list[W]:
        interactive, batch = self._level_order(self._interactive), self._level_order(self._batch)
        merged: list[W] = []
        for before, waiter in enumerate(batch):
            start = len(merged) - before
            upto = start + BATCH_TURN - 1 - (self._turn if before == 0 else 0)
            merged += interactive[start:upto]
            merged.append(waiter)
        return merged + interactive[len(merged) - len(batch) :]

    def _level_order(self, level: _Level[W]) -> list[W]:
        ranked = [
            ((flow.virtual_time + rank * self._estimate_s(flow) / flow.weight, waiter.since), waiter)
            for flow in level.waiting.values()
            for rank, waiter in enumerate(flow.waiters)
        ]
        return [waiter for _, waiter in sorted(ranked, key=itemgetter(0))]

    def _estimate_s(self, flow: _Flow[W]) -> float:
        return flow.mean_s or self.mean_s or FIRST_ESTIMATE_S

    def _level(self, priority: Priority) -> _Level[W]:
        return self._batch if priority == "batch" else self._interactive


class _Flow(Generic[W]):
    """The waiting requests of one key, the oldest first."""

    __slots__ = ("mean_s", "virtual_time", "waiters", "weight")

    def __init__(self) -> None:
        self.waiters: list[W] = []
        self.weight = 1
        self.virtual_time = 0.0
        self.mean_s: float | None = None


class _Level(Generic[W]):
    """The flows of one priority, by key. `waiting` has those with requests.

    The others are kept for what they have been charged, so that a key gains nothing by sending one request at a time.
    There are at most as many as keys, and they go with the queue.
    """

    __slots__ = ("flows", "virtual_time", "waiting")

    def __init__(self) -> None:
        self.flows: dict[str, _Flow[W]] = {}
        self.waiting: dict[str, _Flow[W]] = {}
        self.virtual_time = 0.0  # where the flow served last stood then

    def first(self, accepts: Callable[[W], bool]) -> W | None:
        best, best_rank = None, (0.0, 0.0)
        for flow in self.waiting.values():
            if best is not None and flow.virtual_time > best_rank[0]:
                continue
            found = next(filter(accepts, flow.waiters), None)
            if found is not None and (best is None or (flow.virtual_time, found.since) < best_rank):
                best, best_rank = found, (flow.virtual_time, found.since)
        return best


def _since(waiter: Waiter) -> float:
    return waiter.since


def _mean(mean_s: float | None, value_s: float) -> float:
    return value_s if mean_s is None else mean_s + (value_s - mean_s) / MEAN_OF_LAST
