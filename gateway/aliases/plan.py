"""The plan of a change: what a new `models.toml` would load and evict, and what is impossible. Pure.

A plan is a forecast on a copy of the fleet (`planned_fleet.py`): requests come and go until the change happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from catalogue.diff import CatalogueDiff, diff, shown_targets
from catalogue.models import Alias, Catalogue
from catalogue.warming import hold_back, moved
from gateway.aliases.planned_fleet import Placement, PlannedFleet
from gateway.fleet.loading.load_history import LoadHistory
from gateway.fleet.model_names import holders_of, replicas_of
from gateway.fleet.readiness import FleetReadiness
from gateway.fleet.routing.choose import describe_state
from gateway.fleet.routing.sleepers import ASLEEP
from gateway.fleet.state import Fleet

__all__ = ["AliasPlan", "ChangePlan", "DevicePlan", "PlanVerdict", "plan"]

AliasChangeKind: TypeAlias = Literal["added", "changed", "removed", "affected"]
PlanVerdict: TypeAlias = Literal["nothing", "changes", "impossible"]


@dataclass(frozen=True, slots=True)
class AliasPlan:
    """What happens to one alias.

    Args:
        name: The alias.
        change: "affected" if the alias is the same in the file, but one of its models is not.
        old, new: Its targets as text; None if the alias does not exist before or after.
        is_warm: Whether it keeps its old targets until the new ones are loaded and have answered.
        placements: One for each target with a weight above 0.
        in_flight: Running requests by the model they went to. They end there.
    """

    name: str
    change: AliasChangeKind
    old: str | None
    new: str | None
    is_warm: bool
    placements: tuple[Placement, ...]
    in_flight: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The memory of one GPU, now and after all planned loads, in MB; None if unknown."""

    node: str
    device: int
    total_mb: int
    used_before_mb: int | None
    used_after_mb: int | None


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """The whole plan. `notes` say what an operator may not expect."""

    changes: CatalogueDiff
    aliases: tuple[AliasPlan, ...]
    devices: tuple[DevicePlan, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> PlanVerdict:
        """Whether anything changes, and whether it is possible."""
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
        """For the audit log: what is loaded, and what is evicted for it."""
        return {"aliases": [asdict(alias) for alias in self.aliases]}


def plan(
    in_force: Catalogue,
    wanted: Catalogue,
    fleet: Fleet,
    *,
    live: Iterable[tuple[str | None, str | None]] = (),
    min_residency_s: float = 0.0,
    times: LoadHistory | None = None,
) -> ChangePlan:
    """Plan the change from one catalogue to another.

    Args:
        in_force: The catalogue now. Aliases that are warming count as moved, those that could not be moved do not.
        wanted: The new catalogue. Its aliases that are warming, if it is accepted already, count as moved, too.
        fleet: The fleet now.
        live: Alias and model of every running request.
        min_residency_s: Models loaded less than this ago are evicted only if there is no other way.
        times: How long loads and wakes took; None if that is not known.
    """
    accepted, wanted = _with_moved(in_force, also_failed=False), _with_moved(wanted, also_failed=True)
    planned = PlannedFleet(
        fleet, hold_back(wanted, in_force, FleetReadiness(fleet)), min_residency_s, times or LoadHistory()
    )
    changes = diff(accepted, wanted)
    requests = Counter(pair for pair in live if pair[0] is not None and pair[1] is not None)
    aliases = tuple(
        replace(
            _plan_alias(name, kind, accepted.aliases.get(name), wanted.aliases.get(name), planned),
            in_flight={model or "": count for (alias, model), count in sorted(requests.items()) if alias == name},
        )
        for name, kind in _changed_aliases(changes, wanted)
    )
    models = {placement.model for alias in aliases for placement in alias.placements}
    notes = (*_swap_notes(in_force, wanted), *_notes(changes, fleet, accepted), *_state_notes(models, fleet, wanted))
    return ChangePlan(changes, aliases, _plan_devices(fleet, planned.fleet), notes)


def _with_moved(catalogue: Catalogue, *, also_failed: bool) -> Catalogue:
    """The catalogue with every alias that is warming, or also has failed to warm, on its new targets."""
    for name, warming in catalogue.warming.items():
        if also_failed or warming.failed is None:
            catalogue = moved(catalogue, name)
    return catalogue


def _changed_aliases(changes: CatalogueDiff, wanted: Catalogue) -> Iterator[tuple[str, AliasChangeKind]]:
    """The aliases that change, and those of which a model changes; by name."""
    kinds: dict[str, AliasChangeKind] = {}
    changed_models = {*changes.models_added, *changes.models_removed, *(change.id for change in changes.models_changed)}
    for name, alias in wanted.aliases.items():
        if alias.active & changed_models:
            kinds[name] = "affected"
    kinds |= dict.fromkeys((alias.name for alias in changes.aliases_removed), "removed")
    kinds |= dict.fromkeys((change.name for change in changes.aliases_changed), "changed")
    kinds |= dict.fromkeys((alias.name for alias in changes.aliases_added), "added")
    yield from sorted(kinds.items())


def _plan_alias(
    name: str, kind: AliasChangeKind, old: Alias | None, new: Alias | None, planned: PlannedFleet
) -> AliasPlan:
    is_warm = name in planned.catalogue.warming
    models = [] if new is None else [target.model for target in new.targets if target.weight > 0]
    placements = tuple(planned.place(model) for model in models)
    if is_warm and all(placement.state != "impossible" for placement in placements):
        planned.move(name)
    old_targets, new_targets = (None if alias is None else shown_targets(alias) for alias in (old, new))
    return AliasPlan(name, kind, old_targets, new_targets, is_warm, placements)


def _plan_devices(before: Fleet, after: Fleet) -> tuple[DevicePlan, ...]:
    """The devices of healthy neurons that report them."""
    return tuple(
        DevicePlan(name, now.index, now.vram_total_mb, now.vram_used_mb, planned.vram_used_mb)
        for name, node in before.nodes.items()
        if node.healthy
        for now, planned in zip(node.devices or (), after.nodes[name].devices or (), strict=True)
    )


def _swap_notes(in_force: Catalogue, wanted: Catalogue) -> Iterator[str]:
    """The aliases that are not where the file in force puts them, as far as the wanted file puts them there too."""
    for name, warming in in_force.warming.items():
        alias = wanted.aliases.get(name)
        if alias is not None and alias.targets == warming.wanted.targets:
            stays = f"{name} stays on {shown_targets(in_force.aliases[name])}"
            if warming.failed is None:
                yield f"{stays} until {shown_targets(warming.wanted)} is warm"
            else:
                yield f"{stays}: {shown_targets(warming.wanted)} could not be warmed: {warming.failed}"


def _notes(changes: CatalogueDiff, fleet: Fleet, before: Catalogue) -> Iterator[str]:
    """What a changed or removed profile does not cause."""
    for change in changes.models_changed:
        if nodes := _nodes_with(change.id, fleet, before):
            fields = ", ".join(field.name for field in change.fields)
            yield f"{change.id} is loaded on {nodes}: its new {fields} will apply from its next load on"
    for model in changes.models_removed:
        if nodes := _nodes_with(model, fleet, before):
            yield f"{model} stays loaded on {nodes} until it is evicted, and is not loaded again"


def _state_notes(models: Iterable[str], fleet: Fleet, catalogue: Catalogue) -> Iterator[str]:
    """Why the models of the change are recovering, poisoned or asleep where they are."""
    for model in sorted(models):
        for holder in holders_of(model, fleet, catalogue):
            if holder.node.healthy and (holder.is_stuck or holder.status in {"recovering", ASLEEP}):
                yield f"{model} is {describe_state(holder)}"


def _nodes_with(model: str, fleet: Fleet, catalogue: Catalogue) -> str:
    return ", ".join(replica.node.name for replica in replicas_of(model, fleet, catalogue))
