"""The changes of the fleet that are worth a log line, as its observers get them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ChangeKind", "FleetChange"]

ChangeKind = Literal[
    "neuron_added",
    "neuron_removed",
    "neuron_moved",
    "neuron_up",
    "neuron_down",
    "model_seen",
    "model_gone",
    "status_changed",
    "breaker_opened",
    "breaker_tried",
    "breaker_closed",
    "draining",
    "undrained",
]


@dataclass(frozen=True, slots=True)
class FleetChange:
    """One change. `before` and `after` are statuses of the model; `detail` is why a node is down or a breaker open."""

    kind: ChangeKind
    node: str
    model: str | None = None
    before: str | None = None
    after: str | None = None
    detail: str | None = None
