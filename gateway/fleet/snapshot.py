"""The fleet at one moment, immutable: for the status page, the admin API and the metrics."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gateway.fleet.node import Node, NodeModel
from gateway.fleet.reports import ActivationReport, DeviceReport, ModelReport


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One model on one node. `idle_s` and `resident_s` are ages in seconds; None if never used or not loaded."""

    id: str
    status: str
    routable: bool
    harness: str | None
    devices: tuple[int, ...]
    vram_used_mb: int | None
    servable_ok: bool
    servable_reason: str | None
    in_flight: int | None
    queue_depth: int | None
    url: str | None
    leases: int
    load: int
    idle_s: float | None
    resident_s: float | None
    reason: str | None
    progress: float | None
    engine: str | None
    asleep_level: int | None


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """One node."""

    name: str
    endpoint: str
    kind: str
    healthy: bool
    ever_answered: bool
    draining: bool
    misses: int
    failure: str | None
    models_left_out: int
    uptime_s: float | None
    leases: int
    devices: tuple[DeviceReport, ...] | None
    activation: ActivationReport
    models: tuple[ModelSnapshot, ...]


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """The whole fleet. msgspec encodes it as it is."""

    version: int
    nodes: tuple[NodeSnapshot, ...]


@dataclass(frozen=True, slots=True)
class FleetStatistics:
    """The totals, cheap enough for every `/health`."""

    nodes_healthy: int
    nodes_total: int
    nodes_drained: int
    leases: int


def fleet_statistics(nodes: Collection[Node], leases: int) -> FleetStatistics:
    """The totals of these nodes."""
    return FleetStatistics(
        nodes_healthy=sum(node.healthy for node in nodes),
        nodes_total=len(nodes),
        nodes_drained=sum(node.draining for node in nodes),
        leases=leases,
    )


def node_snapshot(node: Node, now: float) -> NodeSnapshot:
    """The node at `now`, the fleet's clock in seconds."""
    known = sorted((model for model in node.models.values() if model.status is not None), key=lambda model: model.id)
    return NodeSnapshot(
        name=node.name,
        endpoint=node.endpoint,
        kind=node.kind,
        healthy=node.healthy,
        ever_answered=node.ever_answered,
        draining=node.draining,
        misses=node.misses,
        failure=node.failure,
        models_left_out=node.models_left_out,
        uptime_s=node.uptime_s,
        leases=node.leases,
        devices=node.devices,
        activation=node.activation,
        models=tuple(_model_snapshot(model, now) for model in known),
    )


def _model_snapshot(model: NodeModel, now: float) -> ModelSnapshot:
    report = model.report or ModelReport(model.id, model.status or "")
    return ModelSnapshot(
        id=model.id,
        status=model.status or "",
        routable=model.routable,
        harness=report.harness,
        devices=report.devices,
        vram_used_mb=report.vram_used_mb,
        servable_ok=report.servable_ok,
        servable_reason=report.servable_reason,
        in_flight=report.in_flight,
        queue_depth=report.queue_depth,
        url=report.url,
        leases=model.leases,
        load=model.load,
        idle_s=None if model.last_used is None else now - model.last_used,
        resident_s=None if model.resident_since is None else now - model.resident_since,
        reason=report.reason,
        progress=report.progress,
        engine=report.engine,
        asleep_level=report.asleep_level,
    )
