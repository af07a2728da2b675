"""An unload, step by step: nothing is in the model any more, and it is gone. Which one, others decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import structlog
import trio

from gateway.fleet.control.types import LoadingApi, NeuronError, NeuronRefused
from gateway.fleet.loading.load_history import Postponed
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.state import Fleet
from gateway.telemetry.metrics import Metrics

__all__ = ["Unloader"]

UNLOAD_DEADLINE_S = 60.0
QUIET_DEADLINE_S = 10.0  # for a victim's last request, already gone from here, to leave the neuron too
ASK_INTERVAL_S = 0.05

log = structlog.get_logger("cortex.lifecycle")


class Unloader:
    """Unloads, in its caller's task.

    Args:
        fleet: Told of every step.
        neurons: One control API per node, by name.
        metrics: Counts evictions.
        defrag_after_cycles: After so many unloads of a node its operator is advised to restart it; 0 is never.
    """

    def __init__(
        self, fleet: Fleet, *, neurons: Mapping[str, LoadingApi], metrics: Metrics, defrag_after_cycles: int
    ) -> None:
        self._fleet = fleet
        self._neurons = neurons
        self._metrics = metrics
        self._defrag_after_cycles = defrag_after_cycles
        self._cycles: Counter[str] = Counter()

    async def evict(self, node: Node, victims: Sequence[NodeModel]) -> None:
        """All of a plan, or as many as the neuron lets go; no new request goes to any of them from the start.

        Raises:
            Postponed: They do not fall quiet.
            NeuronError: The neuron would not unload one.
        """
        for held in victims:
            self._fleet.unloading(node.name, held.id)
        unloaded = 0
        try:
            await self.until_quiet(node, {held.id for held in victims})
            for held in victims:
                await self.unload(node.name, held.id)
                unloaded += 1
        finally:
            for held in victims[unloaded:]:
                self._fleet.unchanged(node.name, held.id)

    async def until_quiet(self, node: Node, victims: set[str]) -> None:
        """Nothing of ours is in them, and nothing new goes there; the neuron may still be ending what was cancelled.

        Raises Postponed if it takes too long.
        """
        with trio.move_on_after(QUIET_DEADLINE_S) as scope:
            while await self._are_busy(node, victims):  # noqa: ASYNC110 - another machine, without events
                await trio.sleep(ASK_INTERVAL_S)
        if scope.cancelled_caught:
            raise Postponed(f"{', '.join(sorted(victims))} still busy after {QUIET_DEADLINE_S:g} s, not evicted")

    async def _are_busy(self, node: Node, models: set[str]) -> bool:
        health = await self._neurons[node.name].health()
        return any(counter.id in models and counter.in_flight for counter in health.models or ())

    async def unload(self, node: str, model: str) -> None:
        """Return when it is gone. Raises NeuronError."""
        with trio.move_on_after(UNLOAD_DEADLINE_S) as scope:
            refusal = await self._ask_to_unload(node, model)
            if refusal is not None and not await self._is_gone(node, model, refusal):
                raise refusal
        if scope.cancelled_caught:
            raise NeuronError(f"no answer to the unload of {model} within {UNLOAD_DEADLINE_S:g} s")
        self._fleet.dropped(node, model)
        self._metrics.evictions(model, node).inc()
        self._count_cycle(node)
        log.info("evicted", node=node, model=model)

    async def _ask_to_unload(self, node: str, model: str) -> NeuronRefused | None:
        try:
            await self._neurons[node].unload(model)
        except NeuronRefused as refusal:
            return refusal
        return None

    async def _is_gone(self, node: str, model: str, refusal: NeuronRefused) -> bool:
        """404 is both "not here", which is what we want, and "I will not": its list tells which."""
        if refusal.status != 404:
            return False
        return all(entry.id != model or entry.status == "unloaded" for entry in await self._neurons[node].models())

    def _count_cycle(self, node: str) -> None:
        self._cycles[node] += 1
        every = self._defrag_after_cycles
        if every and self._cycles[node] % every == 0:
            log.warning(
                "defrag_advised", node=node, cycles=self._cycles[node], advice="restart the neuron when it is idle"
            )
