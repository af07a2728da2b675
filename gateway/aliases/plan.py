"""What a new `models.toml` would take of the fleet: who loads what, who goes for it, what cannot be. Pure.

The rules are not repeated here: `routing.choose` and `eviction.plan` are asked, on an imagined fleet that each load
changes for the next. The fleet itself is read and not touched. A plan is a forecast: requests come and go meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from typing import Any, Literal, TypeAlias

from catalogue.diff import CatalogueDiff, diff, shown_targets
from catalogue.models import Alias, Catalogue, ModelProfile
from catalogue.placement import feasible
from catalogue.warming import hold_back, moved
from gateway.errors import ModelNotFound, NoFeasibleNeuron, ServiceUnavailable
from gateway.fleet.loading import eviction
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.readiness import FleetReadiness
from gateway.fleet.reports import Device, ModelReport, NodeReport
from gateway.fleet.routing.choose import (
    Candidate,
    ColdLoad,
    Fit,
    Route,
    WaitForPlace,
    choose,
    held_mb,
    neuron_model_id,
    replicas_of,
)
from gateway.fleet.state import Fleet

__all__ = ["AliasPlan", "ChangePlan", "DevicePlan", "Placement", "Verdict", "plan"]

Change: TypeAlias = Literal["added", "changed", "removed", "affected"]
State: TypeAlias = Literal["loaded", "loading", "to_load", "waits", "impossible"]
Verdict: TypeAlias = Literal["nothing", "changes", "impossible"]


@dataclass(frozen=True, slots=True)
class Placement:
    """What becomes of one model.

    Args:
        model: Its id in the catalogue.
        state: Where it stands: "to_load" on the first of `nodes` once it is needed; "waits" for what `reason` says.
        nodes: Where it is, or will be.
        devices: Of the node that will load it.
        evicts: The models that have to go from that node first.
        vram_mb: What it needs in all, None if nobody knows.
        reason: Why it waits, or cannot be.
    """

    model: str
    state: State
    nodes: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()
    evicts: tuple[str, ...] = ()
    vram_mb: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class AliasPlan:
    """What becomes of one alias.

    Args:
        name: The alias.
        change: "affected" if the file says the same of it, but not of a model it stands for.
        old, new: Its targets, in words; None where there is no alias.
        is_warm: Whether it stays where it is until what it is to stand for is loaded and has answered.
        placements: One for each target that gets requests.
        in_flight: Requests under way by the model they went to. They end there.
    """

    name: str
    change: Change
    old: str | None
    new: str | None
    is_warm: bool
    placements: tuple[Placement, ...]
    in_flight: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The memory of one GPU, now and once everything in the plan is loaded. MB; None is unknown."""

    node: str
    device: int
    total_mb: int
    used_before_mb: int | None
    used_after_mb: int | None


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """All of it. `notes` are what somebody might not expect."""

    changes: CatalogueDiff
    aliases: tuple[AliasPlan, ...]
    devices: tuple[DevicePlan, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Whether there is anything to do, and whether it can be done."""
        if any(placement.state == "impossible" for alias in self.aliases for placement in alias.placements):
            return "impossible"
        return "changes" if self.changes else "nothing"

    def as_json(self) -> dict[str, Any]:
        """For the admin API."""
        return {
            "verdict": self.verdict,
            "summary": str(self.changes),
            "diff": self.changes.as_json(),
            **self.as_short_json(),
            "devices": [asdict(device) for device in self.devices],
            "notes": list(self.notes),
        }

    def as_short_json(self) -> dict[str, Any]:
        """For the audit trail: what is to be loaded, and what goes for it."""
        return {"aliases": [asdict(alias) for alias in self.aliases]}


def plan(
    in_force: Catalogue,
    wanted: Catalogue,
    fleet: Fleet,
    *,
    live: Iterable[tuple[str | None, str | None]] = (),
    min_residency_s: float = 0.0,
) -> ChangePlan:
    """What it takes to go from one catalogue to another.

    Args:
        in_force: Now; an alias that is warming is taken to be on its way already.
        wanted: What a file says; one that was accepted, and has aliases that wait, is taken by its word.
        fleet: As it is.
        live: Alias and model of every request under way.
        min_residency_s: Models younger than this are spared if there is another way.
    """
    accepted, wanted = _as_written(in_force), _as_written(wanted)
    imagination = _Imagination(fleet, hold_back(wanted, in_force, FleetReadiness(fleet)), min_residency_s)
    changes = diff(accepted, wanted)
    requests = Counter(pair for pair in live if pair[0] is not None and pair[1] is not None)
    aliases = [
        _alias_plan(name, change, accepted.aliases.get(name), wanted.aliases.get(name), imagination)
        for name, change in _concerned(changes, wanted)
    ]
    touched = tuple(replace(alias, in_flight=_in_flight(alias.name, requests)) for alias in aliases)
    return ChangePlan(changes, touched, _device_plans(fleet, imagination.fleet), tuple(_notes(changes, fleet)))


def _as_written(catalogue: Catalogue) -> Catalogue:
    """As its file has it: every alias that is warming, or could not be moved, where it should be."""
    for name in catalogue.warming:
        catalogue = moved(catalogue, name)
    return catalogue


def _concerned(changes: CatalogueDiff, wanted: Catalogue) -> Iterator[tuple[str, Change]]:
    """The aliases that something happens to: by the file's word, or by what it says of their models."""
    found: dict[str, Change] = {}
    touched = {*changes.models_added, *changes.models_removed, *(change.id for change in changes.models_changed)}
    for name, alias in wanted.aliases.items():
        if alias.active & touched:
            found[name] = "affected"
    found |= dict.fromkeys((alias.name for alias in changes.aliases_removed), "removed")
    found |= dict.fromkeys((change.name for change in changes.aliases_changed), "changed")
    found |= dict.fromkeys((alias.name for alias in changes.aliases_added), "added")
    yield from sorted(found.items())


def _alias_plan(
    name: str, change: Change, old: Alias | None, new: Alias | None, imagination: _Imagination
) -> AliasPlan:
    is_warm = name in imagination.catalogue.warming
    placements = () if new is None else tuple(imagination.place(model) for model in _models_of(new))
    if is_warm and all(placement.state != "impossible" for placement in placements):
        imagination.move(name)
    before, after = (None if alias is None else shown_targets(alias) for alias in (old, new))
    return AliasPlan(name, change, before, after, is_warm, placements)


def _in_flight(name: str, requests: Counter[tuple[str | None, str | None]]) -> dict[str, int]:
    return {model or "": count for (alias, model), count in sorted(requests.items()) if alias == name}


def _models_of(alias: Alias) -> list[str]:
    return [target.model for target in alias.targets if target.weight > 0]


# The imagined fleet ...................................................................................................


class _Imagination:
    """A fleet on which loads succeed at once, and a catalogue whose warm aliases move when theirs have."""

    def __init__(self, fleet: Fleet, catalogue: Catalogue, min_residency_s: float) -> None:
        self.fleet = fleet.imagine()
        self.catalogue = catalogue
        self._old_enough = fleet.now() - min_residency_s
        self._placed: dict[str, Placement] = {}

    def move(self, alias: str) -> None:
        """Its models are there: it stands for them, and nothing is guarded for it any more."""
        self.catalogue = moved(self.catalogue, alias)

    def place(self, model: str) -> Placement:
        """What becomes of the model, once: what one alias has loaded, others find loaded."""
        if model not in self._placed:
            self._placed[model] = self._place(model)
        return self._placed[model]

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
        if isinstance(decision, Route | WaitForPlace):
            there = tuple(held.node.name for held in replicas_of(model, self.fleet, self.catalogue))
            return Placement(model, "loaded", there)
        return Placement(model, "loading", decision.nodes)

    def _place_cold(self, wanted: ColdLoad) -> Placement:
        profile = wanted.profile
        best = min(wanted.candidates, key=lambda candidate: self._preference(profile, candidate))
        if best.fit is Fit.FULL:
            return self._without_room(profile, wanted.candidates)
        node = self.fleet.nodes[best.node]
        victims = self._victims(profile, best) or ()
        self._load(profile, node, best, victims)
        evicted = tuple(held.id for held in victims)
        return Placement(profile.id, "to_load", (best.node,), best.devices, evicted, profile.vram_mb)

    def _preference(self, profile: ModelProfile, candidate: Candidate) -> tuple[Fit, bool, int, str]:
        """As the lifecycle has it: among evictions, those that spare the young come first."""
        thrashes = candidate.fit is Fit.AFTER_EVICTION and self._sparing(profile, candidate) is None
        return candidate.fit, thrashes, -(candidate.free_mb or 0), candidate.node

    def _victims(self, profile: ModelProfile, candidate: Candidate) -> tuple[NodeModel, ...] | None:
        sparing = self._sparing(profile, candidate)
        if sparing is not None:
            return sparing
        node = self.fleet.nodes[candidate.node]
        return eviction.plan(profile, node, _free_mb(node, candidate), self.catalogue)

    def _sparing(self, profile: ModelProfile, candidate: Candidate) -> tuple[NodeModel, ...] | None:
        node = self.fleet.nodes[candidate.node]
        free_mb = _free_mb(node, candidate)
        return eviction.plan(profile, node, free_mb, self.catalogue, resident_before=self._old_enough)

    def _without_room(self, profile: ModelProfile, candidates: tuple[Candidate, ...]) -> Placement:
        """Full everywhere: for now, or for good."""
        places = [(self.fleet.nodes[candidate.node], candidate) for candidate in candidates]
        for node, candidate in places:
            if eviction.room_may_come(profile, node, _free_mb(node, candidate), self.catalogue):
                busy = ", ".join(f"{held.id} ({held.load} requests)" for held in node.models.values() if held.load)
                reason = f"{node.name} has room once {busy or 'its models'} can go"
                return Placement(
                    profile.id, "waits", (node.name,), candidate.devices, vram_mb=profile.vram_mb, reason=reason
                )
        if elsewhere := [name for name, node in self.fleet.nodes.items() if _is_missed(node, profile)]:
            reason = f"there is room on {' or '.join(elsewhere)}, which does not take requests now"
            return Placement(profile.id, "waits", tuple(elsewhere), vram_mb=profile.vram_mb, reason=reason)
        told = "; ".join(
            eviction.why_no_room(profile, node, _free_mb(node, candidate), self.catalogue) for node, candidate in places
        )
        reason = f"no neuron has room for {profile.id}: needs {_mb(profile.vram_mb)}; {told}"
        return Placement(profile.id, "impossible", vram_mb=profile.vram_mb, reason=reason)

    def _load(self, profile: ModelProfile, node: Node, candidate: Candidate, victims: tuple[NodeModel, ...]) -> None:
        """The neuron's next answer, were it loaded: a report without the victims and with the newcomer."""
        gone = {held.id for held in victims}
        reports = [held.report for held in node.models.values() if held.report is not None and held.id not in gone]
        newcomer = ModelReport(
            neuron_model_id(profile), "loaded", devices=candidate.devices, vram_used_mb=profile.vram_mb, url="imagined:"
        )
        devices = tuple(
            _with_taken(device, self._taken_mb(device.index, profile, candidate, victims))
            for device in node.devices or ()
        )
        self.fleet.answered(node.name, NodeReport((*reports, newcomer), devices=devices))

    def _taken_mb(
        self, device: int, profile: ModelProfile, candidate: Candidate, victims: tuple[NodeModel, ...]
    ) -> int | None:
        """How much less is free on the device afterwards; None if nobody knows."""
        freed_mb = [held_mb(held, device, self.catalogue) for held in victims]
        known_mb = [freed for freed in freed_mb if freed is not None]
        if len(known_mb) < len(freed_mb):
            return None
        if device not in candidate.devices:
            return -round(sum(known_mb))
        return (
            None if profile.vram_mb is None else ceil(profile.vram_mb / len(candidate.devices)) - round(sum(known_mb))
        )


def _is_missed(node: Node, profile: ModelProfile) -> bool:
    """Whether a node that is down or drained could hold the model, were it there and empty."""
    if (node.healthy and not node.draining) or node.devices is None or not node.takes_placements:
        return False
    indices = feasible(profile, node.name, node.devices)
    if indices is None:
        return False
    need_mb = ceil((profile.vram_mb or 0) / len(indices))
    return all(device.vram_total_mb >= need_mb for device in node.devices if device.index in indices)


def _free_mb(node: Node, candidate: Candidate) -> dict[int, int]:
    """As last polled; a device whose reading is unknown is left out."""
    return {
        device.index: device.vram_free_mb
        for device in node.devices or ()
        if device.index in candidate.devices and device.vram_free_mb is not None
    }


def _with_taken(device: Device, taken_mb: int | None) -> Device:
    free_mb, used_mb = device.vram_free_mb, device.vram_used_mb
    if taken_mb is None:
        return replace(device, vram_free_mb=None, vram_used_mb=None)
    return replace(
        device,
        vram_free_mb=None if free_mb is None else free_mb - taken_mb,
        vram_used_mb=None if used_mb is None else used_mb + taken_mb,
    )


def _device_plans(before: Fleet, after: Fleet) -> tuple[DevicePlan, ...]:
    """Of the neurons that answer and say what they have."""
    return tuple(
        DevicePlan(name, was.index, was.vram_total_mb, was.vram_used_mb, will_be.vram_used_mb)
        for name, node in before.nodes.items()
        if node.healthy
        for was, will_be in zip(node.devices or (), after.nodes[name].devices or (), strict=True)
    )


# Words ................................................................................................................


def _mb(size: int | None) -> str:
    return "an unknown amount" if size is None else f"{size:,} MB"


def _why_infeasible(profile: ModelProfile, fleet: Fleet) -> str:
    """What it needs, and what everybody has."""
    count = profile.min_devices
    needs = f"{count} device{'s' if count > 1 else ''}"
    if profile.min_device_vram_mb is not None:
        needs += f" of {_mb(profile.min_device_vram_mb)}"
    if profile.pinned_on:
        needs += f" on {' or '.join(profile.pinned_on)}, where it is pinned"
    there = [f"{node.name} has {_devices(node)}" for node in fleet.nodes.values() if node.healthy and node.devices]
    return f"no neuron can hold {profile.id}: needs {needs}; {', '.join(there) or 'no neuron says what it has'}"


def _devices(node: Node) -> str:
    sizes = Counter(device.vram_total_mb for device in node.devices or ())
    return " and ".join(f"{count} of {_mb(size)}" for size, count in sorted(sizes.items(), reverse=True))


def _notes(changes: CatalogueDiff, fleet: Fleet) -> Iterator[str]:
    """What a change of a profile does not do."""
    for change in changes.models_changed:
        if where := _holders(change.id, fleet):
            told = ", ".join(field.name for field in change.fields)
            yield f"{change.id} is loaded on {where}: its {told} will count when it is loaded next"
    for model in changes.models_removed:
        if where := _holders(model, fleet):
            yield f"{model} stays loaded on {where} until it has to make room, and is not loaded again after that"


def _holders(model: str, fleet: Fleet) -> str:
    return ", ".join(held.node.name for held in fleet.holders(model) if held.routable)
