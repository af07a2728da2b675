"""Which models may be evicted for another, what that frees, and the fewest that make room. Pure.

The only place for these rules: the choice of devices (`placement.py`), loading, drains and plans all call them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import NamedTuple

from catalogue.models import DEFAULT_PRIORITY, Catalogue, ModelProfile
from catalogue.placement import may_displace
from gateway.fleet.model_names import catalogue_id, neuron_model_id, profile_of
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.routing.sleepers import ASLEEP, load_share_mb, sleeper_on

__all__ = [
    "Victim",
    "enough_victims",
    "evictable",
    "find_victims",
    "is_guarded",
    "last_used",
    "may_be_evicted",
    "priority_of",
    "resident_before",
    "resident_mb",
]

ROUNDING_MB = 1e-6  # a model's memory on one device is a fraction, and sums of fractions are not exact


class Victim(NamedTuple):
    """A model that may be evicted, and what that frees in MB by device index."""

    resident: NodeModel
    frees_mb: Mapping[int, float]


def find_victims(
    profile: ModelProfile,
    node: Node,
    free_mb: Mapping[int, int],
    catalogue: Catalogue,
    *,
    may_evict: Callable[[NodeModel], bool] | None = None,
    wakes: bool = False,
) -> tuple[NodeModel, ...] | None:
    """The fewest models, least recently used first, whose eviction makes room for `profile`.

    A load of a model that sleeps on the node, but on other devices, needs the sleeper out of the way: it comes first.

    Args:
        profile: The model to load.
        node: Where it is to be loaded.
        free_mb: Free memory in MB by device index, of the devices that the load will use.
        catalogue: For residency priorities.
        may_evict: Narrows the choice further; None for every permitted model.
        wakes: The load wakes the model where it sleeps.

    Returns:
        Empty if the model fits already, or if its need or the devices are unknown. None if evicting every permitted
        model is not enough.
    """
    sleeper = sleeper_on(node, profile)
    need_mb = load_share_mb(profile, sleeper if wakes else None)
    ended = () if sleeper is None or wakes else (sleeper,)
    if need_mb is None:
        return ended
    freed_mb = {index: sum(resident_mb(model, index, catalogue) or 0.0 for model in ended) for index in free_mb}
    missing_mb = {index: ceil(need_mb - free - freed_mb[index]) for index, free in free_mb.items()}
    missing_mb = {index: missing for index, missing in missing_mb.items() if missing > 0}
    if not missing_mb:
        return ended
    found = enough_victims(missing_mb, evictable(profile, node, missing_mb, catalogue, may_evict=may_evict))
    return None if found is None else (*ended, *(victim.resident for victim in found))


def evictable(
    profile: ModelProfile,
    node: Node,
    devices: Iterable[int],
    catalogue: Catalogue,
    *,
    may_evict: Callable[[NodeModel], bool] | None = None,
) -> list[Victim]:
    """The models that `profile` may evict and that free memory on these devices, least recently used first."""
    residents = [
        resident
        for resident in node.models.values()
        if may_be_evicted(resident, profile, catalogue) and (may_evict is None or may_evict(resident))
    ]
    victims = []
    for resident in sorted(residents, key=last_used):
        # A model of unknown size frees nothing that can be counted on.
        frees_mb = {index: frees for index in devices if (frees := resident_mb(resident, index, catalogue) or 0.0)}
        if frees_mb:
            victims.append(Victim(resident, frees_mb))
    return victims


def enough_victims(missing_mb: Mapping[int, int], candidates: Sequence[Victim]) -> list[Victim] | None:
    """As many of the candidates, in their order, as free the missing memory on every device; None if all are too few.

    Args:
        missing_mb: What has to become free, in MB by device index.
        candidates: From `evictable`.
    """
    lacking_mb: dict[int, float] = {index: missing for index, missing in missing_mb.items() if missing > 0}
    victims: list[Victim] = []
    for victim in candidates:
        if not lacking_mb:
            break
        if missing_mb.keys().isdisjoint(victim.frees_mb):
            continue
        victims.append(victim)
        for index in [index for index in victim.frees_mb if index in lacking_mb]:
            lacking_mb[index] -= victim.frees_mb[index]
            if lacking_mb[index] <= ROUNDING_MB:
                del lacking_mb[index]
    return None if lacking_mb else _without_needless(missing_mb, victims)


def _without_needless(missing_mb: Mapping[int, int], victims: list[Victim]) -> list[Victim]:
    """A later, larger victim may make an earlier, smaller one needless. The most recently used are spared first."""
    for spared in reversed(list(victims)):
        rest = [victim for victim in victims if victim is not spared]
        concerned = missing_mb.keys() & spared.frees_mb.keys()
        if all(
            sum(victim.frees_mb.get(index, 0.0) for victim in rest) >= missing_mb[index] - ROUNDING_MB
            for index in concerned
        ):
            victims = rest
    return victims


def last_used(resident: NodeModel) -> tuple[float, str]:
    """The sort key of eviction. A model that this gateway never used counts from the time when it was loaded."""
    used_at = resident.last_used if resident.last_used is not None else resident.resident_since
    return (used_at or 0.0, resident.id)


def resident_before(time: float) -> Callable[[NodeModel], bool]:
    """Whether a model was loaded at or before this time (the fleet's clock, s): for the minimum residency."""
    return lambda resident: resident.resident_since is None or resident.resident_since <= time


def resident_mb(resident: NodeModel, device: int, catalogue: Catalogue) -> float | None:
    """What a loaded model takes on one device, in MB: reported by its neuron, else from the catalogue, else None."""
    if resident.report is None or device not in resident.report.devices:
        return 0.0
    used_mb = resident.report.vram_used_mb
    if used_mb is None:  # a neuron need not know
        profile = profile_of(resident.id, catalogue)
        used_mb = None if profile is None else profile.vram_mb
    return None if used_mb is None else used_mb / len(resident.report.devices)


# Which models may be displaced ........................................................................................


def may_be_evicted(resident: NodeModel, incoming: ModelProfile, catalogue: Catalogue) -> bool:
    """Whether `resident` may be unloaded to make room: it is loaded or asleep, idle, not guarded, of a permitted class.

    It must not be `incoming` itself, which may sleep there. Idle means no lease of ours, and at the neuron no request
    of others: what the neuron still counts of our own requests that have ended does not protect a model.
    """
    if resident.status not in {"loaded", ASLEEP} or resident.load or is_guarded(resident.id, catalogue):
        return False
    if resident.status == ASLEEP and resident.id in {incoming.id, neuron_model_id(incoming)}:
        return False
    return may_displace(incoming.priority, priority_of(resident.id, catalogue))


def is_guarded(neuron_id: str, catalogue: Catalogue) -> bool:
    """Whether the model must stay because an alias is about to move from it or to it."""
    return bool(catalogue.guarded) and catalogue_id(neuron_id, catalogue) in catalogue.guarded


def priority_of(neuron_id: str, catalogue: Catalogue) -> int:
    """The residency priority of the model that a neuron lists as `neuron_id`."""
    profile = profile_of(neuron_id, catalogue)
    return DEFAULT_PRIORITY if profile is None else profile.priority
