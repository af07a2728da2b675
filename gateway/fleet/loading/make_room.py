"""Room for a model on a neuron: whether it may come, and making it. Who must go for it is said by `eviction.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import structlog
import trio

from catalogue.models import ModelProfile
from catalogue.source import CatalogueSource
from gateway.fleet.control.types import Health, LoadingApi, NeuronError
from gateway.fleet.loading import eviction
from gateway.fleet.loading.load_history import LoadStory, Postponed
from gateway.fleet.loading.unload import Unloader
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.routing.choose import Candidate, Fit
from gateway.fleet.state import Fleet

__all__ = ["Room"]

READINGS_DEADLINE_S = 10.0
ROOM_DEADLINE_S = 5.0  # for the memory of evicted models to be free
ASK_INTERVAL_S = 0.05

log = structlog.get_logger("cortex.lifecycle")


class Room:
    """On all neurons of a fleet.

    Args:
        fleet: What is on them.
        catalogue: For residency classes.
        neurons: One control API per node, by name, for readings.
        unloader: Does what is to be done.
        min_residency_s: So long a model is spared after it was loaded, if that will do.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        catalogue: CatalogueSource,
        neurons: Mapping[str, LoadingApi],
        unloader: Unloader,
        min_residency_s: float,
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._neurons = neurons
        self._unloader = unloader
        self._min_residency_s = min_residency_s

    # As last polled ...................................................................................................

    def spares_the_young(self, profile: ModelProfile, candidate: Candidate) -> bool:
        """Whether there is room without unloading what was loaded lately (thrash)."""
        node = self._fleet.nodes[candidate.node]
        free_mb = _free_mb(node, candidate.devices)
        catalogue = self._catalogue.current
        return eviction.plan(profile, node, free_mb, catalogue, resident_before=self._old_enough()) is not None

    def _old_enough(self) -> float:
        return trio.current_time() - self._min_residency_s

    def may_come(self, profile: ModelProfile, candidates: Iterable[Candidate]) -> bool:
        """Whether it is a matter of time until one of these has room."""
        catalogue = self._catalogue.current
        return any(
            eviction.room_may_come(profile, node, free_mb, catalogue) for node, free_mb in self._polled(candidates)
        )

    def why_none(self, profile: ModelProfile, candidates: Iterable[Candidate]) -> str:
        """What has the room on each of these."""
        catalogue = self._catalogue.current
        return "; ".join(
            eviction.why_no_room(profile, node, free_mb, catalogue) for node, free_mb in self._polled(candidates)
        )

    def _polled(self, candidates: Iterable[Candidate]) -> list[tuple[Node, dict[int, int]]]:
        nodes = ((self._fleet.nodes[candidate.node], candidate.devices) for candidate in candidates)
        return [(node, _free_mb(node, devices)) for node, devices in nodes]

    # As it is now .....................................................................................................

    async def make(self, story: LoadStory, profile: ModelProfile, candidate: Candidate) -> None:
        """Unload who must go. Readings are asked for now: a poll may be ten seconds and one load old.

        Raises:
            Postponed: What is free now is not what the decision was made upon.
            NeuronError: It would not unload.
        """
        node = self._fleet.nodes[candidate.node]
        free_mb = await self._measure(candidate)
        if len(free_mb) < len(candidate.devices):
            return  # unknown is not "none": the neuron will say if it does not fit
        victims = self._plan(profile, node, free_mb)
        if victims is None or (victims and candidate.fit is Fit.FREE):
            # What the poll saw free is taken meanwhile. There may be a better place than this, or a time.
            raise Postponed(f"{profile.vram_mb} MB needed, {sum(free_mb.values())} MB free")
        if victims:
            await self._unloader.evict(node, victims)
            story.evicted = tuple(held.id for held in victims)
            await self._until_room(profile, candidate)

    def _plan(self, profile: ModelProfile, node: Node, free_mb: Mapping[int, int]) -> tuple[NodeModel, ...] | None:
        """Sparing the young if that is enough; nothing else can serve here, so they too may go."""
        catalogue = self._catalogue.current
        sparing = eviction.plan(profile, node, free_mb, catalogue, resident_before=self._old_enough())
        return sparing if sparing is not None else eviction.plan(profile, node, free_mb, catalogue)

    async def _until_room(self, profile: ModelProfile, candidate: Candidate) -> None:
        """A driver may take a moment to give memory back; or a victim had none left: somebody else unloaded it."""
        with trio.move_on_after(ROOM_DEADLINE_S):
            while True:
                if eviction.fits(profile, await self._measure(candidate), over=len(candidate.devices)):
                    return
                await trio.sleep(ASK_INTERVAL_S)
        raise Postponed(f"{profile.vram_mb} MB needed, and not free {ROOM_DEADLINE_S:g} s after the evictions")

    async def _measure(self, candidate: Candidate) -> dict[int, int]:
        """What is free now, in MB by device; what cannot be read is left out."""
        try:
            with trio.move_on_after(READINGS_DEADLINE_S):
                return _free_now_mb(await self._neurons[candidate.node].health(), candidate.devices)
        except NeuronError as error:
            log.debug("readings_unknown", node=candidate.node, error=str(error))
        return {}


def _free_mb(node: Node, devices: Sequence[int]) -> dict[int, int]:
    """As last polled; a device whose reading is unknown is left out."""
    return {
        device.index: device.vram_free_mb
        for device in node.devices or ()
        if device.index in devices and device.vram_free_mb is not None
    }


def _free_now_mb(health: Health, devices: Sequence[int]) -> dict[int, int]:
    readings = {int(reading.index): reading.vram_free_mb for reading in health.devices or ()}
    return {index: int(free) for index in devices if (free := readings.get(index)) is not None}
