"""One model on this host: its state, and the task that keeps its engine running from the load to the unload.

    unloaded -> loading -> loaded -> unloading -> unloaded
                              |  ^                  or asleep -> loading (waking)
                 recovering <-+  |
                     |  +--------+
                     +-> poisoned -> unloaded

Methods that begin something are synchronous: they check and change the state in one step. Their tasks belong to the
nursery of the host (`host.py`), so a client that disconnects ends no load.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import msgspec
import structlog
import trio

from neuron.agent.devices.device_memory import MemoryClaim, MemoryNeed
from neuron.agent.engines.engine_client import EngineCalls
from neuron.agent.engines.launch import Launch
from neuron.agent.engines.load_progress import printed_progress
from neuron.agent.engines.reported_load import ReportedLoad
from neuron.agent.engines.served_model import ServedModel
from neuron.agent.engines.sleep import put_to_sleep, wake_up, why_failed
from neuron.agent.errors import NeuronRequestError, StartFailed
from neuron.agent.process.engine_output import EngineOutput
from neuron.agent.process.ports import NoFreePort
from neuron.agent.supervision.engine_run import EngineRun, RunEnd
from neuron.agent.supervision.engine_tools import EngineTools
from neuron.agent.supervision.load_attempt import LoadAttempt
from neuron.agent.supervision.model_status import CrashHistory, ModelStatus, check_transition
from neuron.agent.supervision.state_file import LearntLoad

__all__ = ["ModelSupervisor"]

READING_AGE_S = 5.0
PORT_ATTEMPTS = 3
_PORT_IN_USE = "the port is in use"

log = structlog.get_logger("cortex.neuron.model")


class ModelSupervisor:
    """One model.

    Args:
        launch: How to run it; a changed configuration replaces it for the next load.
        tools: Collaborators.
    """

    def __init__(self, launch: Launch, tools: EngineTools) -> None:
        self.launch = launch
        self._tools = tools
        self.status = ModelStatus.UNLOADED
        self.reason: str | None = None
        self.attempt = LoadAttempt()
        self.claim: MemoryClaim | None = None
        self.port: int | None = None
        self.served: ServedModel | None = None
        self.forwarded = 0
        """Requests in the forwarder."""
        self.restarts = 0
        self.asleep_level: int | None = None
        self.used_at = 0.0
        """Trio time in s of the last sign of a request."""
        self.removed = False
        """It is in the configuration no more: the host forgets it when it is unloaded."""
        self.transient = False
        """It never was in the configuration: as for `removed`."""
        self.running: Launch | None = None
        """How the engine was started that runs now."""
        path = None if tools.log_dir is None else Path(tools.log_dir, f"{quote(launch.model.id, safe='')}.log")
        self.output = EngineOutput(path)
        self._run: EngineRun | None = None
        self._stop = trio.Event()
        self._load_began = 0.0
        self._devices_wanted: tuple[int, ...] | None = None
        self._awake_mb: dict[int, int] | None = None
        self._failure: NeuronRequestError | None = None
        self._changed = trio.Event()

    @property
    def id(self) -> str:
        """The model's id."""
        return self.launch.model.id

    # State ............................................................................................................

    def become(self, status: ModelStatus, reason: str | None = None) -> None:
        """Change the state, and wake those who wait for that."""
        check_transition(self.status, status)
        level = "warning" if status in {ModelStatus.RECOVERING, ModelStatus.POISONED} else "info"
        getattr(log, level)("model_status", model=self.id, before=self.status.value, after=status.value, reason=reason)
        self.status, self.reason = status, reason
        self._changed.set()
        self._changed = trio.Event()

    def is_in(self, *statuses: ModelStatus) -> bool:
        """Whether the state is one of these now."""
        return self.status in statuses

    @property
    def is_routable(self) -> bool:
        """Whether new requests may be sent to its engine."""
        return self.status is ModelStatus.LOADED and not self.removed

    @property
    def reported_status(self) -> str:
        """The status for the API, and for people."""
        is_drained = self.removed and self.status is ModelStatus.LOADED
        return ModelStatus.UNLOADING.reported if is_drained else self.status.reported

    async def changed(self) -> None:
        """Wait for the next change of the state."""
        await self._changed.wait()

    @property
    def load(self) -> ReportedLoad | None:
        """Requests in the engine, by the forwarder or by the engine's last account; None if unknown."""
        reading = None if self._run is None else self._run.reading
        fresh = reading is not None and reading.at >= trio.current_time() - READING_AGE_S
        reported = reading.load if reading is not None and fresh else None
        if not self._tools.forwarded:
            return reported
        queued = 0 if reported is None else min(reported.queued, self.forwarded)
        return ReportedLoad(self.forwarded - queued, queued)

    @property
    def progress(self) -> float | None:
        """The fraction of a load that is done: as the engine prints it, else by the time the last load took.

        A wake goes by the time that the last wake took.
        """
        if self.status is not ModelStatus.LOADING or self._run is None or self.running is None:
            return None
        learnt, wakes = self._tools.state.learnt(self._fingerprint(self.running)), self.asleep_level is not None
        printed = None if wakes else printed_progress(self.output.tail(8192))
        if printed is not None:
            return printed
        usual_s = learnt.wake_s if wakes else learnt.load_s
        elapsed_s = trio.current_time() - self._load_began
        return None if not usual_s else min(elapsed_s / usual_s, 0.99)

    def _fingerprint(self, launch: Launch) -> str:
        return launch.fingerprint(self._device_count(launch))

    def _device_count(self, launch: Launch) -> int:
        model = launch.model
        return len(model.devices) if model.devices else launch.options.tensor_parallel or model.min_devices

    @property
    def changes_at_next_load(self) -> bool:
        """Whether the configuration has changed since the engine was started."""
        return self.running is not None and (self.running.model, self.running.engine) != (
            self.launch.model,
            self.launch.engine,
        )

    def begin_request(self) -> None:
        """The forwarder sends the engine a request; `end_request` follows."""
        self.forwarded += 1
        self.used_at = trio.current_time()

    def end_request(self) -> None:
        """The request has ended."""
        self.forwarded -= 1
        self.used_at = trio.current_time()

    # Load .............................................................................................................

    def begin_load(self, launch: Launch, devices: tuple[int, ...] | None) -> LoadAttempt:
        """Begin a load of an unloaded model; `run_until_unloaded` does it.

        Args:
            launch: With the options of the request.
            devices: Of the request; those of the settings win.
        """
        self.become(ModelStatus.LOADING)
        self.attempt = LoadAttempt()
        self.running = launch
        self._stop = trio.Event()
        self._failure = None
        self._devices_wanted = launch.model.devices or devices
        self._load_began = self.used_at = trio.current_time()
        return self.attempt

    def begin_unload(self, reason: str | None = None) -> None:
        """Have the engine end. `changed` tells when it has."""
        self.become(ModelStatus.UNLOADING, reason or "is being unloaded")
        if self.claim is not None:
            self._tools.memory.unsettle(self.claim, releasing=True)
        self._stop.set()

    def clear_poison(self) -> None:
        """An operator, or a changed configuration, gives the model another chance."""
        self.become(ModelStatus.UNLOADED)

    async def run_until_unloaded(self) -> None:
        """Load the model, restart its engine after crashes, and return when its memory is free again."""
        launch = self.running
        if launch is None:
            raise RuntimeError("run_until_unloaded before begin_load")
        final, reason = ModelStatus.UNLOADED, None
        try:
            self.claim = await self._admit(launch)
            if self.claim is not None:
                final, reason = await self._keep_running(launch, self.claim)
        except BaseException:
            self._clear()
            self.status = ModelStatus.UNLOADED
            raise
        self._clear()
        self.become(final, reason)
        if not self.attempt.done.is_set():
            self.attempt.fail(self._failure or StartFailed("the load was cancelled"))

    async def _admit(self, launch: Launch) -> MemoryClaim | None:
        """Wait for memory. None if there is none, or if the load was cancelled meanwhile."""
        claims: list[MemoryClaim] = []
        failure: NeuronRequestError = StartFailed(f"the load of model '{self.id}' was cancelled by an unload")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, self._stop, nursery.cancel_scope)
            try:
                claims.append(await self._tools.memory.admit(self._need(launch)))
            except NeuronRequestError as refusal:
                failure = refusal
            nursery.cancel_scope.cancel()
        if claims and not self._stop.is_set():
            return claims[0]
        for claim in claims:
            self._tools.memory.release(claim)
        self._fail(failure)
        return None

    def _need(self, launch: Launch) -> MemoryNeed:
        count = len(self._devices_wanted) if self._devices_wanted else self._device_count(launch)
        memory_mb = launch.model.vram_mb or self._tools.state.learnt(launch.fingerprint(count)).memory_mb
        return MemoryNeed(self.id, memory_mb, count, self._devices_wanted)

    def _fail(self, failure: NeuronRequestError) -> None:
        """Note why the load failed. Its requests learn it when the memory is free again, so that the next load fits."""
        log.warning("load_failed", model=self.id, code=failure.code, reason=str(failure))
        self._failure = failure

    def _clear(self) -> None:
        """Nothing of the engine is left."""
        if self.claim is not None:
            self._tools.memory.release(self.claim)
        if self.port is not None:
            self._tools.ports.give_back(self.port)
        self.claim = self.port = self.served = self.running = self._run = self.asleep_level = None

    async def _keep_running(self, launch: Launch, claim: MemoryClaim) -> tuple[ModelStatus, str | None]:
        """Run the engine again and again; return the state to end in, and why."""
        memory, engine = self._tools.memory, launch.engine
        crashes = CrashHistory(engine.max_restarts, engine.window_seconds)
        poison: str | None = None
        while poison is None and not self._must_end(end := await self._run_once(launch, claim)):
            self.become(ModelStatus.RECOVERING, end.reason)
            memory.unsettle(claim)
            claim.launcher = None
            delay_s = crashes.record(trio.current_time())
            if delay_s is None:
                count = engine.max_restarts + 1
                poison = f"crashed {count} times within {engine.window_seconds:g} s; the last time: {end.reason}"
            else:
                self.restarts += 1
                with trio.move_on_after(delay_s):
                    await self._stop.wait()
            await memory.wait_until_released(claim, engine.release_seconds)
            if self._stop.is_set():
                return ModelStatus.UNLOADED, None
        if poison is not None:
            return ModelStatus.POISONED, poison
        if self.status is not ModelStatus.UNLOADING:
            self.become(ModelStatus.UNLOADING, "its engine has ended")
        self._stop.set()
        memory.unsettle(claim, releasing=True)
        claim.launcher = None
        await memory.wait_until_released(claim, engine.release_seconds)
        return ModelStatus.UNLOADED, None

    def _must_end(self, end: RunEnd) -> bool:
        """Whether the engine is not to be restarted: it was stopped, is asleep, or never was ready."""
        if self._stop.is_set():
            if not self.attempt.done.is_set():
                self._fail(StartFailed(f"the load of model '{self.id}' was cancelled by an unload"))
            return True
        if not self.attempt.done.is_set():
            self._fail(StartFailed(f"model '{self.id}' did not start: {end.reason}"))
            return True
        return self.status in {ModelStatus.ASLEEP, ModelStatus.UNLOADING}

    async def _run_once(self, launch: Launch, claim: MemoryClaim) -> RunEnd:
        """One engine process. Takes another port if the engine finds that its port is in use."""
        for _ in range(PORT_ATTEMPTS):
            try:
                if self.port is None:
                    self.port = self._tools.ports.take(launch.engine.ports)
            except NoFreePort as error:
                return RunEnd(was_ready=False, reason=str(error))
            self._run = EngineRun(
                launch,
                self.port,
                claim.devices,
                self.output,
                self._tools,
                on_started=self._on_started,
                on_ready=self._on_ready,
                on_activity=self._on_activity,
                has_work=self._may_have_work,
                stop=self._stop,
            )
            end = await self._run.run()
            if end.was_ready or not end.reason.startswith(_PORT_IN_USE) or self._stop.is_set():
                return end
            self._tools.ports.give_back(self.port)
            self.port = None
        return end

    def _on_started(self, launcher: int | None) -> None:
        if self.claim is not None:
            self.claim.launcher = launcher

    async def _on_ready(self, served: ServedModel) -> None:
        claim = self.claim
        if claim is None or self.running is None or self._stop.is_set():
            return
        is_load = self.status is ModelStatus.LOADING
        measured = await self._tools.memory.measure(claim) if is_load or claim.memory_mb is None else None
        took_s = trio.current_time() - self._load_began
        if is_load:
            fingerprint = self.running.fingerprint(len(claim.devices))
            memory_mb = None if measured is None else sum(measured.values())
            wake_s = self._tools.state.learnt(fingerprint).wake_s
            self._tools.state.learn(fingerprint, LearntLoad(memory_mb, took_s, wake_s))
            self._tools.on_loaded(self.id, took_s)
        self._tools.memory.settle(claim, self._accounted(claim, measured))
        if self._stop.is_set():  # an unload came while memory was measured
            return
        self.served = served
        self.used_at = trio.current_time()
        self.become(ModelStatus.LOADED)
        self.attempt.succeed()

    def _accounted(self, claim: MemoryClaim, measured: dict[int, int] | None) -> dict[int, int] | None:
        """What the model counts for: what was measured, but no less than the operator has declared."""
        if self.running is None or self.running.model.vram_mb is None or claim.memory_mb is None:
            return measured
        return {index: max(mb, (measured or {}).get(index, 0)) for index, mb in claim.memory_mb.items()}

    def _on_activity(self) -> None:
        self.used_at = trio.current_time()

    def _may_have_work(self) -> bool:
        """Whether requests may be in the engine. One that does not answer does not report its load either."""
        if self.status not in {ModelStatus.LOADED, ModelStatus.UNLOADING}:
            return False
        return self.forwarded > 0 if self._tools.forwarded else True

    async def read_load(self) -> ReportedLoad | None:
        """The load now, asked of the engine unless the forwarder counts; None if unknown."""
        if not self._tools.forwarded and self._run is not None:
            return await self._run.read_load()
        return self.load

    # Sleep ............................................................................................................

    def begin_sleep(self) -> None:
        """Begin to put a loaded, idle model to sleep; `fall_asleep` does it."""
        self.become(ModelStatus.UNLOADING, "is being put to sleep")

    async def fall_asleep(self, level: int, reason: str) -> None:
        """Put the engine to sleep. One that refuses is ended instead. `reason` is why it sleeps."""
        claim = self.claim
        if claim is not None:
            await self._tools.memory.begin_measurement(claim)
        failure = await self._call_engine(put_to_sleep, level)
        if claim is None or not self._is_still(ModelStatus.UNLOADING, claim):
            return  # it has ended meanwhile
        if failure is not None:
            log.warning("sleep_failed", model=self.id, reason=failure)
            self._stop.set()
            return
        rest_mb = await self._tools.memory.measure_rest(claim)
        if self._is_still(ModelStatus.UNLOADING, claim):
            self._awake_mb = claim.memory_mb
            self._tools.memory.settle(claim, rest_mb)
            self.asleep_level = level
            self.become(ModelStatus.ASLEEP, reason)

    def begin_wake(self) -> LoadAttempt:
        """Begin to wake a sleeper; `wake` does it."""
        self.become(ModelStatus.LOADING)
        self.attempt = LoadAttempt()
        self._load_began = trio.current_time()
        return self.attempt

    async def wake(self) -> None:
        """Wake the engine once its memory is free."""
        claim, level = self.claim, self.asleep_level
        if claim is None or level is None:
            return
        memory, more_mb = self._tools.memory, None
        if self._awake_mb is not None:
            more_mb = max(sum(self._awake_mb.values()) - (claim.total_mb or 0), 0)
        try:
            extra = await memory.admit(MemoryNeed(self.id, more_mb, len(claim.devices), claim.devices))
        except NeuronRequestError as failure:
            if self._is_still(ModelStatus.LOADING, claim):
                self.become(ModelStatus.ASLEEP, f"could not be woken: {failure}")
                self.attempt.fail(failure)
            return
        failure_text = await self._call_engine(wake_up, level)
        memory.release(extra)
        if not self._is_still(ModelStatus.LOADING, claim) or self._run is None:
            return  # it has ended meanwhile
        if failure_text is not None:
            self._run.kill(f"the engine did not wake: {failure_text}")
            return
        memory.settle(claim, self._awake_mb)
        if self.running is not None:
            fingerprint, wake_s = self._fingerprint(self.running), trio.current_time() - self._load_began
            self._tools.state.learn(
                fingerprint, msgspec.structs.replace(self._tools.state.learnt(fingerprint), wake_s=wake_s)
            )
        self.asleep_level = None
        self.used_at = trio.current_time()
        self.become(ModelStatus.LOADED)
        self.attempt.succeed()

    def _is_still(self, status: ModelStatus, claim: MemoryClaim) -> bool:
        """Whether the same engine runs in the same state as before something was awaited."""
        return self.status is status and self.claim is claim and not self._stop.is_set()

    async def _call_engine(self, call: Callable[[EngineCalls, int], Awaitable[None]], level: int) -> str | None:
        """Call the engine; return why that failed, or None."""
        client = None if self._run is None else self._run.client
        return "the engine does not run" if client is None else await why_failed(call, client, level)


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
