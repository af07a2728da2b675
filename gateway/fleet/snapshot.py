"""The fleet at one moment, for display: the status page, the admin API, the metrics. Nothing here changes."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.fleet.node import Node, NodeModel
from gateway.fleet.reports import Activation, Device, ModelReport


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One model on one node, for display. `idle_s` and `resident_s` are ages in seconds, None if never."""

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


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """One neuron, for display."""

    name: str
    endpoint: str
    kind: str
    healthy: bool
    ever_answered: bool
    draining: bool
    misses: int
    uptime_s: float | None
    leases: int
    devices: tuple[Device, ...] | None
    activation: Activation
    models: tuple[ModelSnapshot, ...]


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """The whole fleet at one moment. Immutable; msgspec encodes it as it is."""

    version: int
    nodes: tuple[NodeSnapshot, ...]


@dataclass(frozen=True, slots=True)
class FleetStatistics:
    """The totals, cheap enough to ask on every `/health`."""

    nodes_healthy: int
    nodes_total: int
    leases: int
    ever_answered: bool


def node_snapshot(node: Node, now: float) -> NodeSnapshot:
    """The node as it is; `now` is the time by the fleet's clock, in seconds."""
    known = sorted((held for held in node.models.values() if held.status is not None), key=lambda held: held.id)
    return NodeSnapshot(
        name=node.name,
        endpoint=node.endpoint,
        kind=node.kind,
        healthy=node.healthy,
        ever_answered=node.ever_answered,
        draining=node.draining,
        misses=node.misses,
        uptime_s=node.uptime_s,
        leases=node.leases,
        devices=node.devices,
        activation=node.activation,
        models=tuple(_model_snapshot(held, now) for held in known),
    )


def _model_snapshot(held: NodeModel, now: float) -> ModelSnapshot:
    report = held.report or ModelReport(held.id, held.status or "")
    return ModelSnapshot(
        id=held.id,
        status=held.status or "",
        routable=held.routable,
        harness=report.harness,
        devices=report.devices,
        vram_used_mb=report.vram_used_mb,
        servable_ok=report.servable_ok,
        servable_reason=report.servable_reason,
        in_flight=report.in_flight,
        queue_depth=report.queue_depth,
        url=report.url,
        leases=held.leases,
        load=held.load,
        idle_s=None if held.last_used is None else now - held.last_used,
        resident_s=None if held.resident_since is None else now - held.resident_since,
    )
