"""What operators do to neurons and models: each action is begun, written to the audit log, and a drain is saved."""

from __future__ import annotations

from collections.abc import Callable

from gateway.fleet.loading.drain import Drains, DrainView
from gateway.fleet.loading.manual import LoadResponse, ManualLoads, UnloadResponse
from gateway.server.drain_store import DrainStore

__all__ = ["OperatorActions", "describe_ended_move"]


class OperatorActions:
    """Drains, loads and unloads of one gateway.

    Args:
        drains: Takes neurons out of service.
        manual_loads: Loads and unloads models.
        drain_store: Saves drains.
        record: `Auditor.record_action`.
    """

    def __init__(
        self, drains: Drains, manual_loads: ManualLoads, drain_store: DrainStore, *, record: Callable[..., None]
    ) -> None:
        self._drains = drains
        self._manual_loads = manual_loads
        self._drain_store = drain_store
        self._record = record

    async def drain(self, node: str, who: str, *, move: bool) -> DrainView:
        """Drain a neuron; it stays drained if the gateway restarts. Raises as `Drains.drain`."""
        was_open = self._drains.view(node).state == "open"
        self._drain_store.set_author(node, who)
        view = self._drains.drain(node, move=move)
        summary = f"drain {node}" + (" and move its models" if move else "")
        outcome: str = view.state if was_open or view.state != "drained" else "drained already"
        if move and view.state == "open":
            outcome = describe_ended_move(view)
        self._record("drain", who, summary=summary, outcome=outcome, node=node, move=move)
        await self._drain_store.save()
        return view

    async def undrain(self, node: str, who: str) -> DrainView:
        """End a drain."""
        was_open = self._drains.view(node).state == "open"
        view = self._drains.undrain(node)
        outcome = "not drained before" if was_open else "open"
        self._record("undrain", who, summary=f"undrain {node}", outcome=outcome, node=node)
        await self._drain_store.save()
        return view

    def load(self, model: str, node: str | None, who: str) -> LoadResponse:
        """Begin to load a model. Raises as `ManualLoads.load`."""
        response = self._manual_loads.load(model, node)
        summary = f"load {response.model}" + (f" on {response.node}" if response.node else "")
        self._record("load", who, summary=summary, outcome=response.state, model=response.model, node=response.node)
        return response

    def unload(self, model: str, node: str | None, who: str) -> UnloadResponse:
        """Begin to unload a model. Raises as `ManualLoads.unload`."""
        response = self._manual_loads.unload(model, node)
        summary = f"unload {response.model} from {', '.join(response.nodes)}"
        outcome = "; ".join((response.state, *response.refused))
        self._record("unload", who, summary=summary, outcome=outcome, model=response.model, nodes=response.nodes)
        return response


def describe_ended_move(view: DrainView) -> str:
    """What came of a drain with moves, once they have ended."""
    failed = [f"{move.model}: {move.reason}" for move in view.moves if move.state == "failed"]
    if view.draining:
        moved = ", ".join(f"{move.model} to {move.node}" for move in view.moves if move.state == "moved")
        return f"drained; moved {moved}" if moved else "drained"
    return f"not drained: {'; '.join(failed)}" if failed else "not drained"
