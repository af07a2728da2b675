"""Under which names neurons list a model of the catalogue, and where the model is under any of them. No I/O.

A neuron lists a model that it loaded from a `source` as `{source}:{id}`. A model that was there before, or that has no
`source`, it lists by its id. Both are the same model to clients, aliases and the queue.
"""

from __future__ import annotations

from catalogue.models import Catalogue, ModelProfile
from gateway.fleet.node import NodeModel
from gateway.fleet.state import Fleet

__all__ = [
    "catalogue_id",
    "holders_of",
    "known_names",
    "names_on_neurons",
    "neuron_model_id",
    "profile_of",
    "replicas_of",
]


def neuron_model_id(profile: ModelProfile) -> str:
    """What a neuron calls the model after a load from this profile."""
    return profile.id if profile.source is None else f"{profile.source}:{profile.id}"


def names_on_neurons(model: str, catalogue: Catalogue) -> tuple[str, ...]:
    """Every name that a neuron may list the model under: its id first, and at most two."""
    profile = catalogue.models.get(model)
    if profile is None or profile.source is None:
        return (model,)
    return (model, neuron_model_id(profile))


def profile_of(neuron_id: str, catalogue: Catalogue) -> ModelProfile | None:
    """The profile of the model that a neuron lists as `neuron_id`; None if the catalogue has none."""
    profile = catalogue.models.get(neuron_id)
    if profile is not None:
        return profile
    return next((known for known in catalogue.models.values() if neuron_model_id(known) == neuron_id), None)


def catalogue_id(neuron_id: str, catalogue: Catalogue) -> str:
    """The id that clients and aliases use for the model that a neuron lists as `neuron_id`."""
    profile = profile_of(neuron_id, catalogue)
    return neuron_id if profile is None else profile.id


def replicas_of(model: str, fleet: Fleet, catalogue: Catalogue) -> tuple[NodeModel, ...]:
    """The replicas that a request for the model can go to now, by name and node.

    Called for every request, so it does not build a tuple of names: one or two look-ups.
    """
    found = fleet.replicas(model)
    profile = catalogue.models.get(model)
    if profile is None or profile.source is None:
        return found
    return found + fleet.replicas(neuron_model_id(profile))


def holders_of(model: str, fleet: Fleet, catalogue: Catalogue) -> list[NodeModel]:
    """Every node's entry for the model, in any state and on nodes in any health; by name and node."""
    return [entry for name in names_on_neurons(model, catalogue) for entry in fleet.holders(name)]


def known_names(fleet: Fleet, catalogue: Catalogue) -> list[str]:
    """Every name that clients can ask for: aliases, models of the catalogue, and models that neurons list."""
    listed = (catalogue_id(model, catalogue) for node in fleet.nodes.values() for model in node.models)
    return list(dict.fromkeys((*catalogue.aliases, *catalogue.models, *listed)))
