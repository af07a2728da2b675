"""Everything an operator can set in `neuron.toml`, as frozen dataclasses. Only `load` checks values.

The string below a key is its description in `cortex schema neuron`. The names of keys end with their units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from catalogue.toml.addresses import Listen, ListenAddress, PathBesideConfig, Secret
from catalogue.toml.types import (
    FILE,
    Count,
    CountOrZero,
    Flag,
    Name,
    Number,
    NumberOrZero,
    String,
    checked,
    refuse_duplicates,
)
from neuron.agent.config import rules

__all__ = ["ApiSettings", "EngineKind", "EngineSettings", "ModelSettings", "NeuronFile", "StateDirSettings"]

EngineKind: TypeAlias = Literal["llamacpp", "vllm", "sglang", "transformers", "openai"]

_LISTEN = Listen("127.0.0.1", 13131)


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The neuron's own API."""

    listen: ListenAddress = _LISTEN
    """Where the neuron API listens. Beyond loopback it needs `token`, or `open = true`."""
    token: Secret | None = field(default=None, repr=False)
    """Bearer token of the API, except /health; gateways send it as `[[neurons]] token`. No default."""
    open: Flag = False
    """Serve without a token beyond loopback, and have engines listen there too. For closed networks only."""
    allow_any: Flag = False
    """Load models that have no [[models]] table, with the engine's template."""
    advertise: Name | None = None
    """Host in inference URLs. No default: gateways use the host by which they know this neuron."""
    cert: PathBesideConfig | None = None
    """Certificate chain (PEM) for TLS; needs `key`. Relative to this file. No default: no TLS."""
    key: PathBesideConfig | None = None
    """Private key (PEM) of `cert`. Relative to this file. No default."""


@dataclass(frozen=True, slots=True)
class StateDirSettings:
    """Where the neuron keeps what it has learnt, the processes it has started, and the engines' logs."""

    dir: PathBesideConfig | None = None
    """The directory. Relative to this file. Default: `neuron-state` beside it."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One kind of inference engine, and how to run it."""

    kind: EngineKind = "openai"
    """Which engine it is: that gives defaults for the keys below, and says how its requests in flight are read."""
    command: tuple[String, ...] | None = None
    """What to run, with placeholders in {braces}. An argument whose placeholder has no value is left out, with the
    option before it. No default for kind = "openai"."""
    ready: Annotated[str, rules.URL_PATH] | None = None
    """Path that answers 200 once the engine can serve. The default is that of `kind`."""
    models: Annotated[str, rules.URL_PATH] | None = None
    """Path of the engine's model list. Default: /v1/models."""
    env: Mapping[Annotated[str, rules.ENVIRONMENT_NAME], String] = field(default_factory=dict)
    """Environment variables, beside those of the neuron."""
    load_seconds: Number = 1800
    """Seconds that a start may take."""
    stop_seconds: Number = 20
    """Seconds that the engine may take to end after SIGTERM; then SIGKILL."""
    release_seconds: NumberOrZero = 20
    """Seconds to wait, after the engine's end, for its device memory to be free."""
    hang_seconds: NumberOrZero = 120
    """Seconds without an answer to `ready`, while there is work, after which the engine is restarted; 0 = never."""
    max_restarts: CountOrZero = 3
    """Number of crashes within `window_seconds` after which the engine is restarted. One more poisons the model."""
    window_seconds: Number = 600
    """Seconds for which a crash counts towards `max_restarts`."""
    ports: Annotated[rules.PortRange, rules.PORT_RANGE] = rules.DEFAULT_PORTS
    """The ports that engines may listen on, as "first-last"."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One model of this host."""

    id: Name
    """The name that gateways and clients use."""
    engine: Name
    """The [engines.NAME] table that runs it."""
    source: String | None = None
    """What the engine loads: a file, a folder or a hub id. Paths that begin with ./ or ../ are relative to this file.
    Default: the id."""
    args: tuple[String, ...] = ()
    """Further arguments for the engine."""
    env: Mapping[Annotated[str, rules.ENVIRONMENT_NAME], String] = field(default_factory=dict)
    """Environment variables, beside those of the engine."""
    devices: tuple[CountOrZero, ...] | None = None
    """Indices of the devices to use. No default: chosen by free memory."""
    min_devices: Count = 1
    """Number of devices it needs."""
    vram_mb: Count | None = None
    """Device memory it needs in all, in MiB. No default: measured at its first load."""
    context: Count | None = None
    """Context length in tokens. No default: the engine's."""
    preload: Flag = False
    """Load it when the neuron starts."""
    idle_ttl_seconds: NumberOrZero = 0
    """Seconds without a request after which it is unloaded; 0 = never."""
    sleep: Annotated[int, Field(strict=True, ge=0, le=2)] = 0
    """Sleep level, 1 or 2, at which it sleeps instead of being unloaded; 0 = unload. For kind = "vllm" only."""


@dataclass(frozen=True, slots=True)
class NeuronFile:
    """Settings of the cortex neuron. Read again when the file changes, and on SIGHUP."""

    __pydantic_config__ = FILE

    api: Annotated[ApiSettings, checked(rules.check_api)] = ApiSettings()
    state: StateDirSettings = StateDirSettings()
    engines: Mapping[Name, Annotated[EngineSettings, checked(rules.check_engine)]] = field(default_factory=dict)
    """The inference engines of this host, one table each, by the name that `[[models]] engine` uses."""
    models: Annotated[
        tuple[Annotated[ModelSettings, checked(rules.check_model)], ...], checked(refuse_duplicates("id"))
    ] = ()
    """The models of this host, one table each. Default: none."""
