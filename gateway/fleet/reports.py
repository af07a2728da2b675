"""What a neuron reports: its devices, its models, and what it is about to load. As last heard; nothing of ours.

The poller makes these of what the control API says, and the fleet keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from catalogue.models import Limit


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. Memory in MB as the neuron counts it; a reading is None when the last `/health` had none."""

    index: int
    name: str
    vram_total_mb: int
    compute_capability: str | None = None
    vram_used_mb: int | None = None
    vram_free_mb: int | None = None
    utilization_pct: float | None = None
    temp_c: float | None = None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model as its neuron last described it.

    `in_flight` and `queue_depth` are the neuron's own counters, ours included; None where it does not count, which is
    not the same as idle. `url` is the base of the model's inference API as *we* reach it; None while nobody could
    tell, and without it the model is not routable.
    """

    id: str
    status: str
    harness: str | None = None
    devices: tuple[int, ...] = ()
    vram_used_mb: int | None = None
    capabilities: tuple[str, ...] | None = None
    limit: Limit | None = None
    tool_call: bool | None = None
    reasoning: bool | None = None
    servable_ok: bool = True
    servable_reason: str | None = None
    in_flight: int | None = None
    queue_depth: int | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Activation:
    """What a neuron is pre-warming on its own account. Ids in its own order; `failed` maps id to error."""

    state: str = "ready"
    in_progress: str | None = None
    pending: tuple[str, ...] = ()
    completed: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def awaited(self) -> tuple[str, ...]:
        """The ids it is about to have, the one under way first."""
        return self.pending if self.in_progress is None else (self.in_progress, *self.pending)


@dataclass(frozen=True, slots=True)
class NodeReport:
    """Everything one poll learnt.

    None where it could not: the fleet then keeps its topology, its activation and its uptime as they were (a failing
    `/health` must neither hide a GPU nor start a second load), and device readings become unknown. Only
    `max_prompt_tokens`, the longest prompt that the neuron takes for any model, is None where it has no such limit.
    """

    models: tuple[ModelReport, ...]
    devices: tuple[Device, ...] | None = None
    activation: Activation | None = None
    uptime_s: float | None = None
    max_prompt_tokens: int | None = None


def not_ours(report: ModelReport | None, ours: int) -> int:
    """How many of the reported requests are not ours.

    `ours` is the larger of our leases when the poll began and when it ended: the neuron counted somewhere in between.
    Taking the larger errs towards "they are all mine", an error that our live leases mend at once, where the opposite
    would hold phantom requests against the node until the next poll.
    """
    if report is None:
        return 0
    return max((report.in_flight or 0) + (report.queue_depth or 0) - ours, 0)


def without_readings(devices: tuple[Device, ...] | None) -> tuple[Device, ...] | None:
    """What is left of devices whose readings are no longer known."""
    if devices is None:
        return None
    return tuple(
        Device(device.index, device.name, device.vram_total_mb, device.compute_capability) for device in devices
    )
