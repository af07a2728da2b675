"""The body of `/health`. No HTTP, no waiting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

from catalogue.models import Catalogue
from catalogue.toml.faults import Fault
from gateway.aliases.warm_swap import SwapView
from gateway.fleet.state import Fleet

__all__ = ["CatalogueStatus", "catalogue_status", "health_body"]


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


def health_body(fleet: Fleet, catalogue_status: CatalogueStatus, swaps: Sequence[SwapView] = ()) -> dict[str, Any]:
    """`GET /health`. The status is the worst that applies.

    `degraded`: no neuron is healthy. `impaired`: the file on disk is refused, a healthy neuron has a model that it
    cannot serve, or an alias could not be moved to its new target. An alias that is still warming impairs nothing.
    """
    totals = fleet.statistics()
    unservable = _unservable(fleet)
    has_failed_swap = any(swap.state == "failed" for swap in swaps)
    impaired = bool(unservable) or has_failed_swap or catalogue_status["error"] is not None
    body: dict[str, Any] = {
        "status": "degraded" if not totals.nodes_healthy else "impaired" if impaired else "ok",
        "nodes": {"healthy": totals.nodes_healthy, "total": totals.nodes_total},
        "catalogue": dict(catalogue_status),
    }
    if unservable:
        body["unservable"] = unservable
    if swaps:
        body["swaps"] = [asdict(swap) for swap in swaps]
    return body


def _unservable(fleet: Fleet) -> list[dict[str, str | None]]:
    return [
        {"node": node.name, "model": replica.id, "reason": replica.report.servable_reason}
        for node in fleet.nodes.values()
        if node.healthy
        for replica in sorted(node.models.values(), key=lambda replica: replica.id)
        if replica.report is not None and not replica.report.servable_ok
    ]
