"""At an operator's word: load a model, unload one. What can be begun is begun here and now, or refused with the reason.

The jobs are the lifecycle's, and their progress is in its `loads`. Placement is what a request would get.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from catalogue.resolve import resolve
from catalogue.source import CatalogueSource
from gateway.errors import NotFound, ServiceUnavailable
from gateway.fleet.control.engine_client import EngineClient
from gateway.fleet.control.types import LoadingApi
from gateway.fleet.loading.scheduler import Lifecycle
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.routing.choose import ColdLoad, Route, WaitForLoad, choose, neuron_model_id
from gateway.fleet.state import Fleet

__all__ = ["Loading", "ManualLoads", "Unloading"]


@dataclass(frozen=True, slots=True)
class Loading:
    """What came of an order to load. `estimate_s` is what it took before, None if nobody knows."""

    model: str
    node: str | None
    state: Literal["loading", "loaded"]
    estimate_s: float | None


@dataclass(frozen=True, slots=True)
class Unloading:
    """What came of an order to unload; `refused` says where it is in use, and left."""

    model: str
    nodes: tuple[str, ...]
    refused: tuple[str, ...]
    state: Literal["unloading"] = "unloading"


class ManualLoads:
    """Carried out on one gateway. `neurons` are the control APIs by node name."""

    def __init__(
        self, fleet: Fleet, *, catalogue: CatalogueSource, lifecycle: Lifecycle, neurons: Mapping[str, LoadingApi]
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._lifecycle = lifecycle
        self._neurons = neurons

    def load(self, name: str, node: str | None = None) -> Loading:
        """Have a model loaded, by its id or an alias: on that node, or where a request would have it loaded.

        Raises:
            GatewayError: Why not, in the terms that a request for the model would hear; NotFound for a node that there
                is not, or an engine that loads nothing at our word.
        """
        model = resolve(self._catalogue.current, name).model
        if node is not None and not self._known(node).takes_placements:
            self._check_engine(node, model)
            self._lifecycle.load_at_engine(node, model)
            return self._loading(model, node)
        elsewhere = () if node is None else tuple(other for other in self._fleet.nodes if other != node)
        decision = choose(model, self._fleet, self._catalogue.current, exclude=elsewhere)
        if isinstance(decision, ColdLoad):
            return self._loading(model, self._lifecycle.load(decision))
        if isinstance(decision, WaitForLoad):
            return self._loading(model, decision.nodes[0])
        return Loading(model, decision.node if isinstance(decision, Route) else node, "loaded", None)

    def unload(self, name: str, node: str | None = None) -> Unloading:
        """Have a model unloaded from a node, or from everywhere that it can be.

        Raises:
            NotFound: It is not there.
            ServiceUnavailable: It is in use wherever it is.
        """
        model = resolve(self._catalogue.current, name).model
        nodes = tuple(self._fleet.nodes) if node is None else (self._known(node).name,)
        held = [one for one in self._holders(model) if one.node.name in nodes]
        if not held:
            raise NotFound(f"'{model}' is not on {', '.join(nodes)}")
        begun, refusals = self._begin_to_unload(held)
        if not begun:
            raise refusals[0]
        return Unloading(model, tuple(begun), tuple(refusal.message for refusal in refusals))

    def _begin_to_unload(self, held: Iterable[NodeModel]) -> tuple[list[str], list[ServiceUnavailable]]:
        begun: list[str] = []
        refusals: list[ServiceUnavailable] = []
        for one in held:
            if not one.node.takes_placements:
                self._check_engine(one.node.name, one.id)
            try:
                self._lifecycle.unload(one.node.name, one.id)
                begun.append(one.node.name)
            except ServiceUnavailable as refusal:
                refusals.append(refusal)
        return begun, refusals

    def _holders(self, model: str) -> list[NodeModel]:
        profile = self._catalogue.current.models.get(model)
        names = {model} if profile is None else {model, neuron_model_id(profile)}
        return [held for name in sorted(names) for held in self._fleet.holders(name)]

    def _known(self, node: str) -> Node:
        found = self._fleet.nodes.get(node)
        if found is None:
            raise NotFound(f"no neuron is called '{node}'; there are {', '.join(self._fleet.nodes)}")
        return found

    def _check_engine(self, node: str, model: str) -> None:
        if model not in self._fleet.nodes[node].models:
            raise NotFound(f"{node} lists no model '{model}'")
        client = self._neurons[node]
        if isinstance(client, EngineClient) and not client.can_load:
            raise NotFound(f"cortex knows no way to load or unload a model at {node}: do it there")

    def _loading(self, model: str, node: str) -> Loading:
        return Loading(model, node, "loading", self._lifecycle.estimate_s(node, model))
