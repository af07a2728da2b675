"""Where the models of a node that is to be drained would go, decided for all of them before the first load. Pure.

The moves are imagined one after the other on a copy of the fleet, each with what the ones before it take and evict. So
a drain that cannot move every model begins none: a load may cost another model its place.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import NamedTuple

from catalogue.models import Catalogue, ModelProfile
from gateway.errors import GatewayError, ServiceUnavailable
from gateway.fleet.loading.eviction import busy_models, room_may_come, why_no_room
from gateway.fleet.loading.imagined_fleet import ImaginedFleet
from gateway.fleet.model_names import catalogue_id, neuron_model_id, replicas_of
from gateway.fleet.node import NodeModel
from gateway.fleet.routing.choose import ColdLoad, Decision, choose
from gateway.fleet.routing.placement import Candidate, Fit, candidate_on
from gateway.fleet.routing.victims import find_victims
from gateway.fleet.state import Fleet

__all__ = [
    "ImpossibleMove",
    "choose_elsewhere",
    "has_replica_besides",
    "impossible_moves",
    "models_only_on",
    "next_move",
]


class ImpossibleMove(NamedTuple):
    """A model that cannot be moved now, and why, for operators."""

    model: str
    reason: str


def models_only_on(node: str, fleet: Fleet, catalogue: Catalogue) -> list[str]:
    """The catalogue ids of the models whose only replica is on this node: the largest first, then by id.

    A large model has fewer places, so it is moved before a small one takes them.
    """
    home = fleet.nodes[node]
    models = {catalogue_id(resident.id, catalogue) for resident in home.models.values() if resident.routable}
    only_here = (
        model for model in models if all(replica.node is home for replica in replicas_of(model, fleet, catalogue))
    )
    return sorted(only_here, key=lambda model: (-_size_mb(model, catalogue), model))


def _size_mb(model: str, catalogue: Catalogue) -> int:
    profile = catalogue.models.get(model)
    return 0 if profile is None else profile.vram_mb or 0


def next_move(node: str, fleet: Fleet, catalogue: Catalogue, done: Collection[str]) -> str | None:
    """The model to move next, besides those in `done`.

    Looked up anew for each move: a move may evict another replica of a model of this node, and the node serves
    meanwhile, so a request may have another model loaded on it.
    """
    return next((model for model in models_only_on(node, fleet, catalogue) if model not in done), None)


def choose_elsewhere(node: str, model: str, fleet: Fleet, catalogue: Catalogue) -> Decision:
    """Where a request for the model would go without this node, if possible where no other model is lost for it.

    Raises:
        GatewayError: The model cannot be moved.
    """
    if model not in catalogue.models:
        raise ServiceUnavailable("cortex cannot load it: it is not in models.toml")
    decision = choose(model, fleet, catalogue, exclude=(node,))
    if not isinstance(decision, ColdLoad):
        return decision
    places = (_sparing(node, candidate, decision.profile, fleet, catalogue) for candidate in decision.candidates)
    return decision._replace(candidates=tuple(filter(None, places)) or decision.candidates)


def _sparing(
    leaving: str, candidate: Candidate, profile: ModelProfile, fleet: Fleet, catalogue: Catalogue
) -> Candidate | None:
    """The candidate, with other devices if need be, if each model evicted for it has another replica; else None."""
    node = fleet.nodes[candidate.node]

    def is_spare(resident: NodeModel) -> bool:
        return has_replica_besides(resident.id, {leaving, candidate.node}, fleet, catalogue)

    place = candidate_on(node, profile, catalogue, may_evict=is_spare)
    if place is None or place.fit is Fit.FULL:
        return None
    victims = find_victims(
        profile, node, node.free_mb(place.devices), catalogue, wakes=place.wakes
    )  # the load decides by recent use alone
    return place if all(map(is_spare, victims or ())) else None


def has_replica_besides(name: str, nodes: Collection[str], fleet: Fleet, catalogue: Catalogue) -> bool:
    """Whether the model that a neuron lists as `name` has a replica on a node that is not in `nodes`."""
    replicas = replicas_of(catalogue_id(name, catalogue), fleet, catalogue)
    return any(replica.node.name not in nodes for replica in replicas)


def impossible_moves(node: str, fleet: Fleet, catalogue: Catalogue, *, min_residency_s: float) -> list[ImpossibleMove]:
    """The models that cannot be moved off the node now; empty if all of them can.

    A model waits for nothing here: if its place is taken by one with running requests, the move is impossible now.
    """
    imagined = ImaginedFleet(fleet, min_residency_s)
    moved: dict[str, str] = {}  # the neuron's id of each moved model -> the node that has it
    done: set[str] = set()
    found = []
    with ExitStack() as leases:  # a moved model must not be evicted for the next one
        while (model := next_move(node, imagined.fleet, catalogue, done)) is not None:
            done.add(model)
            try:
                decision = choose_elsewhere(node, model, imagined.fleet, catalogue)
            except GatewayError as error:
                found.append(ImpossibleMove(model, f"no other neuron can take it now: {error.message}"))
                continue
            if not isinstance(decision, ColdLoad):
                continue  # another node has it or loads it
            load = imagined.load(decision, catalogue)
            if load is None:
                reasons = (
                    _why_full(candidate, decision.profile, moved, imagined.fleet, catalogue)
                    for candidate in decision.candidates
                )
                found.append(ImpossibleMove(model, f"no other neuron has room for it: {'; '.join(reasons)}"))
                continue
            name = neuron_model_id(decision.profile)
            leases.enter_context(imagined.fleet.lease(load.node, name))
            moved[name] = load.node
    return found


def _why_full(
    candidate: Candidate, profile: ModelProfile, moved: dict[str, str], fleet: Fleet, catalogue: Catalogue
) -> str:
    node = fleet.nodes[candidate.node]
    before = [name for name, where in moved.items() if where == node.name]
    if before:
        return f"{node.name} has no room beside {', '.join(before)}, which would move there first"
    if (busy := busy_models(node)) and room_may_come(profile, node, catalogue):
        return f"{node.name} has room once {busy} can be evicted"
    return why_no_room(profile, node, catalogue)
