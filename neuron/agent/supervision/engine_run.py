"""One engine process from its start to its end: wait until it is ready, then watch it. One nursery per process.

It reports to a `ModelSupervisor`-like owner by callbacks, and decides one thing only: to kill an engine that does not
become ready in time or that hangs.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from neuron.agent.config.settings import EngineSettings
from neuron.agent.engines.engine_client import EngineCalls, EngineUnreachable
from neuron.agent.engines.launch import Launch
from neuron.agent.engines.reported_load import ReportedLoad, read_load
from neuron.agent.engines.served_model import ServedModel, served_model
from neuron.agent.engines.start_failure import explain_start_failure
from neuron.agent.process.engine_output import EngineOutput
from neuron.agent.process.survivors import start_time
from neuron.agent.supervision.engine_tools import EngineTools, RunningEngine

__all__ = ["EngineRun", "LoadReading", "RunEnd"]

READY_POLL_S = 0.2
READY_ANSWER_S = 5.0  # for one poll before the engine is ready
PROBE_INTERVAL_S = 2.0  # so that a reading of its load is at most 5 s old
PROBE_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class LoadReading:
    """An engine's load, and when it was read (Trio time in s). `load` is None if it does not report any."""

    load: ReportedLoad | None
    at: float


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended: whether the engine was ready before, and why it ended."""

    was_ready: bool
    reason: str


class EngineRun:
    """One run of one engine.

    Args:
        launch: What to run.
        port: Where it listens.
        devices: Which devices it sees.
        output: Gets what it prints.
        tools: Collaborators.
        on_started: Called with the process id of the launcher.
        on_ready: Awaited once it can serve, with a client of the engine and its own name of the model.
        on_activity: Called whenever the engine has worked since the last reading.
        has_work: Whether requests may be in the engine.
        stop: Set when the engine is to end.
    """

    def __init__(
        self,
        launch: Launch,
        port: int,
        devices: tuple[int, ...],
        output: EngineOutput,
        tools: EngineTools,
        *,
        on_started: Callable[[int | None], None],
        on_ready: Callable[[ServedModel], Awaitable[None]],
        on_activity: Callable[[], None],
        has_work: Callable[[], bool],
        stop: trio.Event,
    ) -> None:
        self._launch = launch
        self._port = port
        self._devices = devices
        self._output = output
        self._tools = tools
        self._on_started = on_started
        self._on_ready = on_ready
        self._on_activity = on_activity
        self._has_work = has_work
        self._stop = stop
        self._process: RunningEngine | None = None
        self._client: EngineCalls | None = None
        self._killed_because: str | None = None
        self._ready = False
        self.reading: LoadReading | None = None

    @property
    def _engine(self) -> EngineSettings:
        return self._launch.engine

    async def run(self) -> RunEnd:
        """Run the engine to its end. Cancelling this kills it; none of its processes is left when this returns."""
        model_id = self._launch.model.id
        command = self._launch.command(self._port, self._devices)
        environment = self._launch.environment(self._tools.device_environment(self._devices))
        self._output.begin_run(shlex.join(command))
        process = self._process = self._tools.start_engine(
            command, {**environment, **self._tools.mark}, self._output, stop_s=self._engine.stop_seconds
        )
        try:
            async with trio.open_nursery() as nursery:
                ended = trio.Event()
                await nursery.start(self._run_process, process, ended)
                self._on_started(process.pid)
                self._record(model_id, process)
                nursery.start_soon(self._stop_when_asked, process)
                nursery.start_soon(self._attend)
                await ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._tools.state.process_ended(model_id)
        return RunEnd(self._ready, self._killed_because or self._explain(process))

    async def _run_process(
        self, process: RunningEngine, ended: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await process.run(task_status=task_status)
        except OSError as error:  # of the launcher: no memory, no descriptors
            self._killed_because = f"cannot start a process: {error.strerror or error}"
            task_status.started()
        finally:
            ended.set()

    def _record(self, model_id: str, process: RunningEngine) -> None:
        started = None if process.pid is None else start_time(process.pid)
        if process.pid is not None and started is not None:
            self._tools.state.process_started(model_id, process.pid, started, self._port)

    def _explain(self, process: RunningEngine) -> str:
        return explain_start_failure(self._output.tail(), process.exit_code).text()

    async def _stop_when_asked(self, process: RunningEngine) -> None:
        await self._stop.wait()
        process.stop()

    def kill(self, reason: str) -> None:
        """End the engine at once; `reason` is why."""
        if self._killed_because is None:
            self._killed_because = reason
        if self._process is not None:
            self._process.kill()

    # While it runs ....................................................................................................

    async def _attend(self) -> None:
        async with self._tools.open_client(self._port) as client:
            with trio.move_on_after(self._engine.load_seconds) as in_time:
                await self._wait_until_ready(client)
            if in_time.cancelled_caught:
                failure = explain_start_failure(self._output.tail(), None)
                self.kill(f"not ready within {self._engine.load_seconds:g} s. {failure.text()}")
                return
            self._client = client
            served = await self._read_models(client)
            await self.read_load()
            self._ready = True
            await self._on_ready(served)
            await self._watch(client)

    async def _wait_until_ready(self, client: EngineCalls) -> None:
        is_ready = False
        while not is_ready:
            is_ready = await self._answers(client, READY_ANSWER_S, only=200)
            if not is_ready:
                await trio.sleep(READY_POLL_S)

    async def _read_models(self, client: EngineCalls) -> ServedModel:
        try:
            with trio.move_on_after(READY_ANSWER_S):
                status, body = await client.get(self._launch.models_path)
                if status == 200:
                    return served_model(body, self._launch.model.id)
        except EngineUnreachable:
            pass  # the process ends, or the watch finds that it hangs
        return ServedModel(self._launch.model.id)

    async def _watch(self, client: EngineCalls) -> None:
        """Read the engine's load, and kill the engine if it hangs. Forever."""
        hang_s = self._engine.hang_seconds
        answered_at = trio.current_time()
        while True:
            await trio.sleep(min(PROBE_INTERVAL_S, hang_s / 4 or PROBE_INTERVAL_S))
            if await self._answers(client, PROBE_ANSWER_S):
                answered_at = trio.current_time()
                await self.read_load()
            elif not self._has_work():
                answered_at = trio.current_time()
            elif hang_s and trio.current_time() - answered_at >= hang_s:
                self.kill(f"the engine hung: no answer to {self._launch.ready_path} for {hang_s:g} s")
                return

    async def _answers(self, client: EngineCalls, within_s: float, only: int | None = None) -> bool:
        """Whether the engine answers `ready` in time: at all, or with the status `only`."""
        status = None
        try:
            with trio.move_on_after(within_s):
                status, _ = await client.get(self._launch.ready_path)
        except EngineUnreachable:
            return False
        return status is not None and only in {None, status}

    async def read_load(self) -> ReportedLoad | None:
        """The engine's load now; None if it does not report one or does not answer."""
        client, load = self._client, None
        if client is None:
            return None
        try:
            with trio.move_on_after(PROBE_ANSWER_S) as in_time:
                load = await read_load(self._engine.kind, client)
        except EngineUnreachable:
            return None
        if in_time.cancelled_caught:
            return None
        before = None if self.reading is None else self.reading.load
        if load is not None and (load.in_flight or load.queued or before is None or load.activity != before.activity):
            self._on_activity()
        self.reading = LoadReading(load, trio.current_time())
        return load

    @property
    def client(self) -> EngineCalls | None:
        """A client of the engine while it runs and is ready."""
        return self._client
