"""Leases: a request's claim on a model on a node, from the routing decision to its end. No I/O.

A lease keeps the model from being evicted and counts towards `max_concurrent` and the node's load.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from types import TracebackType

import msgspec
import trio

from gateway.fleet.changes import FleetChange
from gateway.fleet.circuit_breaker import CircuitBreaker
from gateway.fleet.node import Node, NodeModel
from gateway.http.phase_deadlines import PhaseDeadlines

__all__ = ["GpuUse", "Lease", "LeaseCounter"]


class GpuUse:
    """What the leases of one request take of the devices. Concurrent leases on a model share its devices evenly.

    Attributes:
        seconds: Time of the leases times the model's devices.
        joules: The energy of these devices meanwhile; None if a neuron reported no power draw.
    """

    __slots__ = ("joules", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.joules: float | None = 0.0

    def add(self, model: NodeModel, share_s: float, share_j: float) -> None:
        """A lease on `model` has ended."""
        self.seconds += share_s * model.device_count
        self.joules = None if self.joules is None or model.power_w is None else self.joules + share_j


class LeaseCounter:
    """What all leases of one fleet share.

    Args:
        clock: Seconds, monotonic.
        waiters: Woken when a model has become idle.
        announce: Called when a lease is the trial of an open circuit breaker.

    Attributes:
        count: The leases that are out now.
        return_observers: Called with the model's id on its node after each returned lease. They must not raise.
    """

    __slots__ = ("announce", "clock", "count", "return_observers", "waiters")

    def __init__(
        self,
        clock: Callable[[], float],
        waiters: trio.lowlevel.ParkingLot,
        announce: Callable[[FleetChange], None],
    ) -> None:
        self.clock = clock
        self.waiters = waiters
        self.announce = announce
        self.count = 0
        self.return_observers: list[Callable[[str], None]] = []


class Lease(msgspec.Struct, eq=False):
    """One lease: enter it in the same step as the routing decision. One `with` at a time.

    `phases` are those of the request, if it is sent under the lease: what the neuron sends for it shows that the neuron
    is alive. `gpu_use` gets what the lease takes of the devices. `now` is the time, if the caller knows it.

    One lease is one or two calls of each request, so it does by itself what could be methods of its model.
    """

    counter: LeaseCounter
    node: Node
    model_id: str
    phases: PhaseDeadlines | None = None
    gpu_use: GpuUse | None = None
    now: float | None = None
    model: NodeModel | None = None
    trials: tuple[CircuitBreaker, ...] = ()
    share_s: float = 0.0
    share_j: float = 0.0

    def __enter__(self) -> None:
        if self.model is not None:
            raise RuntimeError("this lease is taken already")
        counter, node, phases = self.counter, self.node, self.phases
        now = counter.clock() if self.now is None else self.now
        model = self.model = node.models.get(self.model_id) or node.entry(self.model_id)
        if model.leases:
            model.share(now)
        else:
            model.shared_at = now
        model.leases += 1
        model.last_used = now
        counter.count += 1
        self.share_s, self.share_j = model.share_s, model.share_j
        if phases is not None:
            phases.received_at = -inf  # they may be those of an earlier attempt, at another neuron
            node.running.add(phases)
        if not (model.breaker.closed and node.breaker.closed):
            self._begin_trials(model)

    def _begin_trials(self, model: NodeModel) -> None:
        now = self.counter.clock()
        breakers = (model.breaker, model.node.breaker)
        self.trials = tuple([breaker for breaker in breakers if breaker.begin_trial(now)])
        if self.trials:
            self.counter.announce(FleetChange("breaker_tried", model.node.name, model.id))

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        model, self.model = self.model, None
        if model is None:
            return
        counter, phases, now = self.counter, self.phases, None
        if phases is not None:
            self.node.running.discard(phases)
            # After an answer no step has waited since the end of its exchange.
            now = None if exc_type else phases.exchanged_at
        if self.trials:
            for breaker in self.trials:
                breaker.end_trial()
            self.trials = ()
        now = counter.clock() if now is None else now
        model.share(now)
        model.leases -= 1
        model.last_used = now
        counter.count -= 1
        if self.gpu_use is not None:
            self.gpu_use.add(model, model.share_s - self.share_s, model.share_j - self.share_j)
        if model.leases == 0:
            if model.report is None:
                model.node.forget_if_unused(model)
            if counter.waiters:
                counter.waiters.unpark_all()
        for observe in counter.return_observers:
            observe(model.id)
