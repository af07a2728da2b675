"""Which models are evicted so that another fits, decided before the first unload. Pure; `make_room.py` evicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Protocol

from catalogue.models import Catalogue, ModelProfile
from catalogue.placement import may_displace, share_mb
from gateway.fleet.model_names import catalogue_id
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.routing.placement import Candidate, Fit, LoadRank, candidate_on, devices_for, load_rank
from gateway.fleet.routing.sleepers import load_share_mb
from gateway.fleet.routing.victims import find_victims, last_used, priority_of, resident_before, resident_mb
from gateway.fleet.state import Fleet

__all__ = [
    "LoadTimes",
    "busy_models",
    "find_victims_young_last",
    "fits",
    "idle_models",
    "rank_candidates",
    "room_may_come",
    "why_no_room",
]


class LoadTimes(Protocol):
    """How long loads take, in seconds: learnt, or else assumed."""

    def expected_s(self, node: str, model: str, *, wakes: bool) -> float:
        """Until the model is loaded on this node, or woken."""
        ...

    def return_s(self, node: str, model: str) -> float:
        """Until a model that is evicted there is back: woken, if it has been woken there before."""
        ...


def find_victims_young_last(
    profile: ModelProfile,
    node: Node,
    free_mb: Mapping[int, int],
    catalogue: Catalogue,
    *,
    loaded_before: float,
    wakes: bool = False,
) -> tuple[NodeModel, ...] | None:
    """As `find_victims`; models loaded after `loaded_before` are evicted only if there is no room without that."""
    is_old = resident_before(loaded_before)
    old_only = find_victims(profile, node, free_mb, catalogue, may_evict=is_old, wakes=wakes)
    return old_only if old_only is not None else find_victims(profile, node, free_mb, catalogue, wakes=wakes)


def rank_candidates(
    profile: ModelProfile,
    candidates: Iterable[Candidate],
    fleet: Fleet,
    catalogue: Catalogue,
    *,
    loaded_before: float,
    times: LoadTimes,
) -> list[tuple[LoadRank, Candidate]]:
    """The candidates in the order in which a load tries them, each with its rank.

    If the model sleeps on one of them, each has a price: the seconds of the load and of the return of what it evicts.
    Waking comes before every load that costs more, even one into free memory, unless it evicts a young model.

    Among those that need evictions, a candidate that spares the models loaded after `loaded_before` comes first:
    models that evict each other in turn cost more loads than they serve requests. For the same reason a candidate gets
    other devices of its node if these spare such models.
    """
    found = [_sparing_young(profile, given, fleet, catalogue, loaded_before) for given in candidates]
    if not any(candidate.wakes for candidate, _ in found):
        return sorted((load_rank(candidate, evicts_young=young), candidate) for candidate, young in found)
    prices_s = [
        times.expected_s(candidate.node, profile.id, wakes=candidate.wakes)
        + _evictions_s(
            profile, candidate, fleet.nodes[candidate.node], catalogue, loaded_before=loaded_before, times=times
        )
        for candidate, _ in found
    ]
    waking_s = min(
        (
            price_s
            for (candidate, young), price_s in zip(found, prices_s, strict=True)
            if candidate.wakes and not young and candidate.fit is not Fit.FULL
        ),
        default=inf,
    )
    return sorted(
        (
            load_rank(
                candidate,
                evicts_young=young,
                costs_more=not candidate.wakes and price_s > waking_s,
                price_s=price_s,
            ),
            candidate,
        )
        for (candidate, young), price_s in zip(found, prices_s, strict=True)
    )


def _sparing_young(
    profile: ModelProfile, given: Candidate, fleet: Fleet, catalogue: Catalogue, loaded_before: float
) -> tuple[Candidate, bool]:
    """The candidate, with devices that spare young models if there are any; and whether a young model is evicted."""
    node, is_old = fleet.nodes[given.node], resident_before(loaded_before)
    if given.fit is not Fit.AFTER_EVICTION:
        return given, False
    free_mb = node.free_mb(given.devices)
    if find_victims(profile, node, free_mb, catalogue, may_evict=is_old, wakes=given.wakes) is not None:
        return given, False
    sparing = candidate_on(node, profile, catalogue, may_evict=is_old)
    if sparing is not None and sparing.fit is Fit.AFTER_EVICTION:
        return sparing, False
    return given, True


def _evictions_s(
    profile: ModelProfile,
    candidate: Candidate,
    node: Node,
    catalogue: Catalogue,
    *,
    loaded_before: float,
    times: LoadTimes,
) -> float:
    """How long the return of the models takes that a load there evicts."""
    if candidate.fit is not Fit.AFTER_EVICTION:
        return 0.0
    free_mb = node.free_mb(candidate.devices)
    victims = find_victims_young_last(
        profile, node, free_mb, catalogue, loaded_before=loaded_before, wakes=candidate.wakes
    )
    return sum(times.return_s(node.name, catalogue_id(victim.id, catalogue)) for victim in victims or ())


def fits(profile: ModelProfile, free_mb: Mapping[int, int], sleeper: NodeModel | None = None) -> bool:
    """Whether each device has room for its share. An unknown need or an unknown reading counts as room."""
    need_mb = load_share_mb(profile, sleeper)
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
            f"{node.name}'s memory is taken by {', '.join(kept)}, which serves the alias until '{profile.id}' is "
            f'loaded; set swap = "cold" on the alias to move it without waiting'
        )
    above = sorted(
        resident.id for resident in residents if not may_displace(profile.priority, priority_of(resident.id, catalogue))
    )
    if above:
        return f"{node.name}'s memory is taken by {', '.join(above)}, whose residency_priority is higher"
    stuck = sorted(f"{resident.id} ({resident.status})" for resident in node.models.values() if resident.is_stuck)
    if stuck:
        return f"{node.name}'s memory is taken by {', '.join(stuck)}; restart its neuron to free the memory"
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
