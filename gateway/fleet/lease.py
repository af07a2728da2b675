"""Leases: a request's claim on a model on a node, from the routing decision to its end. No I/O.

A lease keeps the model from being evicted and counts towards `max_concurrent` and the node's load.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import trio

from gateway.fleet.changes import FleetChange
from gateway.fleet.node import Node, NodeModel

__all__ = ["Lease", "LeaseCounter"]


class LeaseCounter:
    """Takes and returns all leases of one fleet, synchronously.

    Args:
        clock: Seconds, monotonic.
        waiters: Woken when a model has become idle.
        announce: Called when a lease is the trial of an open circuit breaker.

    `return_observers` are called with the model's id on its node after each returned lease. They must not raise.
    """

    __slots__ = ("_announce", "_clock", "_waiters", "count", "return_observers")

    def __init__(
        self,
        clock: Callable[[], float],
        waiters: trio.lowlevel.ParkingLot,
        announce: Callable[[FleetChange], None],
    ) -> None:
        self._clock = clock
        self._waiters = waiters
        self._announce = announce
        self.count = 0
        self.return_observers: list[Callable[[str], None]] = []

    def take(self, node: Node, model_id: str) -> NodeModel:
        """One more lease."""
        model = node.models.get(model_id) or node.entry(model_id)
        model.leases += 1
        model.last_used = self._clock()
        self.count += 1
        return model

    def begin_trial(self, node: Node) -> bool:
        """Whether the lease just taken is the trial of the node's circuit breaker, which is not closed."""
        is_trial = node.breaker.begin_trial(self._clock())
        if is_trial:
            self._announce(FleetChange("breaker_tried", node.name))
        return is_trial

    def give_back(self, model: NodeModel) -> None:
        """One lease less."""
        model.leases -= 1
        model.last_used = self._clock()
        self.count -= 1
        if model.leases == 0:
            model.node.forget_if_unused(model)
            self._waiters.unpark_all()
        for observe in self.return_observers:
            observe(model.id)


class Lease:
    """One lease: enter it in the same step as the routing decision. One `with` at a time."""

    __slots__ = ("_counter", "_is_trial", "_model", "_model_id", "_node")

    def __init__(self, counter: LeaseCounter, node: Node, model_id: str) -> None:
        self._counter = counter
        self._node = node
        self._model_id = model_id
        self._model: NodeModel | None = None
        self._is_trial = False

    def __enter__(self) -> None:
        if self._model is not None:
            raise RuntimeError("this lease is taken already")
        self._model = self._counter.take(self._node, self._model_id)
        if not self._node.breaker.closed:
            self._is_trial = self._counter.begin_trial(self._node)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        model, self._model = self._model, None
        if self._is_trial:
            self._is_trial = False
            self._node.breaker.end_trial()
        if model is not None:
            self._counter.give_back(model)
