"""The fleet as a plan expects it: a copy on which loads succeed at once and victims are gone. Pure.

The rules are those of the fleet itself: `routing.choose` decides where a model goes, and `loading.eviction` which
models are evicted for it. Each planned load changes the copy for the next one; the real fleet is only read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from catalogue.models import Catalogue, ModelProfile
from catalogue.placement import feasible
from catalogue.warming import moved
from gateway.errors import ModelNotFound, NoFeasibleNeuron, ServiceUnavailable
from gateway.fleet.loading import eviction
from gateway.fleet.model_names import neuron_model_id, replicas_of
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.reports import DeviceReport, ModelReport, NodeReport
from gateway.fleet.routing.choose import ColdLoad, Route, WaitForSlot, choose
from gateway.fleet.routing.placement import Candidate, Fit, needed_mb, resident_mb
from gateway.fleet.state import Fleet

__all__ = ["Placement", "PlannedFleet"]

PlacementState: TypeAlias = Literal["loaded", "loading", "to_load", "waits", "impossible"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model is, or will be.

    Args:
        model: Its id in the catalogue.
        state: "to_load": it will be loaded on the first of `nodes`. "waits", "impossible": for what `reason` says.
        nodes: Where it is, or will be.
        devices: Of the node that will load it.
        evicts: The models that are evicted there first.
        vram_mb: What it needs in all; None if unknown.
        reason: Why it waits, or is impossible.
    """

    model: str
    state: PlacementState
    nodes: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()
    evicts: tuple[str, ...] = ()
    vram_mb: int | None = None
    reason: str | None = None


class PlannedFleet:
    """A copy of the fleet, and the catalogue whose warm aliases move once their models are placed."""

    def __init__(self, fleet: Fleet, catalogue: Catalogue, min_residency_s: float) -> None:
        self.fleet = fleet.copy_for_planning()
        self.catalogue = catalogue
        self._loaded_before = fleet.now() - min_residency_s
        self._placements: dict[str, Placement] = {}

    def move(self, alias: str) -> None:
        """The models of a warming alias are placed: move it, so that its old ones are not guarded any more."""
        self.catalogue = moved(self.catalogue, alias)

    def place(self, model: str) -> Placement:
        """Place the model, once: for a second alias it is loaded already."""
        if model not in self._placements:
            self._placements[model] = self._place(model)
        return self._placements[model]

    def _place(self, model: str) -> Placement:
        try:
            decision = choose(model, self.fleet, self.catalogue)
        except NoFeasibleNeuron:
            return Placement(model, "impossible", reason=_why_infeasible(self.catalogue.models[model], self.fleet))
        except ModelNotFound:
            return Placement(model, "impossible", reason=f"no neuron has {model}, and no [[models]] table describes it")
        except ServiceUnavailable as error:
            return Placement(model, "waits", reason=error.message)
        if isinstance(decision, ColdLoad):
            return self._place_cold(decision)
        if isinstance(decision, Route | WaitForSlot):
            nodes = tuple(replica.node.name for replica in replicas_of(model, self.fleet, self.catalogue))
            return Placement(model, "loaded", nodes)
        return Placement(model, "loading", decision.nodes)

    def _place_cold(self, cold_load: ColdLoad) -> Placement:
        profile = cold_load.profile
        ranked = eviction.rank_candidates(
            profile, cold_load.candidates, self.fleet, self.catalogue, loaded_before=self._loaded_before
        )
        best = ranked[0][1]
        if best.fit is Fit.FULL:
            return self._place_without_memory(profile, cold_load.candidates)
        node = self.fleet.nodes[best.node]
        victims = eviction.find_victims_young_last(
            profile, node, node.free_mb(best.devices), self.catalogue, loaded_before=self._loaded_before
        )
        victims = victims or ()
        self._load(profile, node, best, victims)
        evicts = tuple(victim.id for victim in victims)
        return Placement(profile.id, "to_load", (best.node,), best.devices, evicts, profile.vram_mb)

    def _place_without_memory(self, profile: ModelProfile, candidates: tuple[Candidate, ...]) -> Placement:
        """No candidate has memory: the model waits for one, or for a node that is unavailable, or is impossible."""
        places = [(self.fleet.nodes[candidate.node], candidate) for candidate in candidates]
        for node, candidate in places:
            if eviction.room_may_come(profile, node, node.free_mb(candidate.devices), self.catalogue):
                reason = f"{node.name} has memory once {_busy_models(node) or 'its models'} can be evicted"
                return Placement(
                    profile.id, "waits", (node.name,), candidate.devices, vram_mb=profile.vram_mb, reason=reason
                )
        if unavailable := [name for name, node in self.fleet.nodes.items() if _would_hold(node, profile)]:
            reason = f"{' or '.join(unavailable)} could hold it, but is unavailable now"
            return Placement(profile.id, "waits", tuple(unavailable), vram_mb=profile.vram_mb, reason=reason)
        reasons = "; ".join(
            eviction.why_no_room(profile, node, node.free_mb(candidate.devices), self.catalogue)
            for node, candidate in places
        )
        reason = f"no neuron has memory for {profile.id}: needs {_megabytes(profile.vram_mb)}; {reasons}"
        return Placement(profile.id, "impossible", vram_mb=profile.vram_mb, reason=reason)

    # The copy after a load ............................................................................................

    def _load(self, profile: ModelProfile, node: Node, candidate: Candidate, victims: tuple[NodeModel, ...]) -> None:
        """Apply the report that the neuron would send after the load: without the victims, with the new model."""
        victim_ids = {victim.id for victim in victims}
        reports = [
            model.report for model in node.models.values() if model.report is not None and model.id not in victim_ids
        ]
        loaded = ModelReport(
            neuron_model_id(profile), "loaded", devices=candidate.devices, vram_used_mb=profile.vram_mb, url="planned:"
        )
        devices = tuple(
            _with_taken(device, self._taken_mb(device.index, profile, candidate, victims))
            for device in node.devices or ()
        )
        self.fleet.answered(node.name, NodeReport((*reports, loaded), devices=devices))

    def _taken_mb(
        self, device: int, profile: ModelProfile, candidate: Candidate, victims: tuple[NodeModel, ...]
    ) -> int | None:
        """How much less memory is free on the device afterwards; None if unknown."""
        freed_mb = [resident_mb(victim, device, self.catalogue) for victim in victims]
        known_freed_mb = [freed for freed in freed_mb if freed is not None]
        if len(known_freed_mb) < len(freed_mb):
            return None
        if device not in candidate.devices:
            return -round(sum(known_freed_mb))
        if profile.vram_mb is None:
            return None
        return needed_mb(profile.vram_mb, len(candidate.devices)) - round(sum(known_freed_mb))


def _with_taken(device: DeviceReport, taken_mb: int | None) -> DeviceReport:
    free_mb, used_mb = device.vram_free_mb, device.vram_used_mb
    if taken_mb is None:
        return replace(device, vram_free_mb=None, vram_used_mb=None)
    return replace(
        device,
        vram_free_mb=None if free_mb is None else free_mb - taken_mb,
        vram_used_mb=None if used_mb is None else used_mb + taken_mb,
    )


def _would_hold(node: Node, profile: ModelProfile) -> bool:
    """Whether a node that is down or drained could hold the model if it were available and empty."""
    if (node.healthy and not node.draining) or node.devices is None or not node.takes_placements:
        return False
    indices = feasible(profile, node.name, node.devices)
    if indices is None:
        return False
    need_mb = needed_mb(profile.vram_mb or 0, len(indices))
    return all(device.vram_total_mb >= need_mb for device in node.devices if device.index in indices)


# Texts for operators ..................................................................................................


def _busy_models(node: Node) -> str:
    busy = (model for model in node.models.values() if model.load)
    return ", ".join(f"{model.id} ({model.load} request{'s' if model.load > 1 else ''})" for model in busy)


def _megabytes(size: int | None) -> str:
    return "an unknown amount" if size is None else f"{size:,} MB"


def _why_infeasible(profile: ModelProfile, fleet: Fleet) -> str:
    """What the model needs, and what every neuron has."""
    count = profile.min_devices
    needs = f"{count} device{'s' if count > 1 else ''}"
    if profile.min_device_vram_mb is not None:
        needs += f" of {_megabytes(profile.min_device_vram_mb)}"
    if profile.pinned_on:
        needs += f" on {' or '.join(profile.pinned_on)}, where it is pinned"
    has = [f"{node.name} has {_devices(node)}" for node in fleet.nodes.values() if node.healthy and node.devices]
    return f"no neuron can hold {profile.id}: needs {needs}; {', '.join(has) or 'no neuron reports any device'}"


def _devices(node: Node) -> str:
    sizes = Counter(device.vram_total_mb for device in node.devices or ())
    return " and ".join(f"{count} of {_megabytes(size)}" for size, count in sorted(sizes.items(), reverse=True))
