"""From the settings of a model and its engine to a command line and an environment. No processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuron.agent.config.placeholders import fill_in
from neuron.agent.config.settings import EngineSettings, ModelSettings
from neuron.agent.engines.kinds import llamacpp_program, search_path, traits_of

__all__ = ["LOOPBACK", "EngineHost", "Launch", "LaunchOptions", "resolved_source"]


@dataclass(frozen=True, slots=True)
class EngineHost:
    """Where engines listen, and how the neuron reaches them there."""

    bind: str = "127.0.0.1"

    @property
    def connect(self) -> str:
        """The address for connections of the neuron itself."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bind, self.bind)

    @property
    def in_url(self) -> str:
        """`connect` as a URL has it."""
        return f"[{self.connect}]" if ":" in self.connect else self.connect


LOOPBACK = EngineHost()
"""Engines listen on loopback only, unless `[api] open` exposes them: their own key checks leave paths open."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What a load request may add to the settings."""

    quant: str | None = None
    tensor_parallel: int | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """How to run one model.

    Args:
        model: Its settings.
        engine: The settings of its engine.
        options: Of the load request.
        directory: Of `neuron.toml`: relative paths are relative to it.
        environ: The environment of the neuron.
        host: Where the engine listens.
    """

    model: ModelSettings
    engine: EngineSettings
    options: LaunchOptions
    directory: Path
    environ: Mapping[str, str]
    host: EngineHost = LOOPBACK

    @property
    def ready_path(self) -> str:
        """The path that answers 200 once the engine can serve."""
        return self.engine.ready or traits_of(self.engine.kind).ready

    @property
    def models_path(self) -> str:
        """The path of the engine's list of models."""
        return self.engine.models or "/v1/models"

    def command(self, port: int, devices: Sequence[int]) -> list[str]:
        """The command line."""
        source = resolved_source(self.model, self.directory)
        parallel = self.options.tensor_parallel or len(devices)
        values = {
            "model_id": self.model.id,
            "source": str(source),
            "port": str(port),
            "host": self.host.bind,
            "devices": ",".join(map(str, devices)),
            "tensor_parallel": str(parallel) if parallel > 1 else None,
            "quant": self.options.quant,
            "context": None if self.model.context is None else str(self.model.context),
        }
        return fill_in((*self._template(is_path=isinstance(source, Path)), *self.model.args), values)

    def _template(self, *, is_path: bool) -> tuple[str, ...]:
        traits = traits_of(self.engine.kind)
        template = self.engine.command
        if template is None:
            template = (traits.command_for_path if is_path else None) or traits.command
            if self.engine.kind == "llamacpp":
                template = (*llamacpp_program(self.environ.get("PATH", os.defpath)), *template[1:])
        return (*template, *(traits.sleep_command if self.model.sleep else ()))

    def environment(self, device_variables: Mapping[str, str]) -> dict[str, str]:
        """The environment: the neuron's, then the engine's settings, then the model's, then the devices."""
        path = search_path(self.environ.get("PATH", os.defpath))
        sleep = dict(traits_of(self.engine.kind).sleep_env) if self.model.sleep else {}
        # Without it the output of engines in Python would reach the log in blocks of 8 KiB.
        return {
            **self.environ,
            "PATH": path,
            "PYTHONUNBUFFERED": "1",
            **self.engine.env,
            **self.model.env,
            **sleep,
            **device_variables,
        }

    def fingerprint(self, device_count: int) -> str:
        """The same for the same engine arguments: the key of what was measured with them."""
        command = self.command(0, range(device_count))
        facts = [command, sorted(self.engine.env.items()), sorted(self.model.env.items()), self.model.sleep]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def resolved_source(model: ModelSettings, directory: Path) -> Path | str:
    """What the engine loads: a path of this host, or the name of a model on a hub.

    A path begins with /, ./, ../ or ~/, or ends with .gguf. `Qwen/Qwen3-8B` alone is a name on a hub.
    """
    source = model.source or model.id
    if source.startswith(("/", "./", "../", "~/")) or source.endswith(".gguf"):
        return directory / Path(source).expanduser()
    return source
