"""`ManualLoads`: loads and unloads for an operator. Each is begun at once, or refused with the reason.

The jobs are the load scheduler's, which also shows their progress. A model goes where a request would have it loaded.
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
from gateway.fleet.loading.scheduler import LoadScheduler
from gateway.fleet.model_names import holders_of
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import ColdLoad, WaitForLoad, choose
from gateway.fleet.state import Fleet

__all__ = ["LoadResponse", "ManualLoads", "UnloadResponse"]


@dataclass(frozen=True, slots=True)
class LoadResponse:
    """The body of `POST /admin/load`. `estimate_s` is how long earlier loads took, None if there were none."""

    model: str
    node: str | None
    state: Literal["loading", "loaded"]
    estimate_s: float | None


@dataclass(frozen=True, slots=True)
class UnloadResponse:
    """The body of `POST /admin/unload`. `refused` says for the other nodes why the model stays."""

    model: str
    nodes: tuple[str, ...]
    refused: tuple[str, ...]
    state: Literal["unloading"] = "unloading"


class ManualLoads:
    """Loads and unloads models of one gateway. `neurons` are the control APIs by node name."""

    def __init__(
        self, fleet: Fleet, *, catalogue: CatalogueSource, scheduler: LoadScheduler, neurons: Mapping[str, LoadingApi]
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._neurons = neurons

    def load(self, name: str, node: str | None = None) -> LoadResponse:
        """Load a model by its id or an alias: on that node, or where a request would have it loaded.

        Raises:
            NotFound: There is no such node, or it is an engine that cannot load models on request.
            GatewayError: Why the model cannot be loaded; the same error as a request for it gets.
        """
        model = resolve(self._catalogue.current, name).model
        if node is not None and not self._find_node(node).takes_placements:
            self._check_engine(node, model)
            self._scheduler.load_at_engine(node, model)
            return self._loading(model, node)
        elsewhere = () if node is None else tuple(other for other in self._fleet.nodes if other != node)
        decision = choose(model, self._fleet, self._catalogue.current, exclude=elsewhere)
        if isinstance(decision, ColdLoad):
            return self._loading(model, self._scheduler.load(decision))
        if isinstance(decision, WaitForLoad):
            return self._loading(model, decision.nodes[0])
        return LoadResponse(model, decision.node if isinstance(decision, Route) else node, "loaded", None)

    def unload(self, name: str, node: str | None = None) -> UnloadResponse:
        """Unload a model from a node, or from every node where that is possible.

        Raises:
            NotFound: The model is not there.
            ServiceUnavailable: No node can unload it now.
        """
        model = resolve(self._catalogue.current, name).model
        nodes = tuple(self._fleet.nodes) if node is None else (self._find_node(node).name,)
        holders = holders_of(model, self._fleet, self._catalogue.current)
        residents = [holder for holder in holders if holder.node.name in nodes]
        if not residents:
            raise NotFound(f"'{model}' is not on {', '.join(nodes)}")
        begun, refusals = self._begin_unloads(residents)
        if not begun:
            raise refusals[0]
        return UnloadResponse(model, tuple(begun), tuple(refusal.message for refusal in refusals))

    def _begin_unloads(self, residents: Iterable[NodeModel]) -> tuple[list[str], list[ServiceUnavailable]]:
        begun: list[str] = []
        refusals: list[ServiceUnavailable] = []
        for resident in residents:
            if not resident.node.takes_placements:
                self._check_engine(resident.node.name, resident.id)
            try:
                self._scheduler.unload(resident.node.name, resident.id)
                begun.append(resident.node.name)
            except ServiceUnavailable as refusal:
                refusals.append(refusal)
        return begun, refusals

    def _find_node(self, name: str) -> Node:
        node = self._fleet.nodes.get(name)
        if node is None:
            raise NotFound(f"no neuron is called '{name}'; there are {', '.join(self._fleet.nodes)}")
        return node

    def _check_engine(self, node: str, model: str) -> None:
        if model not in self._fleet.nodes[node].models:
            raise NotFound(f"{node} does not list a model '{model}'")
        client = self._neurons[node]
        if isinstance(client, EngineClient) and not client.can_load:
            raise NotFound(f"cortex cannot load or unload models on {node}: use the engine's own tools on that host")

    def _loading(self, model: str, node: str) -> LoadResponse:
        return LoadResponse(model, node, "loading", self._scheduler.estimate_s(node, model))
