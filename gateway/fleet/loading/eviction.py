"""Which models are evicted so that another fits, decided before the first unload. Pure; `make_room.py` evicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from catalogue.models import Catalogue, ModelProfile
from catalogue.placement import may_displace
from gateway.fleet.model_names import catalogue_id
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.routing.placement import (
    Candidate,
    Fit,
    LoadRank,
    load_rank,
    may_be_evicted,
    needed_mb,
    priority_of,
    resident_mb,
)
from gateway.fleet.state import Fleet

__all__ = [
    "find_victims",
    "find_victims_young_last",
    "fits",
    "idle_models",
    "rank_candidates",
    "room_may_come",
    "why_no_room",
]


def find_victims(
    profile: ModelProfile,
    node: Node,
    free_mb: Mapping[int, int],
    catalogue: Catalogue,
    *,
    loaded_before: float | None = None,
) -> tuple[NodeModel, ...] | None:
    """The fewest models, least recently used first, whose eviction makes room for `profile`.

    Args:
        profile: The model to load, split evenly over the devices of `free_mb`.
        node: Where it is to be loaded.
        free_mb: Free memory in MB by device index, of the devices that the load will use.
        catalogue: For residency priorities.
        loaded_before: Only models loaded before this time (Trio's clock, s) may be evicted; None for any.

    Returns:
        Empty if the model fits already, or if its need or the devices are unknown. None if evicting every permitted
        model is not enough.
    """
    if profile.vram_mb is None or not free_mb:
        return ()
    need_mb = needed_mb(profile.vram_mb, len(free_mb))
    missing_mb = {index: need_mb - free for index, free in free_mb.items() if free < need_mb}
    victims: list[_Victim] = []
    for resident in sorted(_evictable(profile, node, catalogue, loaded_before), key=_last_used):
        if not _is_lacking(missing_mb, victims):
            break
        # A model of unknown size frees nothing that can be counted on.
        frees_mb = {index: resident_mb(resident, index, catalogue) or 0.0 for index in missing_mb}
        if any(frees_mb.values()):
            victims.append(_Victim(resident, frees_mb))
    if _is_lacking(missing_mb, victims):
        return None
    return tuple(victim.resident for victim in _without_needless(missing_mb, victims))


def find_victims_young_last(
    profile: ModelProfile, node: Node, free_mb: Mapping[int, int], catalogue: Catalogue, *, loaded_before: float
) -> tuple[NodeModel, ...] | None:
    """As `find_victims`; models loaded after `loaded_before` are evicted only if there is no room without that."""
    old_only = find_victims(profile, node, free_mb, catalogue, loaded_before=loaded_before)
    return old_only if old_only is not None else find_victims(profile, node, free_mb, catalogue)


def rank_candidates(
    profile: ModelProfile, candidates: Iterable[Candidate], fleet: Fleet, catalogue: Catalogue, *, loaded_before: float
) -> list[tuple[LoadRank, Candidate]]:
    """The candidates in the order in which a load tries them, each with its rank.

    Among those that need evictions, a candidate that spares the models loaded after `loaded_before` comes first:
    models that evict each other in turn cost more loads than they serve requests.
    """

    def evicts_young(candidate: Candidate) -> bool:
        if candidate.fit is not Fit.AFTER_EVICTION:
            return False
        node = fleet.nodes[candidate.node]
        free_mb = node.free_mb(candidate.devices)
        return find_victims(profile, node, free_mb, catalogue, loaded_before=loaded_before) is None

    return sorted((load_rank(candidate, evicts_young=evicts_young(candidate)), candidate) for candidate in candidates)


class _Victim(NamedTuple):
    resident: NodeModel
    frees_mb: Mapping[int, float]


def _evictable(profile: ModelProfile, node: Node, catalogue: Catalogue, loaded_before: float | None) -> list[NodeModel]:
    return [
        resident
        for resident in node.models.values()
        if may_be_evicted(resident, profile, catalogue)
        and (loaded_before is None or resident.resident_since is None or resident.resident_since <= loaded_before)
    ]


def _last_used(resident: NodeModel) -> tuple[float, str]:
    """A model that this gateway never used counts from the time when it was loaded."""
    used_at = resident.last_used if resident.last_used is not None else resident.resident_since
    return (used_at or 0.0, resident.id)


def _is_lacking(missing_mb: Mapping[int, int], victims: Sequence[_Victim]) -> bool:
    return any(sum(victim.frees_mb[index] for victim in victims) < missing for index, missing in missing_mb.items())


def _without_needless(missing_mb: Mapping[int, int], victims: list[_Victim]) -> list[_Victim]:
    """A later, larger victim may make an earlier, smaller one needless. The most recently used are spared first."""
    for spared in reversed(list(victims)):
        rest = [victim for victim in victims if victim is not spared]
        if not _is_lacking(missing_mb, rest):
            victims = rest
    return victims


def fits(profile: ModelProfile, free_mb: Mapping[int, int], *, over: int) -> bool:
    """Whether each of `over` devices has room for its share. An unknown need or an unknown reading counts as room."""
    return profile.vram_mb is None or all(free >= needed_mb(profile.vram_mb, over) for free in free_mb.values())


# Whether waiting for room can help ....................................................................................


def room_may_come(profile: ModelProfile, node: Node, free_mb: Mapping[int, int], catalogue: Catalogue) -> bool:
    """Whether there is room once every model that `profile` may displace is idle.

    A displaceable model of unknown size may be large enough: unknown is not zero. A stuck one (`poisoned`) keeps its
    memory until its neuron is restarted, so it does not count.
    """
    if profile.vram_mb is None or not free_mb:
        return True
    need_mb = needed_mb(profile.vram_mb, len(free_mb))
    residents = [resident for resident in node.models.values() if resident.status is not None and not resident.is_stuck]
    displaceable = [resident for resident in residents if _may_displace_once_idle(resident, profile, catalogue)]
    for index, free in free_mb.items():
        sizes_mb = [resident_mb(resident, index, catalogue) for resident in displaceable]
        known_mb = [size for size in sizes_mb if size is not None]
        if len(known_mb) == len(sizes_mb) and free + sum(known_mb) < need_mb:
            return False
    return True


def _may_displace_once_idle(resident: NodeModel, incoming: ModelProfile, catalogue: Catalogue) -> bool:
    return not _serves_until_loaded(resident, incoming, catalogue) and may_displace(
        incoming.priority, priority_of(resident.id, catalogue)
    )


def _serves_until_loaded(resident: NodeModel, incoming: ModelProfile, catalogue: Catalogue) -> bool:
    """Whether an alias needs `resident` until `incoming` is loaded: then it cannot make room for `incoming`."""
    return catalogue_id(resident.id, catalogue) in catalogue.kept_until_loaded(incoming.id)


def why_no_room(profile: ModelProfile, node: Node, free_mb: Mapping[int, int], catalogue: Catalogue) -> str:
    """For operators: which models take the room on this node, or that the node is too small."""
    residents = [resident for resident in node.models.values() if resident.status is not None]
    kept = sorted(resident.id for resident in residents if _serves_until_loaded(resident, profile, catalogue))
    if kept:
        return (
            f"{node.name} is held by {', '.join(kept)}, which serves the alias until '{profile.id}' is loaded;"
            f' set swap = "cold" on the alias to move it without waiting'
        )
    above = sorted(
        resident.id for resident in residents if not may_displace(profile.priority, priority_of(resident.id, catalogue))
    )
    if above:
        return f"{node.name} is held by {', '.join(above)}, whose residency_priority is higher"
    stuck = sorted(f"{resident.id} ({resident.status})" for resident in node.models.values() if resident.is_stuck)
    if stuck:
        return f"{node.name} is held by {', '.join(stuck)}; restart its neuron to free the memory"
    total_mb = sum(device.vram_total_mb for device in node.devices or () if device.index in free_mb)
    return f"{node.name} has {total_mb} MB on the devices for it, and too little free even with every model unloaded"


# Idle models ..........................................................................................................


def idle_models(node: Node, now: float, ttl_s: Callable[[str], float]) -> list[NodeModel]:
    """The loaded models that have been idle for longer than their time to live. `ttl_s` 0 means no limit."""
    return [
        resident
        for resident in node.models.values()
        if resident.status == "loaded"
        and not resident.leases
        and not resident.other_requests
        and (allowed_s := ttl_s(resident.id)) > 0
        and now - _last_used(resident)[0] >= allowed_s
    ]
