"""Unloads, step by step: wait until no request is left in the model, call the neuron, tell the fleet.

Which models are unloaded is decided by `eviction.py`, or by an operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import structlog
import trio

from gateway.fleet.control.types import LoadingApi, NeuronError, NeuronRefused
from gateway.fleet.loading.load_history import LoadPostponed
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.state import Fleet

__all__ = ["Unloader"]

UNLOAD_DEADLINE_S = 60.0
QUIET_DEADLINE_S = 10.0  # for the neuron to end a request that has ended here already
ASK_INTERVAL_S = 0.05

log = structlog.get_logger("cortex.lifecycle")


class Unloader:
    """Unloads models in the caller's task.

    Args:
        fleet: Updated at every step.
        neurons: One control API per node, by name.
        count_eviction: Called with model and node after each unload.
        defrag_after_cycles: After every so many unloads on a node, log the advice to restart it; 0 is never.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        neurons: Mapping[str, LoadingApi],
        count_eviction: Callable[[str, str], None],
        defrag_after_cycles: int,
    ) -> None:
        self._fleet = fleet
        self._neurons = neurons
        self._count_eviction = count_eviction
        self._defrag_after_cycles = defrag_after_cycles
        self._cycles: Counter[str] = Counter()

    async def evict(self, node: Node, victims: Sequence[NodeModel]) -> None:
        """Unload all victims, or as many as the neuron allows. From the start no new request goes to any of them.

        Raises:
            LoadPostponed: A victim stays busy.
            NeuronError: The neuron did not unload a victim.
        """
        for victim in victims:
            self._fleet.unloading(node.name, victim.id)
        unloaded = 0
        try:
            await self.wait_until_quiet(node, {victim.id for victim in victims})
            for victim in victims:
                await self.unload(node.name, victim.id)
                unloaded += 1
        finally:
            for victim in victims[unloaded:]:
                self._fleet.unchanged(node.name, victim.id)

    async def wait_until_quiet(self, node: Node, models: set[str]) -> None:
        """Wait until the neuron counts no request in these models. It may still be ending requests that were cancelled.

        Raises:
            LoadPostponed: It takes too long.
        """
        with trio.move_on_after(QUIET_DEADLINE_S) as scope:
            while await self._are_busy(node, models):  # noqa: ASYNC110 - another machine, without events
                await trio.sleep(ASK_INTERVAL_S)
        if scope.cancelled_caught:
            raise LoadPostponed(
                f"not evicted: {', '.join(sorted(models))} still had requests after {QUIET_DEADLINE_S:g} s"
            )

    async def _are_busy(self, node: Node, models: set[str]) -> bool:
        health = await self._neurons[node.name].health()
        return any(counter.id in models and counter.in_flight for counter in health.models or ())

    async def unload(self, node: str, model: str) -> None:
        """Return when the model is unloaded. Raises NeuronError."""
        with trio.move_on_after(UNLOAD_DEADLINE_S) as scope:
            refusal = await self._call_unload(node, model)
            if refusal is not None and not await self._is_gone(node, model, refusal):
                raise refusal
        if scope.cancelled_caught:
            raise NeuronError(f"the neuron did not answer the unload of {model} within {UNLOAD_DEADLINE_S:g} s")
        self._fleet.dropped(node, model)
        self._count_eviction(model, node)
        self._advise_restart(node)
        log.info("evicted", node=node, model=model)

    async def _call_unload(self, node: str, model: str) -> NeuronRefused | None:
        try:
            await self._neurons[node].unload(model)
        except NeuronRefused as refusal:
            return refusal
        return None

    async def _is_gone(self, node: str, model: str, refusal: NeuronRefused) -> bool:
        """A 404 means either "not here", which is the goal, or "refused". The neuron's list of models tells which."""
        if refusal.status != 404:
            return False
        gone = {"unloaded", "asleep"}
        return all(entry.id != model or entry.status in gone for entry in await self._neurons[node].models())

    def _advise_restart(self, node: str) -> None:
        self._cycles[node] += 1
        every = self._defrag_after_cycles
        if every and self._cycles[node] % every == 0:
            log.warning(
                "defrag_advised", node=node, cycles=self._cycles[node], advice="restart the neuron when it is idle"
            )
