"""The body of `/health`. No HTTP, no waiting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeAlias, TypedDict

from catalogue.models import Alias, Catalogue
from catalogue.toml.faults import Fault
from gateway.aliases.warm_swap import SwapView
from gateway.fleet.state import Fleet
from gateway.server.health.servability import Servability

__all__ = ["AliasState", "CatalogueStatus", "catalogue_status", "health_body"]

# "impaired": a target cannot be served, and another target or a fallback can.
AliasState: TypeAlias = Literal["ok", "warming", "swap_failed", "impaired", "unservable"]


class CatalogueStatus(TypedDict):
    """The catalogue in force. `error` is None unless the file on disk is refused; `loaded_at` is in unix seconds."""

    generation: int
    digest: str | None
    loaded_at: float
    path: str | None
    error: Mapping[str, Any] | None


def catalogue_status(catalogue: Catalogue, faults: tuple[Fault, ...] | None) -> CatalogueStatus:
    """The status of this catalogue; `faults` are those of the file on disk, if the gateway refused it."""
    error = None
    if faults:
        error = {"message": str(faults[0]), "faults": [fault.as_json(with_path=False) for fault in faults]}
    return {
        "generation": catalogue.generation,
        "digest": catalogue.digest,
        "loaded_at": catalogue.loaded_at,
        "path": catalogue.path,
        "error": error,
    }


def health_body(
    fleet: Fleet,
    catalogue: Catalogue,
    catalogue_status: CatalogueStatus,
    *,
    problems: Sequence[Mapping[str, Any]],
    servability: Servability,
    swaps: Sequence[SwapView] = (),
    rollouts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """`GET /health`. The status is `degraded` if nothing can be served, `impaired` if there are problems, else `ok`.

    Args:
        fleet: The neurons.
        catalogue: The catalogue in force.
        catalogue_status: The same catalogue as `/health` shows it.
        problems: `ProblemList.as_json`.
        servability: Which models and aliases can be served.
        swaps: The aliases that are not at their new targets yet.
        rollouts: The rollout of each alias that has one to show, as JSON.
    """
    totals = fleet.statistics()
    body: dict[str, Any] = {
        "status": "degraded" if not servability.anything() else "impaired" if problems else "ok",
        "problems": problems,
        "nodes": {"healthy": totals.nodes_healthy, "total": totals.nodes_total, "drained": totals.nodes_drained},
        "catalogue": dict(catalogue_status),
        "aliases": [
            _alias(alias, catalogue, servability, (rollouts or {}).get(alias.name))
            for _, alias in sorted(catalogue.aliases.items())
        ],
    }
    if unservable := _unservable(fleet):
        body["unservable"] = unservable
    if swaps:
        body["swaps"] = [asdict(swap) for swap in swaps]
    return body


def _alias(
    alias: Alias, catalogue: Catalogue, servability: Servability, rollout: Mapping[str, Any] | None
) -> dict[str, Any]:
    """An alias with the targets that are in force, and its rollout, if it has one."""
    return {
        "name": alias.name,
        "targets": [{"model": target.model, "weight": target.weight} for target in alias.targets],
        "state": _alias_state(alias, catalogue, servability),
        "rollout": rollout,
    }


def _alias_state(alias: Alias, catalogue: Catalogue, servability: Servability) -> AliasState:
    if not servability.can_serve(alias):
        return "unservable"
    warming = catalogue.warming.get(alias.name)
    if warming is not None and warming.failed is not None:
        return "swap_failed"
    if not all(map(servability.is_servable, alias.active)):
        return "impaired"
    return "ok" if warming is None else "warming"


def _unservable(fleet: Fleet) -> list[dict[str, str | None]]:
    """The models that a healthy neuron holds and cannot serve."""
    return [
        {"node": node.name, "model": replica.id, "reason": replica.report.servable_reason}
        for node in fleet.nodes.values()
        if node.healthy
        for replica in sorted(node.models.values(), key=lambda replica: replica.id)
        if replica.report is not None and not replica.report.servable_ok
    ]
