"""Which models are evicted so that another fits, decided before the first unload. Pure; `make_room.py` evicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from catalogue.models import Catalogue, ModelProfile
from catalogue.placement import may_displace, share_mb
from gateway.fleet.model_names import catalogue_id
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.routing.placement import Candidate, Fit, LoadRank, candidate_on, devices_for, load_rank
from gateway.fleet.routing.victims import find_victims, last_used, priority_of, resident_before, resident_mb
from gateway.fleet.state import Fleet

__all__ = [
    "busy_models",
    "find_victims_young_last",
    "fits",
    "idle_models",
    "rank_candidates",
    "room_may_come",
    "why_no_room",
]


def find_victims_young_last(
    profile: ModelProfile, node: Node, free_mb: Mapping[int, int], catalogue: Catalogue, *, loaded_before: float
) -> tuple[NodeModel, ...] | None:
    """As `find_victims`; models loaded after `loaded_before` are evicted only if there is no room without that."""
    old_only = find_victims(profile, node, free_mb, catalogue, may_evict=resident_before(loaded_before))
    return old_only if old_only is not None else find_victims(profile, node, free_mb, catalogue)


def rank_candidates(
    profile: ModelProfile, candidates: Iterable[Candidate], fleet: Fleet, catalogue: Catalogue, *, loaded_before: float
) -> list[tuple[LoadRank, Candidate]]:
    """The candidates in the order in which a load tries them, each with its rank.

    Among those that need evictions, a candidate that spares the models loaded after `loaded_before` comes first:
    models that evict each other in turn cost more loads than they serve requests. For the same reason a candidate gets
    other devices of its node if these spare such models.
    """
    is_old = resident_before(loaded_before)
    ranked = []
    for given in candidates:
        candidate, evicts_young = given, False
        node = fleet.nodes[given.node]
        if given.fit is Fit.AFTER_EVICTION and (
            find_victims(profile, node, node.free_mb(given.devices), catalogue, may_evict=is_old) is None
        ):
            sparing = candidate_on(node, profile, catalogue, may_evict=is_old)
            if sparing is not None and sparing.fit is Fit.AFTER_EVICTION:
                candidate = sparing
            else:
                evicts_young = True
        ranked.append((load_rank(candidate, evicts_young=evicts_young), candidate))
    return sorted(ranked)


def fits(profile: ModelProfile, free_mb: Mapping[int, int]) -> bool:
    """Whether each device has room for its share. An unknown need or an unknown reading counts as room."""
    need_mb = share_mb(profile)
    return need_mb is None or all(free >= need_mb for free in free_mb.values())


# Whether waiting for room can help ....................................................................................


def room_may_come(profile: ModelProfile, node: Node, catalogue: Catalogue) -> bool:
    """Whether enough devices have room once every model that `profile` may displace is idle.

    A displaceable model of unknown size may be large enough, and an unknown reading may be room: unknown is not zero. A
    stuck model (`poisoned`) keeps its memory until its neuron is restarted, so it does not count.
    """
    need_mb, devices = share_mb(profile), devices_for(profile, node) or ()
    if need_mb is None:
        return True
    free_mb = node.free_mb(devices)
    residents = [resident for resident in node.models.values() if resident.status is not None and not resident.is_stuck]
    displaceable = [resident for resident in residents if _may_displace_once_idle(resident, profile, catalogue)]

    def may_fit(device: int) -> bool:
        sizes_mb = [resident_mb(resident, device, catalogue) for resident in displaceable]
        known_mb = [size for size in sizes_mb if size is not None]
        return device not in free_mb or len(known_mb) < len(sizes_mb) or free_mb[device] + sum(known_mb) >= need_mb

    return sum(map(may_fit, devices)) >= profile.min_devices


def _may_displace_once_idle(resident: NodeModel, incoming: ModelProfile, catalogue: Catalogue) -> bool:
    return not _serves_until_loaded(resident, incoming, catalogue) and may_displace(
        incoming.priority, priority_of(resident.id, catalogue)
    )


def _serves_until_loaded(resident: NodeModel, incoming: ModelProfile, catalogue: Catalogue) -> bool:
    """Whether an alias needs `resident` until `incoming` is loaded: then it cannot make room for `incoming`."""
    return catalogue_id(resident.id, catalogue) in catalogue.kept_until_loaded(incoming.id)


def busy_models(node: Node) -> str:
    """For operators: the models with requests, and how many; empty if there are none."""
    busy = (model for model in node.models.values() if model.load)
    return ", ".join(f"{model.id} ({model.load} request{'s' if model.load > 1 else ''})" for model in busy)


def why_no_room(profile: ModelProfile, node: Node, catalogue: Catalogue) -> str:
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
    count = len(devices_for(profile, node) or ())
    devices = "device that is" if count == 1 else "devices that are"
    return (
        f"{node.name} has {count} {devices} large enough, with too little memory free even if every model is unloaded"
    )


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
        and now - last_used(resident)[0] >= allowed_s
    ]
