"""The nodes of a fleet by name, for tasks that may know a name longer than the fleet knows the node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.config.settings import NeuronSettings
from gateway.fleet.node import Node

__all__ = ["NodesByName"]


class NodesByName(dict[str, Node]):
    """Sorted by name. `[name]` of a neuron that was removed returns its old node, or one without a neuron.

    A request or a load that ends after its neuron was removed reports its outcome by name. That must raise nothing, and
    has no effect on a neuron that is still there. `in`, `get` and loops see the present nodes only.

    Args:
        nodes: The present nodes.
        leaving: The removed nodes that still have requests.
    """

    def __init__(self, nodes: Iterable[Node], leaving: Mapping[str, Node]) -> None:
        super().__init__({node.name: node for node in sorted(nodes, key=lambda node: node.name)})
        self._leaving = leaving

    def __missing__(self, name: str) -> Node:
        return self._leaving.get(name) or Node(NeuronSettings(name, "http://removed.invalid"))
