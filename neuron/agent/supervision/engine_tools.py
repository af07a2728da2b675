"""What a supervisor needs to run an engine, one attribute each. Tests replace the first three."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from neuron.agent.devices.device_memory import DeviceMemory
from neuron.agent.engines.engine_client import EngineCalls
from neuron.agent.engines.launch import EngineHost
from neuron.agent.process.engine_output import EngineOutput
from neuron.agent.process.ports import PortAllocator
from neuron.agent.supervision.state_file import StateFile

__all__ = ["EngineTools", "RunningEngine", "StartEngine"]


class RunningEngine(Protocol):
    """One run of one engine; see `EngineProcess`."""

    pid: int | None
    exit_code: int | None

    async def run(self, *, task_status: trio.TaskStatus[None] = ...) -> int:
        """Run to the end, and return the exit status."""
        ...

    def stop(self) -> None:
        """Ask it to end; kill it if it does not."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class StartEngine(Protocol):
    """Makes a `RunningEngine`; nothing runs before its `run`."""

    def __call__(
        self, command: Sequence[str], env: Mapping[str, str], output: EngineOutput, *, stop_s: float
    ) -> RunningEngine:
        """`stop_s`: seconds from SIGTERM to SIGKILL."""
        ...


@dataclass(frozen=True, slots=True)
class EngineTools:
    """The collaborators of every supervisor.

    Args:
        start_engine: Makes an engine process.
        open_client: Opens a client of the engine on a port of loopback.
        device_environment: The variables that show an engine these devices only.
        ports: Hands out ports.
        memory: Admits loads.
        state: Remembers measurements and processes.
        mark: Environment variables by which engines of this neuron are recognised.
        log_dir: Where engine output is written.
        on_loaded: Called with a model's id and the seconds that its load took.
        engine_host: Where engines listen.
        forwarded: Whether requests reach engines through the neuron's forwarder only, which then counts them.
    """

    start_engine: StartEngine
    open_client: Callable[[int], AbstractAsyncContextManager[EngineCalls]]
    device_environment: Callable[[Sequence[int]], dict[str, str]]
    ports: PortAllocator
    memory: DeviceMemory
    state: StateFile
    mark: Mapping[str, str]
    log_dir: Path | None
    on_loaded: Callable[[str, float], None]
    engine_host: EngineHost
    forwarded: bool
