"""What a neuron reports: its devices, its models, and what it pre-warms. As last polled, without our own bookkeeping.

The poller makes these from answers of the control API; the fleet stores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from catalogue.models import Limit

__all__ = [
    "ActivationReport",
    "DeviceReport",
    "ModelReport",
    "NodeReport",
    "PollMark",
    "requests_of_others",
    "without_readings",
]


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One GPU. Memory in MB as the neuron counts it; a reading is None if the last `/health` had none."""

    index: int
    name: str
    vram_total_mb: int
    compute_capability: str | None = None
    vram_used_mb: int | None = None
    vram_free_mb: int | None = None
    utilization_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model as its neuron last described it.

    `in_flight` and `queue_depth` are the neuron's own counters and include our requests; None means that the neuron
    does not count, which is not the same as idle. `url` is the base URL of the model's inference API as seen from this
    gateway; None while unknown, and then the model is not routable.

    `reason` is why it is in this status, `progress` the fraction of a load that is done. `engine` is the kind of the
    inference engine, `serves` the engine's own name of the model, `dialects` the APIs that it speaks. `asleep_level` is
    how a model with the status `asleep` sleeps; `vram_used_mb` is then what it still holds.
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
    reason: str | None = None
    progress: float | None = None
    engine: str | None = None
    serves: str | None = None
    dialects: tuple[str, ...] | None = None
    asleep_level: int | None = None


@dataclass(frozen=True, slots=True)
class ActivationReport:
    """What a neuron pre-warms by itself. Model ids in the neuron's order; `failed` maps an id to its error."""

    state: str = "ready"
    in_progress: str | None = None
    pending: tuple[str, ...] = ()
    completed: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def awaited(self) -> tuple[str, ...]:
        """The ids that are loaded now or next, in order."""
        return self.pending if self.in_progress is None else (self.in_progress, *self.pending)


@dataclass(frozen=True, slots=True)
class NodeReport:
    """Everything that one poll learnt.

    None means that the poll could not learn it. The fleet then keeps topology, activation and uptime as they were (a
    failing `/health` must neither hide a GPU nor start a second load), and marks device readings as unknown. Only for
    `max_prompt_tokens`, the longest prompt that the neuron takes for any model, None means that there is no such limit.
    `models_left_out` counts the models that the neuron lists and `models` leaves out, because there are too many.
    """

    models: tuple[ModelReport, ...]
    devices: tuple[DeviceReport, ...] | None = None
    activation: ActivationReport | None = None
    uptime_s: float | None = None
    max_prompt_tokens: int | None = None
    models_left_out: int = 0


@dataclass(frozen=True, slots=True)
class PollMark:
    """The fleet's version and the node's leases by model when a poll began; see `Fleet.mark`."""

    version: int
    leases: Mapping[str, int]


def requests_of_others(report: ModelReport | None, own_requests: int) -> int:
    """How many of the reported requests come from other clients of the neuron.

    `own_requests` is the larger of our leases when the poll began and when it ended: the neuron counted at some time in
    between. The larger number errs towards "all are ours", which our live leases correct at once. The smaller one would
    count requests against the node that are gone, until the next poll.
    """
    if report is None:
        return 0
    return max((report.in_flight or 0) + (report.queue_depth or 0) - own_requests, 0)


def without_readings(devices: tuple[DeviceReport, ...] | None) -> tuple[DeviceReport, ...] | None:
    """The topology alone, for when the readings are no longer known."""
    if devices is None:
        return None
    return tuple(
        DeviceReport(device.index, device.name, device.vram_total_mb, device.compute_capability) for device in devices
    )
