"""The neuron control API as types: its calls, its answers and its errors. `neuron_client.py` sends the calls.

Neurons differ in age, so answers are read leniently: unknown fields are ignored, optional ones may be missing or null,
and a float is accepted for an integer. An answer that cannot be read is `NeuronMalformed`, never a guess.

    NeuronError
    +-- NeuronUnreachable   no connection, or it broke before the answer was complete
    +-- NeuronRefused       the answer has a status other than 200; `text` is its error text
    +-- NeuronMalformed     the answer is a 200 that this API does not allow
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec

LARGEST = 2**53  # no real number is larger, and a larger one makes int(), float() or a scrape overflow
Number: TypeAlias = (
    Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
    | Annotated[float, msgspec.Meta(ge=-float(LARGEST), le=float(LARGEST))]
)


class NeuronError(Exception):
    """A control call failed. `str()` is fit for a log line."""


class NeuronUnreachable(NeuronError):
    """No connection, or it broke before the answer was complete. Whether the neuron acted is unknown."""


class NeuronRefused(NeuronError):
    """The neuron answered with a status other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class NeuronMalformed(NeuronError):
    """The neuron answered 200 with a body that this API does not allow."""


# Answers: msgspec ignores unknown fields by default, as intended ......................................................


class DiscoveredDevice(msgspec.Struct, frozen=True):
    """The constant facts of a GPU. Memory in MB."""

    index: Number
    vram_total_mb: Number
    name: str | None = None
    compute_capability: str | None = None


class Discovery(msgspec.Struct, frozen=True):
    """`GET /discovery`."""

    hostname: str | None = None
    os: str | None = None
    kernel: str | None = None
    cuda_version: str | None = None
    driver_version: str | None = None
    cuda_unavailable_reason: str | None = None
    max_prompt_tokens: Number | None = None
    devices: tuple[DiscoveredDevice, ...] | None = None
    harnesses: tuple[str, ...] | None = None


class DeviceReading(msgspec.Struct, frozen=True):
    """The readings of a GPU. Memory in MB, utilization in percent, temperature in degrees Celsius, power in watts."""

    index: Number
    vram_used_mb: Number | None = None
    vram_free_mb: Number | None = None
    utilization_pct: Number | None = None
    temp_c: Number | None = None
    power_w: Number | None = None


class FailedActivation(msgspec.Struct, frozen=True):
    """A model that the neuron could not pre-warm."""

    model_id: str
    error: str | None = None


class ActivationState(msgspec.Struct, frozen=True):
    """What the neuron pre-warms."""

    state: str | None = None
    pending: tuple[str, ...] | None = None
    in_progress: str | None = None
    completed: tuple[str, ...] | None = None
    failed: tuple[FailedActivation, ...] | None = None


class ModelCounters(msgspec.Struct, frozen=True):
    """The neuron's own counters for one model."""

    id: str
    in_flight: Number | None = 0
    queue_depth: Number | None = 0


class Health(msgspec.Struct, frozen=True):
    """`GET /health`. `models` is None if the neuron does not count requests."""

    uptime_secs: Number | None = None
    devices: tuple[DeviceReading, ...] | None = None
    activation: ActivationState | None = None
    models: tuple[ModelCounters, ...] | None = None


class TokenLimit(msgspec.Struct, frozen=True):
    """Token limits of a model."""

    context: Number | None = None
    input: Number | None = None
    output: Number | None = None


class Servable(msgspec.Struct, frozen=True):
    """Whether a loaded model can answer requests."""

    ok: bool = True
    reason: str | None = None
    detail: str | None = None


class NeuronModel(msgspec.Struct, frozen=True):
    """One entry of `GET /models`."""

    id: str
    status: str
    harness: str | None = None
    devices: tuple[Number, ...] | None = None
    vram_used_mb: Number | None = None
    capabilities: tuple[str, ...] | None = None
    limit: TokenLimit | None = None
    tool_call: bool | None = None
    reasoning: bool | None = None
    servable: Servable | None = None
    # Newer neurons add these. A value of another type must not cost the whole answer.
    reason: Any = None
    progress: Any = None
    engine: Any = None
    serves: Any = None
    dialects: Any = None
    asleep_level: Any = None


# Calls ................................................................................................................


class ControlApi(Protocol):
    """The calls that the poller makes. Any may hang: the caller sets the deadline. See NeuronClient."""

    async def discovery(self) -> Discovery: ...  # noqa: D102 - see NeuronClient
    async def health(self) -> Health: ...  # noqa: D102 - as above
    async def models(self) -> tuple[NeuronModel, ...]: ...  # noqa: D102 - as above
    async def endpoint(self, model_id: str) -> str: ...  # noqa: D102 - as above


class LoadingApi(ControlApi, Protocol):
    """The calls for loading and unloading, in addition."""

    async def load(
        self,
        model_id: str,
        harness: str,
        *,
        quant: str | None = None,
        tensor_parallel: int | None = None,
        devices: Sequence[int] | None = None,
    ) -> None:
        """See NeuronClient."""
        ...

    async def unload(self, model_id: str) -> None:
        """See NeuronClient."""
        ...
