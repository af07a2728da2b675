"""The fleet as loads would leave it: a copy on which loads succeed at once and victims are gone. Pure.

The rules are those of real loads: `rank_candidates` decides where a model goes, and `eviction` what is evicted for it.
Each load changes the copy for the next one; the real fleet is only read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from catalogue.models import Catalogue, ModelProfile
from gateway.fleet.loading.eviction import LoadTimes, find_victims_young_last, rank_candidates
from gateway.fleet.loading.load_history import LoadHistory
from gateway.fleet.model_names import neuron_model_id
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.reports import DeviceReport, ModelReport, NodeReport
from gateway.fleet.routing.choose import ColdLoad
from gateway.fleet.routing.placement import Candidate, Fit
from gateway.fleet.routing.sleepers import load_share_mb, sleeper_on
from gateway.fleet.routing.victims import resident_mb
from gateway.fleet.state import Fleet

__all__ = ["ImaginedFleet", "ImaginedLoad"]


class ImaginedLoad(NamedTuple):
    """Where the model would be loaded, and the models that would be evicted there first, by the neuron's ids.

    `wakes`: it sleeps there.
    """

    node: str
    devices: tuple[int, ...]
    evicts: tuple[str, ...]
    wakes: bool


class ImaginedFleet:
    """A copy of `fleet`, with loads that spare models younger than the minimum residency, as real loads do.

    `times` prices waking a sleeper; None assumes how long loads take.
    """

    def __init__(self, fleet: Fleet, min_residency_s: float, times: LoadTimes | None = None) -> None:
        self.fleet = fleet.copy_for_planning()
        self._times = LoadHistory() if times is None else times
        self._loaded_before = fleet.now() - min_residency_s

    def load(self, wanted: ColdLoad, catalogue: Catalogue) -> ImaginedLoad | None:
        """Load the model where a request would have it loaded; None if no candidate has room now."""
        profile = wanted.profile
        ranked = rank_candidates(
            profile, wanted.candidates, self.fleet, catalogue, loaded_before=self._loaded_before, times=self._times
        )
        best = ranked[0][1]
        if best.fit is Fit.FULL:
            return None
        node = self.fleet.nodes[best.node]
        free_mb = node.free_mb(best.devices)
        victims: tuple[NodeModel, ...] | None = ()
        if len(free_mb) == len(best.devices):  # with an unknown reading a load evicts nothing
            victims = find_victims_young_last(
                profile, node, free_mb, catalogue, loaded_before=self._loaded_before, wakes=best.wakes
            )
        self._answer_with(profile, node, best, victims or (), catalogue)
        return ImaginedLoad(best.node, best.devices, tuple(victim.id for victim in victims or ()), best.wakes)

    def _answer_with(
        self,
        profile: ModelProfile,
        node: Node,
        candidate: Candidate,
        victims: tuple[NodeModel, ...],
        catalogue: Catalogue,
    ) -> None:
        """Apply the report that the neuron would send after the load: without the victims, with the new model."""
        victim_ids = {victim.id for victim in victims}
        sleeper = sleeper_on(node, profile) if candidate.wakes else None
        if sleeper is not None:
            victim_ids.add(sleeper.id)
        name = neuron_model_id(profile) if sleeper is None else sleeper.id
        reports = [
            model.report for model in node.models.values() if model.report is not None and model.id not in victim_ids
        ]
        loaded = ModelReport(name, "loaded", devices=candidate.devices, vram_used_mb=profile.vram_mb, url="planned:")
        devices = tuple(
            _with_taken(device, _taken_mb(device.index, load_share_mb(profile, sleeper), candidate, victims, catalogue))
            for device in node.devices or ()
        )
        self.fleet.answered(node.name, NodeReport((*reports, loaded), devices=devices))


def _taken_mb(
    device: int, need_mb: int | None, candidate: Candidate, victims: tuple[NodeModel, ...], catalogue: Catalogue
) -> int | None:
    """How much less memory is free on the device afterwards; None if unknown. `need_mb`: on each device of the load."""
    freed_mb = [resident_mb(victim, device, catalogue) for victim in victims]
    known_freed_mb = [freed for freed in freed_mb if freed is not None]
    if len(known_freed_mb) < len(freed_mb):
        return None
    if device not in candidate.devices:
        return -round(sum(known_freed_mb))
    return None if need_mb is None else need_mb - round(sum(known_freed_mb))


def _with_taken(device: DeviceReport, taken_mb: int | None) -> DeviceReport:
    free_mb, used_mb = device.vram_free_mb, device.vram_used_mb
    if taken_mb is None:
        return replace(device, vram_free_mb=None, vram_used_mb=None)
    return replace(
        device,
        vram_free_mb=None if free_mb is None else free_mb - taken_mb,
        vram_used_mb=None if used_mb is None else used_mb + taken_mb,
    )
