"""On which nodes a model can be loaded, and in which order they are tried: memory, evictable models, ranking. No I/O.

The only place for these rules: routing, loading, eviction and the planning of a catalogue change all call them. Which
models are evicted for a load is `loading/eviction.py`.
"""

from __future__ import annotations

from enum import IntEnum
from math import ceil
from typing import NamedTuple

from catalogue.models import DEFAULT_PRIORITY, Catalogue, ModelProfile
from catalogue.placement import feasible, may_displace
from gateway.fleet.model_names import catalogue_id, profile_of
from gateway.fleet.node import Node, NodeModel

__all__ = [
    "Candidate",
    "Fit",
    "LoadRank",
    "candidate_on",
    "is_guarded",
    "load_rank",
    "may_be_evicted",
    "may_be_feasible",
    "needed_mb",
    "priority_of",
    "resident_mb",
]


class Fit(IntEnum):
    """How well a model fits a node now; smaller is better."""

    FREE = 0  # into memory that is free
    AFTER_EVICTION = 1  # once idle models that it may displace are unloaded
    UNKNOWN = 2  # the model's need or the node's free memory is unknown, which is not zero
    FULL = 3  # not even then. Leases may end, and a poll may report more free memory


class Candidate(NamedTuple):
    """A node on which the model could be loaded. The load call names `devices`; `free_mb` is their free memory."""

    node: str
    devices: tuple[int, ...]
    fit: Fit
    free_mb: int | None


class LoadRank(NamedTuple):
    """The sort key of candidates: the smallest is tried first.

    "Pinned first" needs no field: a profile with `pinned_on` is feasible on those nodes only.
    """

    fit: Fit
    evicts_young: bool
    minus_free_mb: int
    node: str


def load_rank(candidate: Candidate, *, evicts_young: bool = False) -> LoadRank:
    """Free memory first, then after evictions, then the most free memory, then the name.

    `evicts_young`: room there costs a model that was loaded less than the minimum residency ago.
    """
    return LoadRank(candidate.fit, evicts_young, -(candidate.free_mb or 0), candidate.node)


def candidate_on(node: Node, profile: ModelProfile, catalogue: Catalogue) -> Candidate | None:
    """The node as a candidate for a load of `profile`; None if its topology is unknown or does not satisfy it."""
    if node.devices is None or not node.takes_placements:
        return None
    indices = feasible(profile, node.name, node.devices)
    if indices is None:
        return None
    free_mb = node.free_mb(indices)
    if len(free_mb) < len(indices):
        return Candidate(node.name, indices, Fit.UNKNOWN, None)
    return Candidate(node.name, indices, _fit(profile, node, free_mb, catalogue), sum(free_mb.values()))


def may_be_feasible(profile: ModelProfile, node: Node) -> bool:
    """Whether a node that is down or drained could have the model.

    One that never answered has no known topology: it counts only if the profile is pinned on it.
    """
    if not node.takes_placements:
        return False
    if node.devices is None:
        return node.name in profile.pinned_on
    return feasible(profile, node.name, node.devices) is not None


def _fit(profile: ModelProfile, node: Node, free_mb: dict[int, int], catalogue: Catalogue) -> Fit:
    """Every device must have room for its share: free memory on one GPU does not help another."""
    if profile.vram_mb is None:
        return Fit.UNKNOWN
    need_mb = needed_mb(profile.vram_mb, len(free_mb))
    if all(free >= need_mb for free in free_mb.values()):
        return Fit.FREE
    evictable = [resident for resident in node.models.values() if may_be_evicted(resident, profile, catalogue)]
    enough = all(
        free + sum(resident_mb(resident, index, catalogue) or 0.0 for resident in evictable) >= need_mb
        for index, free in free_mb.items()
    )
    return Fit.AFTER_EVICTION if enough else Fit.FULL


# Memory ...............................................................................................................


def needed_mb(vram_mb: int, devices: int) -> int:
    """What a model of `vram_mb` takes on each of `devices` GPUs, in MB: it is split evenly."""
    return ceil(vram_mb / devices) if devices else 0


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
    """Whether `resident` may be unloaded to make room: it is loaded, idle, not guarded, and of a permitted class.

    Idle means no lease of ours, and at the neuron no request of others: what the neuron still counts of our own
    requests that have ended does not protect a model. Minimum residency and the order are for `loading/eviction.py`.
    """
    if resident.status != "loaded" or resident.load or is_guarded(resident.id, catalogue):
        return False
    return may_displace(incoming.priority, priority_of(resident.id, catalogue))


def is_guarded(neuron_id: str, catalogue: Catalogue) -> bool:
    """Whether the model must stay because an alias is about to move from it or to it."""
    return bool(catalogue.guarded) and catalogue_id(neuron_id, catalogue) in catalogue.guarded


def priority_of(neuron_id: str, catalogue: Catalogue) -> int:
    """The residency priority of the model that a neuron lists as `neuron_id`."""
    profile = profile_of(neuron_id, catalogue)
    return DEFAULT_PRIORITY if profile is None else profile.priority
