"""Leases: a request's claim on a model on a node, from the routing decision to its end. No I/O.

A lease keeps the model from being evicted and counts towards `max_concurrent` and the node's load.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from types import TracebackType

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

    def take(self, node: Node, model_id: str, now: float | None = None) -> NodeModel:
        """One more lease, at `now` by the same clock."""
        model = node.models[model_id] if model_id in node.models else node.entry(model_id)
        now = self._clock() if now is None else now
        if model.leases:
            model.share(now)
        else:
            model.shared_at = now
        model.leases += 1
        model.last_used = now
        self.count += 1
        return model

    def begin_trials(self, model: NodeModel) -> tuple[CircuitBreaker, ...]:
        """The circuit breakers, of the model and of its node, of which the lease just taken is the trial."""
        now = self._clock()
        tried = tuple([breaker for breaker in (model.breaker, model.node.breaker) if breaker.begin_trial(now)])
        if tried:
            self._announce(FleetChange("breaker_tried", model.node.name, model.id))
        return tried

    def give_back(self, model: NodeModel, now: float | None = None) -> None:
        """One lease less, at `now` by the same clock."""
        now = self._clock() if now is None else now
        model.share(now)
        model.leases -= 1
        model.last_used = now
        self.count -= 1
        if model.leases == 0:
            if model.report is None:
                model.node.forget_if_unused(model)
            if self._waiters:
                self._waiters.unpark_all()
        for observe in self.return_observers:
            observe(model.id)


class Lease:
    """One lease: enter it in the same step as the routing decision. One `with` at a time.

    `phases` are those of the request, if it is sent under the lease: what the neuron sends for it shows that the neuron
    is alive. `gpu_use` gets what the lease takes of the devices. `now` is the time, if the caller knows it.
    """

    __slots__ = (
        "_counter", "_gpu_use", "_model", "_model_id", "_node", "_now", "_phases", "_share_j", "_share_s", "_trials",
    )  # fmt: skip

    def __init__(
        self,
        counter: LeaseCounter,
        node: Node,
        model_id: str,
        phases: PhaseDeadlines | None = None,
        gpu_use: GpuUse | None = None,
        *,
        now: float | None = None,
    ) -> None:
        self._counter = counter
        self._now = now
        self._node = node
        self._model_id = model_id
        self._phases = phases
        self._gpu_use = gpu_use
        self._model: NodeModel | None = None
        self._trials: tuple[CircuitBreaker, ...] = ()

    @property
    def received_at(self) -> float:
        """When the neuron last sent something for this request; Trio's clock in seconds, -inf for never."""
        return -inf if self._phases is None else self._phases.received_at

    def __enter__(self) -> None:
        if self._model is not None:
            raise RuntimeError("this lease is taken already")
        self._model = model = self._counter.take(self._node, self._model_id, self._now)
        self._share_s, self._share_j = model.share_s, model.share_j
        if self._phases is not None:
            self._phases.received_at = -inf  # they may be those of an earlier attempt, at another neuron
            self._node.running.add(self)
        if not (model.breaker.closed and model.node.breaker.closed):
            self._trials = self._counter.begin_trials(model)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        model, self._model = self._model, None
        self._node.running.discard(self)
        for breaker in self._trials:
            breaker.end_trial()
        self._trials = ()
        if model is not None:
            # After an answer no step has waited since the end of its exchange.
            self._counter.give_back(model, None if exc_type or not self._phases else self._phases.exchanged_at)
            if self._gpu_use is not None:
                self._gpu_use.add(model, model.share_s - self._share_s, model.share_j - self._share_j)
