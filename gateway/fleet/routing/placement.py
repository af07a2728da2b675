"""On which nodes and devices a model can be loaded, and in which order they are tried. No I/O.

The only place for these rules: routing, `/v1/models`, loading, drains and the planning of a catalogue change all call
them. Which models are evicted for a load is `victims.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import combinations
from math import comb
from typing import NamedTuple

from catalogue.models import Catalogue, ModelProfile
from catalogue.placement import usable_devices
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.routing.sleepers import load_share_mb, sleeper_on
from gateway.fleet.routing.victims import Victim, enough_victims, evictable, last_used

__all__ = [
    "Candidate",
    "Fit",
    "LoadRank",
    "candidate_on",
    "devices_for",
    "load_rank",
    "may_be_feasible",
]

# How many sets of devices are compared: all of them for pairs of 16 GPUs (120), and for any number of 8 GPUs (70). Half
# of 16 GPUs have 12,870 sets, and to compare them all would block the gateway for a second.
MAX_DEVICE_SETS = 128


class Fit(IntEnum):
    """How well a model fits a node now; smaller is better."""

    FREE = 0  # into memory that is free
    AFTER_EVICTION = 1  # once idle models that it may displace are unloaded
    UNKNOWN = 2  # the model's need or the node's free memory is unknown, which is not zero
    FULL = 3  # not even then. Leases may end, and a poll may report more free memory


class Candidate(NamedTuple):
    """A node on which the model could be loaded. The load call names `devices`; `free_mb` is their free memory.

    `wakes`: the model sleeps there, and the load wakes it.
    """

    node: str
    devices: tuple[int, ...]
    fit: Fit
    free_mb: int | None
    wakes: bool = False


class LoadRank(NamedTuple):
    """The sort key of candidates: the smallest is tried first.

    "Pinned first" needs no field: a profile with `pinned_on` is feasible on those nodes only. `costs_more` is False and
    `price_s` 0 unless the model sleeps on one of the candidates; see `loading/eviction.py`.
    """

    costs_more: bool
    fit: Fit
    evicts_young: bool
    price_s: float
    minus_free_mb: int
    node: str


def load_rank(
    candidate: Candidate, *, evicts_young: bool = False, costs_more: bool = False, price_s: float = 0.0
) -> LoadRank:
    """Free memory first, then after evictions, then the most free memory, then the name.

    Args:
        candidate: Where.
        evicts_young: Room there costs a model that was loaded less than the minimum residency ago.
        costs_more: Waking the model on another node takes less time.
        price_s: How long the load takes, and the return of what it evicts.
    """
    return LoadRank(costs_more, candidate.fit, evicts_young, price_s, -(candidate.free_mb or 0), candidate.node)


# Whether a node can hold the model at all .............................................................................


def devices_for(profile: ModelProfile, node: Node) -> tuple[int, ...] | None:
    """The node's devices that are large enough for the model; None if it is infeasible there or nothing is known."""
    if node.devices is None or not node.takes_placements:
        return None
    return usable_devices(profile, node.name, node.devices)


def may_be_feasible(profile: ModelProfile, node: Node) -> bool:
    """Whether a node that is down or drained could have the model.

    One that never answered has no known topology: it counts only if the profile is pinned on it.
    """
    if node.devices is None and node.takes_placements:
        return node.name in profile.pinned_on
    return devices_for(profile, node) is not None


# The devices of a load ................................................................................................


def candidate_on(
    node: Node,
    profile: ModelProfile,
    catalogue: Catalogue,
    *,
    may_evict: Callable[[NodeModel], bool] | None = None,
    free_mb: Mapping[int, int] | None = None,
) -> Candidate | None:
    """The node as a candidate for a load of `profile`; None if its topology is unknown or does not satisfy it.

    Of the sets of `min_devices` devices, it takes the one that fits into free memory with the least left over. If none
    does, it takes the one whose eviction is cheapest: the fewest models, then the least recently used. Ties by index.

    A model that sleeps on the node is woken where it sleeps. Only if there is no room for that, not even after
    evictions, it is loaded anew on other devices; then the sleeper is one of the victims.

    Args:
        node: Any node.
        profile: The model to load.
        catalogue: For residency priorities.
        may_evict: Narrows which of the permitted models may be evicted; None for all.
        free_mb: Free memory in MB by device index, for readings newer than the node's; None for the last poll's.
    """
    usable = devices_for(profile, node)
    if usable is None:
        return None
    readings_mb = node.free_mb([device.index for device in node.devices or ()]) if free_mb is None else free_mb
    sleeper = sleeper_on(node, profile)
    wakes = False
    if sleeper is not None and sleeper.report is not None:
        fit, devices = _choose_devices(
            node, profile, catalogue, sleeper.report.devices, may_evict=may_evict, free_mb=readings_mb, sleeper=sleeper
        )
        wakes = fit is not Fit.FULL
    if not wakes:
        fit, devices = _choose_devices(node, profile, catalogue, usable, may_evict=may_evict, free_mb=readings_mb)
        if sleeper is not None and fit is Fit.FREE:
            fit = Fit.AFTER_EVICTION
    known_mb = [readings_mb[index] for index in devices if index in readings_mb]
    return Candidate(
        node.name, tuple(sorted(devices)), fit, sum(known_mb) if len(known_mb) == len(devices) else None, wakes
    )


def _choose_devices(
    node: Node,
    profile: ModelProfile,
    catalogue: Catalogue,
    usable: Sequence[int],
    *,
    may_evict: Callable[[NodeModel], bool] | None,
    free_mb: Mapping[int, int],
    sleeper: NodeModel | None = None,
) -> tuple[Fit, Sequence[int]]:
    """Every device must have room for its share: free memory on one GPU does not help another."""
    count, need_mb = profile.min_devices if sleeper is None else len(usable), load_share_mb(profile, sleeper)
    # The most free memory first. An unknown reading may be anything, so it is better than none.
    roomiest = sorted(usable, key=lambda index: (-free_mb.get(index, 1), index))
    if need_mb is None:
        return Fit.UNKNOWN, roomiest[:count]
    known = [index for index in usable if index in free_mb]
    fitting = sorted((index for index in known if free_mb[index] >= need_mb), key=lambda i: (free_mb[i], i))
    if len(fitting) >= count:
        return Fit.FREE, fitting[:count]
    missing_mb = {index: max(need_mb - free_mb[index], 0) for index in known}
    victims = evictable(profile, node, missing_mb, catalogue, may_evict=may_evict)
    alone = _victims_by_device(missing_mb, victims)
    if len(alone) >= count:
        return Fit.AFTER_EVICTION, _cheapest_set(count, missing_mb, victims, alone)
    unknown = [index for index in usable if index not in free_mb]
    possible = [*fitting, *unknown, *(index for index in alone if index not in fitting)]
    if len(possible) >= count:
        return Fit.UNKNOWN, possible[:count]
    return Fit.FULL, roomiest[:count]


def _victims_by_device(missing_mb: Mapping[int, int], victims: Sequence[Victim]) -> dict[int, list[Victim]]:
    """For each device that can be made to fit, the victims that it needs alone; by index."""
    found = {index: enough_victims({index: missing}, victims) for index, missing in missing_mb.items()}
    return {index: needed for index, needed in found.items() if needed is not None}


def _cheapest_set(
    count: int, missing_mb: Mapping[int, int], victims: Sequence[Victim], alone: Mapping[int, list[Victim]]
) -> tuple[int, ...]:
    """The set of `count` devices of `alone` whose eviction is cheapest. Any set can be made to fit."""

    def cost(devices: tuple[int, ...]) -> tuple[int, list[float], tuple[int, ...]]:
        missing = {index: missing_mb[index] for index in devices if missing_mb[index]}
        needed = enough_victims(missing, victims) or []
        used_at = sorted((last_used(victim.resident)[0] for victim in needed), reverse=True)
        return (len(needed), used_at, devices)

    return min(_device_sets(count, alone), key=cost)


def _device_sets(count: int, alone: Mapping[int, list[Victim]]) -> Iterator[tuple[int, ...]]:
    """The sets to compare: all of them, or those of the most promising devices if there are too many.

    A device is promising if its victims are few. A victim that takes several devices counts for each of them in part,
    since one eviction frees them all.
    """
    spans: dict[str, int] = {}
    for needed in alone.values():
        for victim in needed:
            spans[victim.resident.id] = spans.get(victim.resident.id, 0) + 1

    def promise(index: int) -> tuple[float, list[float], int]:
        needed = alone[index]
        parts = sum(1 / min(count, spans[victim.resident.id]) for victim in needed)
        return (parts, sorted((last_used(victim.resident)[0] for victim in needed), reverse=True), index)

    width = len(alone)
    while width > count and comb(width, count) > MAX_DEVICE_SETS:
        width -= 1
    return combinations(sorted(sorted(alone, key=promise)[:width]), count)
