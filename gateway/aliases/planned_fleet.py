"""The fleet as a plan expects it, and where each model is on it. Pure.

The rules are those of the fleet itself: `routing.choose` decides whether a model must be loaded, and
`loading.imagined_fleet` where, and what is evicted for it. The real fleet is only read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypeAlias

from catalogue.models import Catalogue, ModelProfile
from catalogue.placement import device_floor_mb
from catalogue.warming import moved
from gateway.errors import ModelNotFound, NoFeasibleNeuron, ServiceUnavailable
from gateway.fleet.loading import eviction
from gateway.fleet.loading.imagined_fleet import ImaginedFleet
from gateway.fleet.loading.load_history import LoadHistory
from gateway.fleet.model_names import replicas_of
from gateway.fleet.node import Node
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import ColdLoad, WaitForSlot, choose, unavailable_nodes_for
from gateway.fleet.routing.placement import Candidate
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
        wakes: It sleeps there, and is woken.
        expected_s: How long earlier loads there took, or earlier wakes; None if there were none.
    """

    model: str
    state: PlacementState
    nodes: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()
    evicts: tuple[str, ...] = ()
    vram_mb: int | None = None
    reason: str | None = None
    wakes: bool = False
    expected_s: float | None = None


class PlannedFleet:
    """A copy of the fleet, and the catalogue whose warm aliases move once their models are placed."""

    def __init__(self, fleet: Fleet, catalogue: Catalogue, min_residency_s: float, times: LoadHistory) -> None:
        self._imagined = ImaginedFleet(fleet, min_residency_s, times)
        self._times = times
        self.fleet = self._imagined.fleet
        self.catalogue = catalogue
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
        load = self._imagined.load(cold_load, self.catalogue)
        if load is None:
            return self._place_without_memory(profile, cold_load.candidates)
        expected_s = self._times.estimate_s(load.node, profile.id, wakes=load.wakes)
        return Placement(
            profile.id,
            "to_load",
            (load.node,),
            load.devices,
            load.evicts,
            profile.vram_mb,
            wakes=load.wakes,
            expected_s=expected_s,
        )

    def _place_without_memory(self, profile: ModelProfile, candidates: tuple[Candidate, ...]) -> Placement:
        """No candidate has memory: the model waits for one, or for a node that is unavailable, or is impossible."""
        for candidate in candidates:
            node = self.fleet.nodes[candidate.node]
            if eviction.room_may_come(profile, node, self.catalogue):
                reason = f"{node.name} has memory once {eviction.busy_models(node) or 'its models'} can be evicted"
                return Placement(
                    profile.id, "waits", (node.name,), candidate.devices, vram_mb=profile.vram_mb, reason=reason
                )
        if unavailable := unavailable_nodes_for(profile.id, self.fleet, self.catalogue):
            reason = f"{' or '.join(unavailable)} could hold it, but is unavailable now"
            return Placement(profile.id, "waits", unavailable, vram_mb=profile.vram_mb, reason=reason)
        reasons = "; ".join(
            eviction.why_no_room(profile, self.fleet.nodes[candidate.node], self.catalogue) for candidate in candidates
        )
        reason = f"no neuron has memory for {profile.id}: needs {_megabytes(profile.vram_mb)}; {reasons}"
        return Placement(profile.id, "impossible", vram_mb=profile.vram_mb, reason=reason)


# Texts for operators ..................................................................................................


def _megabytes(size: int | None) -> str:
    return "an unknown amount" if size is None else f"{size:,} MB"


def _why_infeasible(profile: ModelProfile, fleet: Fleet) -> str:
    """What the model needs, and what every neuron has."""
    count = profile.min_devices
    needs = f"{count} device{'s' if count > 1 else ''}"
    if floor_mb := device_floor_mb(profile):
        needs += f" of {_megabytes(floor_mb)}"
    if profile.pinned_on:
        needs += f" on {' or '.join(profile.pinned_on)}, where it is pinned"
    has = [f"{node.name} has {_devices(node)}" for node in fleet.nodes.values() if node.healthy and node.devices]
    return f"no neuron can hold {profile.id}: needs {needs}; {', '.join(has) or 'no neuron reports any device'}"


def _devices(node: Node) -> str:
    sizes = Counter(device.vram_total_mb for device in node.devices or ())
    return " and ".join(f"{count} of {_megabytes(size)}" for size, count in sorted(sizes.items(), reverse=True))
