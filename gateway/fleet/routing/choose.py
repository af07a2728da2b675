"""`choose`: where one request goes, or why it cannot go anywhere. Reads the fleet once, changes nothing, does no I/O.

The checks, in order:

    a routable replica ------------------------> Route, or WaitForSlot under `max_concurrent`
    no healthy node ---------------------------> 503 "no healthy nodes available"
    the model is recovering somewhere ---------> 503
    a node loads it, or is about to -----------> WaitForLoad
    in the catalogue, a node could hold it ----> ColdLoad
    in the catalogue, no node could -----------> 503, no_feasible_neuron if no absent node could either
    outside the catalogue ---------------------> 503 if a node has it in some state, else 404

Waiting and loading are the caller's work.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import ceil
from typing import NamedTuple

from catalogue.models import Catalogue, ModelProfile
from catalogue.nearest import did_you_mean, nearest_names
from gateway.errors import ModelNotFound, NoFeasibleNeuron, ServiceUnavailable
from gateway.fleet.model_names import holders_of, known_names, names_on_neurons, replicas_of
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.route import Route
from gateway.fleet.routing.placement import Candidate, candidate_on, load_rank, may_be_feasible
from gateway.fleet.routing.sleepers import ASLEEP
from gateway.fleet.state import Fleet

# Retry-After in whole seconds, by the check that failed.
NO_HEALTHY_NODE_RETRY_S = 5
RECOVERING_RETRY_S = 2
UNHEALTHY_RETRY_S = 3
NOT_SERVING_RETRY_S = 5


class WaitForLoad(NamedTuple):
    """These nodes load the model already, or are about to; by name."""

    model_id: str
    nodes: tuple[str, ...]


class ColdLoad(NamedTuple):
    """Load the model. `candidates` are sorted: the first is the best."""

    profile: ModelProfile
    candidates: tuple[Candidate, ...]


class WaitForSlot(NamedTuple):
    """The model is loaded, and every replica has `max_concurrent` requests of ours."""

    model_id: str


Decision = Route | WaitForSlot | WaitForLoad | ColdLoad


def choose(
    model: str, fleet: Fleet, catalogue: Catalogue, *, exclude: Collection[str] = (), max_concurrent: int | None = None
) -> Decision:
    """Where a request for `model` goes.

    Args:
        model: The concrete id; aliases are resolved already.
        fleet: Read synchronously: take the lease before the next checkpoint.
        catalogue: The snapshot to decide by.
        exclude: Names of nodes that have failed this request.
        max_concurrent: How many leases of this model one node gets; None for no limit. WaitForSlot needs a limit.

    Raises:
        ServiceUnavailable: The model cannot be served now.
        NoFeasibleNeuron: The model is in the catalogue, and no node can ever hold it.
        ModelNotFound: Neither the catalogue nor a node knows the model.
    """
    replicas = replicas_of(model, fleet, catalogue)
    if exclude:
        replicas = tuple(replica for replica in replicas if replica.node.name not in exclude)
    if replicas:  # their nodes are healthy
        if replicas[0].troubled if len(replicas) == 1 else any(replica.troubled for replica in replicas):
            replicas = _least_troubled(model, replicas, fleet.now())
        if max_concurrent is not None:
            replicas = tuple(replica for replica in replicas if replica.leases < max_concurrent)
            if not replicas:
                return WaitForSlot(model)
        best = replicas[0] if len(replicas) == 1 else least_busy(replicas, [replica.load for replica in replicas])
        return best.route
    return _choose_cold(model, fleet, catalogue, exclude)


def _least_troubled(model: str, replicas: tuple[NodeModel, ...], now: float) -> tuple[NodeModel, ...]:
    """Drop replicas whose circuit breaker is open, then those with a Retry-After in force unless no other is left.

    Raises:
        ServiceUnavailable: Every circuit breaker is open.
    """
    admitted = tuple(replica for replica in replicas if replica.admits(now))
    if not admitted:
        raise _all_breakers_open(model, replicas, now)
    return tuple(replica for replica in admitted if replica.busy_until <= now) or admitted


def _all_breakers_open(model: str, replicas: tuple[NodeModel, ...], now: float) -> ServiceUnavailable:
    soonest_s = min(replica.open_breaker.until for replica in replicas) - now  # negative while a trial is under way
    reasons = "; ".join(f"{replica.node.name}: {replica.open_breaker.reason}" for replica in replicas)
    return ServiceUnavailable(
        f"model '{model}' cannot serve now: requests keep failing on every neuron that has it: {reasons}",
        retry_after_s=max(1, ceil(soonest_s)),
    )


def least_busy(replicas: Sequence[NodeModel], loads: Sequence[int]) -> NodeModel:
    """The replica with the least `NodeModel.load`, of `loads`; of several the first by its node's name."""
    best, least = replicas[0], loads[0]
    for replica, load in zip(replicas, loads, strict=True):
        if load < least or (load == least and replica.node.name < best.node.name):
            best, least = replica, load
    return best


# No replica can take the request ......................................................................................


def _choose_cold(model: str, fleet: Fleet, catalogue: Catalogue, exclude: Collection[str]) -> Decision:
    """Not optimised: what follows takes seconds or is an error."""
    if not fleet.any_healthy():
        reasons = "; ".join(_why_down(node) for node in fleet.nodes.values())
        raise ServiceUnavailable(
            f"no healthy nodes available{': ' if reasons else ''}{reasons}", retry_after_s=NO_HEALTHY_NODE_RETRY_S
        )
    names = names_on_neurons(model, catalogue)
    nodes = [node for node in fleet.nodes.values() if _is_open(node, exclude)]
    holders = holders_of(model, fleet, catalogue)
    recovering = [holder for holder in holders if holder.status == "recovering" and holder.node in nodes]
    if recovering:
        states = ", ".join(map(describe_state, recovering)).removeprefix("recovering ")
        raise ServiceUnavailable(f"model '{model}' is recovering {states}", retry_after_s=RECOVERING_RETRY_S)
    loading = tuple(node.name for node in nodes if any(node.is_loading(name) for name in names))
    if loading:
        return WaitForLoad(model, loading)
    profile = catalogue.models.get(model)
    if profile is not None:
        return _cold_load(profile, fleet, catalogue, nodes, holders)
    raise _unlisted(model, holders, fleet, catalogue)


def _is_open(node: Node, exclude: Collection[str]) -> bool:
    return node.healthy and not node.draining and node.name not in exclude


def _unlisted(model: str, holders: list[NodeModel], fleet: Fleet, catalogue: Catalogue) -> Exception:
    """For a model outside the catalogue: 503 if a node has it in some state, else 404."""
    if not holders:
        nearest = nearest_names(model, known_names(fleet, catalogue))
        return ModelNotFound(
            f"model '{model}' not found on any node and not in catalogue",
            hint=did_you_mean(model, nearest),
            nearest=nearest,
        )
    is_idle = all(holder.status in {"unloaded", ASLEEP} for holder in holders)
    hint = "; cortex cannot load it: no [[models]] table in models.toml describes it" if is_idle else ""
    return _not_serving(model, holders, hint)


def _not_serving(model: str, holders: list[NodeModel], hint: str = "") -> ServiceUnavailable:
    states = ", ".join(map(describe_state, holders))
    return ServiceUnavailable(f"model '{model}' cannot serve now: {states}{hint}", retry_after_s=NOT_SERVING_RETRY_S)


def describe_state(holder: NodeModel) -> str:
    """For people: the model's status, where, and why, as far as the neuron says so."""
    node, reason = holder.node.name, holder.report and holder.report.servable_reason
    if not holder.node.healthy:
        return f"{holder.status} on {node} before {node} stopped answering ({holder.node.failure or 'no reason known'})"
    if not holder.servable:
        return f"not servable{f' ({reason})' if reason else ''} on {node}"
    return f"{holder.status} on {node}{f' ({holder.reason})' if holder.reason else ''}"


def _why_down(node: Node) -> str:
    return f"{node.name}: {node.failure or 'it has not answered yet'}"


def _closed(node: Node) -> str:
    if not node.healthy:
        return f"{node.name} (down: {node.failure or 'it has not answered yet'})"
    return f"{node.name} (draining)" if node.draining else f"{node.name} (tried already)"


def _cold_load(
    profile: ModelProfile, fleet: Fleet, catalogue: Catalogue, nodes: list[Node], holders: list[NodeModel]
) -> ColdLoad:
    # Another load does not help a node that has the model and cannot serve it.
    unservable = [holder for holder in holders if holder.node in nodes and (holder.is_stuck or not holder.servable)]
    useless = {holder.node.name for holder in unservable}
    candidates = [candidate_on(node, profile, catalogue) for node in nodes if node.name not in useless]
    found = [candidate for candidate in candidates if candidate is not None]
    if found:
        return ColdLoad(profile, tuple(sorted(found, key=load_rank)))
    if unservable:
        raise _not_serving(profile.id, unservable)
    elsewhere = [node for node in fleet.nodes.values() if node not in nodes and may_be_feasible(profile, node)]
    if elsewhere:
        raise ServiceUnavailable(
            f"model '{profile.id}' fits only on {', '.join(map(_closed, elsewhere))}",
            retry_after_s=UNHEALTHY_RETRY_S,
        )
    raise NoFeasibleNeuron(
        f"model '{profile.id}' is in the catalogue but no healthy neuron's topology satisfies its constraints"
    )


def unavailable_nodes_for(model: str, fleet: Fleet, catalogue: Catalogue) -> tuple[str, ...]:
    """The nodes that are down or drained and could hold the model; by name."""
    profile = catalogue.models.get(model)
    if profile is None:
        return ()
    absent = (node for node in fleet.nodes.values() if not _is_open(node, ()))
    return tuple(node.name for node in absent if may_be_feasible(profile, node))
