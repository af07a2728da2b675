"""A `ModelHost` over engines that follow a script, on devices that add up, for tests under a virtual clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from neuron.agent.config.load import parse_neuron_file
from neuron.agent.devices.device_memory import DeviceMemory
from neuron.agent.devices.devices import DeviceUsage, HostDevice
from neuron.agent.engines.engine_client import EngineUnreachable
from neuron.agent.engines.launch import LOOPBACK
from neuron.agent.process.engine_output import EngineOutput
from neuron.agent.process.ports import PortAllocator
from neuron.agent.supervision.engine_tools import EngineTools
from neuron.agent.supervision.host import ModelHost, ModelLoadRequest
from neuron.agent.supervision.model_status import ModelStatus
from neuron.agent.supervision.model_supervisor import ModelSupervisor
from neuron.agent.supervision.state_file import StateFile

DEVICE_MB = 24_000


@dataclass
class Script:
    """How the engines of one model behave; a test changes it while they run."""

    memory_mb: int = 8_000
    ready_after_s: float = 5.0
    exits_at_start: int | None = None
    prints: bytes = b""
    ignores_sigterm: bool = False
    releases_after_s: float = 0.0
    hangs: bool = False
    in_flight: int = 0
    refuses: frozenset[str] = frozenset()
    sleep_s: float = 0.0
    wake_s: float = 0.0


class ScriptedEngine:
    """One engine process; `RunningEngine` and `EngineCalls` in one."""

    def __init__(
        self, world: World, command: Sequence[str], env: Mapping[str, str], output: EngineOutput, stop_s: float
    ):
        self.command = list(command)
        self.env = dict(env)
        self.port = int(self.command[self.command.index("--port") + 1])
        self.model_id = self.command[self.command.index("--served-model-name") + 1]
        self.script = world.scripts.setdefault(self.model_id, Script())
        self.stop_s = stop_s
        self.pid: int | None = None
        self.exit_code: int | None = None
        self.asleep_level = 0
        self.calls: list[str] = []
        self.wakes = 0
        self.killed = False
        self._output = output
        self._world = world
        self._ended = trio.Event()
        self._stop_asked = trio.Event()
        self._ready_at = 0.0

    # RunningEngine

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> int:
        world = self._world
        assert self.port not in world.running, "two engines on one port"
        self.pid = 4_000_000 + len(world.started)
        world.started.append(self)
        world.running[self.port] = self
        self._ready_at = trio.current_time() + self.script.ready_after_s
        self._output.feed(self.script.prints)
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey)
                exit_code = self.script.exits_at_start
                if exit_code is not None:
                    await trio.sleep(0.5)
                    self.crash(exit_code)
                await self._ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            del world.running[self.port]
            if self.script.releases_after_s:
                world.linger(self)
        assert self.exit_code is not None
        return self.exit_code

    async def _obey(self) -> None:
        await self._stop_asked.wait()
        if self.script.ignores_sigterm:
            await trio.sleep(self.stop_s)
            self.crash(137)
        self.crash(143)

    def crash(self, exit_code: int = 139) -> None:
        self.exit_code = exit_code if self.exit_code is None else self.exit_code
        self._ended.set()

    def stop(self) -> None:
        self._stop_asked.set()

    def kill(self) -> None:
        self.killed = True
        self.crash(137)

    @property
    def memory_mb(self) -> int:
        return 500 if self.asleep_level else self.script.memory_mb

    # EngineCalls

    async def get(self, path: str) -> tuple[int, bytes]:
        await self._answer()
        if path == "/health":
            return (200 if trio.current_time() >= self._ready_at else 503), b"{}"
        if path == "/v1/models":
            return 200, msgspec.json.encode({"data": [{"id": self.model_id, "max_model_len": 4096}]})
        if path == "/metrics":
            running = f'vllm:num_requests_running{{model_name="m"}} {self.script.in_flight}.0\n'
            return 200, f"{running}vllm:num_requests_waiting 0.0\nvllm:generation_tokens_total 7\n".encode()
        return 404, b""

    async def post(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """As vLLM, and nothing but the sequences that its documentation has."""
        await self._answer()
        call = path if body is None else f"{path} {body['method']}"
        if call in self.script.refuses or call not in _NEXT_CALLS.get(tuple(self.calls), ()):
            return 500, f"refused: {call} after {self.calls}".encode()
        assert self.env["VLLM_SERVER_DEV_MODE"] == "1"
        assert "--enable-sleep-mode" in self.command
        await trio.sleep(self.script.sleep_s if call.startswith("/sleep") else self.script.wake_s)
        await self._answer()
        self.calls.append(call)
        if call.startswith("/sleep"):
            self.asleep_level = int(call[-1])
        elif tuple(self.calls) not in _NEXT_CALLS:
            self.calls, self.asleep_level = [], 0
            self.wakes += 1
        return 200, b""

    async def _answer(self) -> None:
        if self.script.hangs:
            await trio.sleep_forever()
        if self._world.running.get(self.port) is not self:
            raise EngineUnreachable("connection refused")
        await trio.lowlevel.checkpoint()


_LEVEL_2 = ("/sleep?level=2", "/wake_up?tags=weights", "/collective_rpc reload_weights", "/wake_up?tags=kv_cache")
_NEXT_CALLS: dict[tuple[str, ...], set[str]] = {
    (): {"/sleep?level=1", "/sleep?level=2"},
    ("/sleep?level=1",): {"/wake_up"},
    _LEVEL_2[:1]: {_LEVEL_2[1]},
    _LEVEL_2[:2]: {_LEVEL_2[2]},
    _LEVEL_2[:3]: {_LEVEL_2[3]},
}


@dataclass
class World:
    """All engines, and the devices they share."""

    devices: int = 1
    scripts: dict[str, Script] = field(default_factory=dict)
    started: list[ScriptedEngine] = field(default_factory=list)
    running: dict[int, ScriptedEngine] = field(default_factory=dict)
    lingering: list[tuple[float, ScriptedEngine]] = field(default_factory=list)
    foreign_mb: int = 0
    host_memory_mb: int = 100_000
    loads: list[tuple[str, float]] = field(default_factory=list)

    def linger(self, engine: ScriptedEngine) -> None:
        """Its memory is free a while after its end."""
        self.lingering.append((trio.current_time() + engine.script.releases_after_s, engine))

    async def read(self) -> list[DeviceUsage]:
        await trio.lowlevel.checkpoint()
        used: Counter[int] = Counter(dict.fromkeys(range(self.devices), self.foreign_mb))
        holding = [engine for until, engine in self.lingering if until > trio.current_time()]
        for engine in (*self.running.values(), *holding):
            seen = [int(uuid.removeprefix("GPU-")) for uuid in engine.env["CUDA_VISIBLE_DEVICES"].split(",")]
            for index in seen:
                used[index] += engine.memory_mb // len(seen)
        assert max(used.values()) <= DEVICE_MB, f"out of memory: {used}"
        return [DeviceUsage(i, used[i], DEVICE_MB - used[i], 0, 40, 100.0, ()) for i in range(self.devices)]

    def tools(self, state: StateFile, *, forwarded: bool) -> EngineTools:
        infos = [HostDevice(i, "Scripted", DEVICE_MB, "9.0", f"GPU-{i}") for i in range(self.devices)]

        @asynccontextmanager
        async def open_client(port: int) -> AsyncIterator[ScriptedEngine]:
            yield self.running[port]

        return EngineTools(
            start_engine=lambda command, env, output, *, stop_s: ScriptedEngine(self, command, env, output, stop_s),
            open_client=open_client,
            device_environment=lambda indices: {"CUDA_VISIBLE_DEVICES": ",".join(f"GPU-{i}" for i in indices)},
            ports=PortAllocator(),
            memory=DeviceMemory(infos, self.read),
            state=state,
            mark={},
            log_dir=None,
            on_loaded=lambda model_id, took_s: self.loads.append((model_id, took_s)),
            engine_host=LOOPBACK,
            forwarded=forwarded,
        )


ENGINE = """
[engines.vllm]
kind = "vllm"
load_seconds = 100
stop_seconds = 10
release_seconds = 8
hang_seconds = 60
max_restarts = 2
window_seconds = 300
"""


def model_table(model_id: str, **keys: object) -> str:
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in keys.items()]
    return "\n".join([f'[[models]]\nid = "{model_id}"\nengine = "vllm"', *lines, ""])


A, B = model_table("a"), model_table("b")


class Scene:
    """A running host, and its world."""

    def __init__(self, host: ModelHost, world: World, nursery: trio.Nursery) -> None:
        self.host = host
        self.world = world
        self.nursery = nursery

    def __getitem__(self, model_id: str) -> ModelSupervisor:
        return self.host.models[model_id]

    def engine(self, model_id: str) -> ScriptedEngine:
        return next(engine for engine in self.world.running.values() if engine.model_id == model_id)

    def statuses(self) -> dict[str, str]:
        return {supervisor.id: supervisor.status.value for supervisor in self.host.models.values()}

    async def load(self, model_id: str, **keys: Any) -> None:
        await self.host.load(ModelLoadRequest(model_id, **keys))

    async def is_in(self, model_id: str, status: ModelStatus) -> None:
        """Wait until the model is in this state."""
        with trio.fail_after(10_000):
            while not self[model_id].is_in(status):
                await self[model_id].changed()

    def reload(self, text: str):
        return self.host.apply(settings_of(text))


def settings_of(text: str):
    return parse_neuron_file((ENGINE + text).encode(), Path("/etc/cortex/neuron.toml")).settings


async def read_devices(memory: DeviceMemory, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    task_status.started()
    await memory.run()


@asynccontextmanager
async def scripted_host(
    text: str,
    *,
    scripts: dict[str, Script] | None = None,
    devices: int = 1,
    forwarded: bool = False,
    state: StateFile | None = None,
) -> AsyncIterator[Scene]:
    """A host that runs `text` (without the engine's table), its end, and a check that nothing is left."""
    world = World(devices=devices, scripts=dict(scripts or {}))
    tools = world.tools(state or StateFile(Path("/nonexistent/state.json")), forwarded=forwarded)
    host = ModelHost(settings_of(text), Path("/etc/cortex"), {"PATH": "/bin"}, tools, lambda: world.host_memory_mb)
    await tools.memory.refresh()
    # Something that waits forever would otherwise let the virtual clock run on without end.
    with trio.fail_after(20_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(read_devices, tools.memory)
            await nursery.start(host.run)
            yield Scene(host, world, nursery)
            await host.end(1000)
            nursery.cancel_scope.cancel()
    assert world.running == {}
    assert tools.memory._claims == []
    assert tools.ports._taken == set()
