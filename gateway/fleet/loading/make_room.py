"""Makes room for a model on a node: measures free memory now, evicts what `eviction.py` names, waits for the memory."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
import trio

from catalogue.models import ModelProfile
from catalogue.source import CatalogueSource
from gateway.fleet.control.types import Health, LoadingApi, NeuronError
from gateway.fleet.loading import eviction
from gateway.fleet.loading.load_history import LoadPostponed, LoadRecord
from gateway.fleet.loading.unload import Unloader
from gateway.fleet.routing.placement import Candidate, Fit, candidate_on
from gateway.fleet.routing.sleepers import sleeper_on
from gateway.fleet.state import Fleet

__all__ = ["RoomMaker"]

READINGS_DEADLINE_S = 10.0
ROOM_DEADLINE_S = 5.0  # for the memory of evicted models to become free
ASK_INTERVAL_S = 0.05

log = structlog.get_logger("cortex.lifecycle")


class RoomMaker:
    """Makes room on all nodes of a fleet.

    Args:
        fleet: The models on the nodes.
        catalogue: For residency priorities.
        neurons: One control API per node, by name, for readings.
        unloader: Evicts.
        min_residency_s: For so long after its load a model is evicted only if there is no other way.
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

    async def make_room(self, record: LoadRecord, profile: ModelProfile, candidate: Candidate) -> None:
        """Evict until `profile` fits. Asks for readings now, as the last poll may be ten seconds and one load old.

        Raises:
            LoadPostponed: There is less free memory now than when the load was decided, or other devices have room.
            NeuronError: The neuron did not unload a model.
        """
        node = self._fleet.nodes[candidate.node]
        readings_mb = await self._measure_free_mb(candidate.node)
        free_mb = {index: readings_mb[index] for index in candidate.devices if index in readings_mb}
        if len(free_mb) < len(candidate.devices):
            return  # unknown is not full: the neuron refuses the load if the model does not fit
        victims = eviction.find_victims_young_last(
            profile,
            node,
            free_mb,
            self._catalogue.current,
            loaded_before=trio.current_time() - self._min_residency_s,
            wakes=candidate.wakes,
        )
        if victims is None or (victims and candidate.fit is Fit.FREE):
            # The memory that the poll reported as free is taken by now. Another node may be better, or waiting.
            raise LoadPostponed(f"the model needs {profile.vram_mb} MB, and {sum(free_mb.values())} MB are free")
        if victims:
            place = candidate_on(node, profile, self._catalogue.current, free_mb=readings_mb)
            if place is not None and place.fit is Fit.FREE:
                raise LoadPostponed(f"the devices {', '.join(map(str, place.devices))} have room by now")
            await self._unloader.evict(node, victims)
            self._fleet.loading(node.name, profile.id)  # the model itself may have been a victim: a sleeper elsewhere
            record.evicted = tuple(victim.id for victim in victims)
            await self._wait_for_room(profile, candidate)

    async def _wait_for_room(self, profile: ModelProfile, candidate: Candidate) -> None:
        """A driver may take a moment to free memory; or a victim freed none, because someone else unloaded it."""
        with trio.move_on_after(ROOM_DEADLINE_S):
            while True:
                readings_mb = await self._measure_free_mb(candidate.node)
                free_mb = {index: free for index, free in readings_mb.items() if index in candidate.devices}
                sleeper = sleeper_on(self._fleet.nodes[candidate.node], profile) if candidate.wakes else None
                if eviction.fits(profile, free_mb, sleeper):
                    return
                await trio.sleep(ASK_INTERVAL_S)
        raise LoadPostponed(
            f"the model needs {profile.vram_mb} MB, which are not free {ROOM_DEADLINE_S:g} s after the evictions"
        )

    async def _measure_free_mb(self, node: str) -> dict[int, int]:
        """What is free now, in MB by device index; devices without a reading are left out."""
        try:
            with trio.move_on_after(READINGS_DEADLINE_S):
                return _free_mb(await self._neurons[node].health())
        except NeuronError as error:
            log.debug("readings_unknown", node=node, error=str(error))
        return {}


def _free_mb(health: Health) -> dict[int, int]:
    readings = {int(reading.index): reading.vram_free_mb for reading in health.devices or ()}
    return {index: int(free) for index, free in readings.items() if free is not None}
