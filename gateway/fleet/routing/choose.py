"""`choose`: where one request goes, or why nowhere. Pure: decides on one view of the fleet, changes nothing, no I/O.

The order of the questions is the contract's, section 6. What is worth waiting for or loading is returned and left to
the lifecycle; what ends the request is raised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import IntEnum
from math import ceil
from typing import NamedTuple

from catalogue.models import DEFAULT_PRIORITY, Catalogue, ModelProfile
from catalogue.placement import feasible, may_displace
from gateway.config.engine_traits import PLAIN, Backend
from gateway.errors import ModelNotFound, NoFeasibleNeuron, ServiceUnavailable
from gateway.fleet.engine_access import EngineAccess
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.state import Fleet

# Whole seconds in Retry-After, per step of section 6 (and 13 for the last).
NO_HEALTHY_NODE_RETRY_S = 5
RECOVERING_RETRY_S = 2
UNHEALTHY_RETRY_S = 3
NOT_SERVING_RETRY_S = 5


class Route(NamedTuple):
    """Send it there, now.

    `model_id` is what the node lists the model as, and what the body must say, unless there is an `access` to say
    otherwise: that is how servers that are no neurons want it.
    """

    node: str
    model_id: str
    url: str
    access: EngineAccess | None = None
    backend: Backend = PLAIN


class WaitForLoad(NamedTuple):
    """Somebody is loading it; by node name."""

    model_id: str
    nodes: tuple[str, ...]


class Fit(IntEnum):
    """How well a model fits a node right now; smaller is better."""

    FREE = 0  # into live free memory
    AFTER_EVICTION = 1  # once idle models that it may displace are gone
    UNKNOWN = 2  # the model's need or the node's free memory is not known: that is not zero, and not enough
    FULL = 3  # not even then; leases may end, and more may be reported free


class Candidate(NamedTuple):
    """A feasible place for a cold load. `devices` are what the load call names; `free_mb` their free memory."""

    node: str
    devices: tuple[int, ...]
    fit: Fit
    free_mb: int | None


class ColdLoad(NamedTuple):
    """Load it on the first candidate that will have it."""

    profile: ModelProfile
    candidates: tuple[Candidate, ...]


class WaitForPlace(NamedTuple):
    """It is loaded, and every neuron that may be asked has as many requests of ours as it is given at a time."""

    model_id: str


Decision = Route | WaitForPlace | WaitForLoad | ColdLoad


def neuron_model_id(profile: ModelProfile) -> str:
    """What a neuron calls a model that was loaded from its `source` (contract section 6)."""
    return profile.id if profile.source is None else f"{profile.source}:{profile.id}"


def choose(
    model: str, fleet: Fleet, catalogue: Catalogue, *, exclude: Collection[str] = (), ceiling: int | None = None
) -> Decision:
    """Where a request for `model` goes.

    Args:
        model: The concrete id: aliases are resolved already, and every text names this.
        fleet: Read in this one step; take the lease before the next checkpoint.
        catalogue: The request's snapshot.
        exclude: Node names that this request has tried in vain.
        ceiling: So many leases are all that one neuron is given for this model; None is no limit, and then nobody is
            told to wait for a place.

    Raises:
        ServiceUnavailable: Not now (steps 0, 2, 5, and a known model that cannot serve).
        NoFeasibleNeuron: Step 6.
        ModelNotFound: Step 7.
    """
    found = replicas_of(model, fleet, catalogue)
    if exclude:
        found = tuple(held for held in found if held.node.name not in exclude)
    if found:  # step 1, and step 0 with it: a replica's node is healthy
        if any(held.troubled for held in found):
            found = _least_troubled(model, found, fleet.now())
        if ceiling is not None:
            found = tuple(held for held in found if held.leases < ceiling)
            if not found:
                return WaitForPlace(model)
        best = found[0] if len(found) == 1 else _least_busy(found)
        return Route(best.node.name, best.id, best.url or "", best.node.access, best.node.backend)
    return _choose_cold(model, fleet, catalogue, exclude)


def replicas_of(model: str, fleet: Fleet, catalogue: Catalogue) -> tuple[NodeModel, ...]:
    """Where it is loaded and could be asked for now, under either of its names; by node name. Two look-ups."""
    found = fleet.replicas(model)
    profile = catalogue.models.get(model)
    if profile is None or profile.source is None:
        return found
    return found + fleet.replicas(neuron_model_id(profile))


def _least_troubled(model: str, replicas: tuple[NodeModel, ...], now: float) -> tuple[NodeModel, ...]:
    """Without those whose breaker is open; and without those whose Retry-After is not over, if others are left.

    Raises:
        ServiceUnavailable: Every breaker is open.
    """
    admitted = tuple(held for held in replicas if held.node.breaker.admits(now))
    if not admitted:
        raise _all_broken(model, replicas, now)
    return tuple(held for held in admitted if held.busy_until <= now) or admitted


def _all_broken(model: str, replicas: tuple[NodeModel, ...], now: float) -> ServiceUnavailable:
    soonest_s = min(held.node.breaker.until for held in replicas) - now  # past, while a trial is under way
    told = "; ".join(f"{held.node.name}: {held.node.breaker.reason}" for held in replicas)
    return ServiceUnavailable(
        f"model '{model}' is only where requests keep failing: {told}", retry_after_s=max(1, ceil(soonest_s))
    )


def _least_busy(replicas: Iterable[NodeModel]) -> NodeModel:
    """Ours now plus others' as reported; see `NodeModel.load` for why not simply the sum."""
    return min(replicas, key=lambda held: (held.load, held.node.name))


# Nobody can serve it right now ........................................................................................


def _choose_cold(model: str, fleet: Fleet, catalogue: Catalogue, exclude: Collection[str]) -> Decision:
    """Steps 0 and 2 to 7. Costs what it costs: everything after it takes seconds or is an error."""
    if not fleet.any_healthy():
        raise ServiceUnavailable("no healthy nodes available", retry_after_s=NO_HEALTHY_NODE_RETRY_S)
    profile = catalogue.models.get(model)
    names = (model,) if profile is None else tuple({model: None, neuron_model_id(profile): None})
    nodes = [node for node in fleet.nodes.values() if _is_open(node, exclude)]
    holders = [held for name in names for held in fleet.holders(name)]
    if any(held.status == "recovering" and held.node in nodes for held in holders):
        raise ServiceUnavailable(f"model '{model}' is recovering", retry_after_s=RECOVERING_RETRY_S)
    loading = tuple(node.name for node in nodes if any(node.is_loading(name) for name in names))
    if loading:
        return WaitForLoad(model, loading)
    if profile is not None:
        return _cold_load(profile, fleet, catalogue, nodes, holders)
    raise _unlisted(model, holders)


def _is_open(node: Node, exclude: Collection[str]) -> bool:
    return node.healthy and not node.draining and node.name not in exclude


def _unlisted(model: str, holders: list[NodeModel]) -> Exception:
    """A model outside the catalogue: "not now" if anybody knows it, "never" if nobody does."""
    if not holders:
        return ModelNotFound(f"model '{model}' not found on any node and not in catalogue")
    is_gone = all(held.status == "unloaded" for held in holders)
    hint = "; no [[models]] table describes it, so it is not loaded here" if is_gone else ""
    return _not_serving(model, holders, hint)


def _not_serving(model: str, holders: list[NodeModel], hint: str = "") -> ServiceUnavailable:
    states = ", ".join(f"{_state(held)} on {held.node.name}" for held in holders)
    return ServiceUnavailable(f"model '{model}' cannot serve now: {states}{hint}", retry_after_s=NOT_SERVING_RETRY_S)


def _state(held: NodeModel) -> str:
    if not held.node.healthy:
        return "on an unhealthy node, last seen " + (held.status or "")
    if not held.servable:
        return "not servable" + (f" ({held.report.servable_reason})" if held.report else "")
    return held.status or ""


def _cold_load(
    profile: ModelProfile, fleet: Fleet, catalogue: Catalogue, nodes: list[Node], holders: list[NodeModel]
) -> ColdLoad:
    # A node that has it and cannot serve it will not be helped by loading it again.
    unservable = [held for held in holders if held.node in nodes and (held.is_stuck or not held.servable)]
    useless = {held.node.name for held in unservable}
    candidates = [_candidate(profile, node, catalogue) for node in nodes if node.name not in useless]
    found = [candidate for candidate in candidates if candidate is not None]
    if found:
        return ColdLoad(profile, tuple(sorted(found, key=_preference)))
    if unservable:
        raise _not_serving(profile.id, unservable)
    elsewhere = [node.name for node in fleet.nodes.values() if node not in nodes and _may_be_feasible(profile, node)]
    if elsewhere:
        raise ServiceUnavailable(
            f"model '{profile.id}' fits only on {', '.join(elsewhere)}, not available right now",
            retry_after_s=UNHEALTHY_RETRY_S,
        )
    raise NoFeasibleNeuron(
        f"model '{profile.id}' is in the catalogue but no healthy neuron's topology satisfies its constraints"
    )


def absent_homes(model: str, fleet: Fleet, catalogue: Catalogue) -> tuple[str, ...]:
    """The neurons that could have the model, were they available: they are down, or drained."""
    profile = catalogue.models.get(model)
    if profile is None:
        return ()
    absent = (node for node in fleet.nodes.values() if not _is_open(node, ()))
    return tuple(node.name for node in absent if _may_be_feasible(profile, node))


def _may_be_feasible(profile: ModelProfile, node: Node) -> bool:
    """Step 5: whether an absent node would do. One that never answered has no known topology, so only a pin tells."""
    if not node.takes_placements:
        return False
    if node.devices is None:
        return node.name in profile.pinned_on
    return feasible(profile, node.name, node.devices) is not None


# Where a cold load goes first .........................................................................................


def may_be_evicted(held: NodeModel, incoming: ModelProfile, catalogue: Catalogue) -> bool:
    """Whether `held` may go to make room: loaded, of a permitted class, and nobody's request is in it.

    What the neuron still counts of our own finished requests does not protect it; what it counts beyond them does.
    Minimum residency and least-recently-used are the eviction plan's business.
    """
    if held.status != "loaded" or held.load or is_guarded(held.id, catalogue):
        return False
    return may_displace(incoming.priority, priority_of(held.id, catalogue))


def is_guarded(model_id: str, catalogue: Catalogue) -> bool:
    """Whether whatever a neuron calls `model_id` must stay, because an alias is about to move from or to it."""
    return bool(catalogue.guarded) and catalogue_id(model_id, catalogue) in catalogue.guarded


def catalogue_id(model_id: str, catalogue: Catalogue) -> str:
    """What aliases and requests call whatever a neuron calls `model_id`."""
    profile = _profile_of(model_id, catalogue)
    return model_id if profile is None else profile.id


def priority_of(model_id: str, catalogue: Catalogue) -> int:
    """The residency class of whatever a neuron calls `model_id`."""
    profile = _profile_of(model_id, catalogue)
    return DEFAULT_PRIORITY if profile is None else profile.priority


def held_mb(held: NodeModel, device: int, catalogue: Catalogue) -> float | None:
    """What a model holds on one device, in MB: as its neuron says, else as the catalogue does, else unknown."""
    if held.report is None or device not in held.report.devices:
        return 0.0
    used_mb = held.report.vram_used_mb
    if used_mb is None:  # the contract lets a neuron not know
        profile = _profile_of(held.id, catalogue)
        used_mb = None if profile is None else profile.vram_mb
    return None if used_mb is None else used_mb / len(held.report.devices)


def _profile_of(model_id: str, catalogue: Catalogue) -> ModelProfile | None:
    profile = catalogue.models.get(model_id)
    if profile is not None:
        return profile
    return next((known for known in catalogue.models.values() if neuron_model_id(known) == model_id), None)


def _preference(candidate: Candidate) -> tuple[int, int, str]:
    """Fits free, then after evictions, then most free, then name.

    "Pinned first" needs no term: a profile that is pinned is feasible on its pins only.
    """
    return candidate.fit, -(candidate.free_mb or 0), candidate.node


def _candidate(profile: ModelProfile, node: Node, catalogue: Catalogue) -> Candidate | None:
    if node.devices is None or not node.takes_placements:
        return None
    indices = feasible(profile, node.name, node.devices)
    if indices is None:
        return None
    free_mb = {device.index: device.vram_free_mb for device in node.devices if device.index in indices}
    known_mb = {index: free for index, free in free_mb.items() if free is not None}
    if len(known_mb) < len(free_mb):
        return Candidate(node.name, indices, Fit.UNKNOWN, None)
    return Candidate(node.name, indices, _fit(profile, node, known_mb, catalogue), sum(known_mb.values()))


def _fit(profile: ModelProfile, node: Node, free_mb: dict[int, int], catalogue: Catalogue) -> Fit:
    """Per device: a model over two GPUs needs half of its memory on each, and room on one does not help the other."""
    if profile.vram_mb is None:
        return Fit.UNKNOWN
    need_mb = ceil(profile.vram_mb / len(free_mb)) if free_mb else 0
    if all(free >= need_mb for free in free_mb.values()):
        return Fit.FREE
    victims = [held for held in node.models.values() if may_be_evicted(held, profile, catalogue)]
    enough = all(
        free + sum(held_mb(held, index, catalogue) or 0.0 for held in victims) >= need_mb
        for index, free in free_mb.items()
    )
    return Fit.AFTER_EVICTION if enough else Fit.FULL
