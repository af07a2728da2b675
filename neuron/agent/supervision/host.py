"""All models of this host: finds the one that a request means, and begins loads, unloads, sleep and reloads.

The nursery given to `run` owns every task that keeps an engine running.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
import trio

from neuron.agent.config.settings import ModelSettings, NeuronFile
from neuron.agent.devices.device_memory import DeviceMemory
from neuron.agent.engines.launch import Launch, LaunchOptions
from neuron.agent.errors import (
    InUse,
    InvalidRequest,
    NeuronRequestError,
    NotLoadable,
    StartFailed,
    UnknownModel,
)
from neuron.agent.supervision.engine_tools import EngineTools
from neuron.agent.supervision.model_status import ModelStatus
from neuron.agent.supervision.model_supervisor import ModelSupervisor

__all__ = ["ModelHost", "ModelLoadRequest", "PreloadState", "ReloadOutcome"]

IDLE_CHECK_S = 1.0
DRAIN_POLL_S = 0.5
HOST_MEMORY_MARGIN = 1.1  # of the weights that sleep level 1 keeps in host memory

log = structlog.get_logger("cortex.neuron.host")


@dataclass(frozen=True, slots=True)
class ModelLoadRequest:
    """The body of `POST /models/load`."""

    model_id: str
    harness: str | None = None
    quant: str | None = None
    tensor_parallel: int | None = None
    devices: tuple[int, ...] | None = None


@dataclass(slots=True)
class PreloadState:
    """The loads at the start of the neuron: `activation` in `/health`."""

    pending: list[str] = field(default_factory=list)
    in_progress: str | None = None
    completed: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """What a new configuration changed, as model ids; `restart` has the keys that need a restart of the neuron."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    at_next_load: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class ModelHost:
    """The models of this host.

    Args:
        settings: The configuration in force.
        directory: Of `neuron.toml`.
        environ: The environment of the neuron, which engines inherit.
        tools: For the supervisors.
        host_memory_mb: Reads the memory that is free on the host, in MiB, for sleepers of level 1.
    """

    def __init__(
        self,
        settings: NeuronFile,
        directory: Path,
        environ: Mapping[str, str],
        tools: EngineTools,
        host_memory_mb: Callable[[], int],
    ) -> None:
        self.settings = settings
        self._directory = directory
        self._environ = environ
        self._tools = tools
        self._host_memory_mb = host_memory_mb
        self._nursery: trio.Nursery | None = None
        self.preload = PreloadState([model.id for model in settings.models if model.preload])
        self.models: dict[str, ModelSupervisor] = {}
        for model in settings.models:
            self._add(model)

    @property
    def memory(self) -> DeviceMemory:
        """The device memory that loads are admitted to."""
        return self._tools.memory

    def _add(self, model: ModelSettings) -> ModelSupervisor:
        supervisor = self.models[model.id] = ModelSupervisor(self._launch(model), self._tools)
        return supervisor

    def _launch(self, model: ModelSettings) -> Launch:
        engine = self.settings.engines[model.engine]
        return Launch(model, engine, LaunchOptions(), self._directory, self._environ, self._tools.engine_host)

    # Tasks ............................................................................................................

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load what is to be preloaded, unload what is idle, forever. Cancelling this kills every engine.

        Started once loads can begin.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            nursery.start_soon(self._unload_idle)
            await self._preload()

    async def _preload(self) -> None:
        state = self.preload
        while state.pending:
            model_id = state.in_progress = state.pending.pop(0)
            try:
                await self.load(ModelLoadRequest(model_id))
                state.completed.append(model_id)
            except NeuronRequestError as error:
                state.failed.append((model_id, str(error)))
            state.in_progress = None

    async def _unload_idle(self) -> None:
        while True:
            await trio.sleep(IDLE_CHECK_S)
            now = trio.current_time()
            for supervisor in list(self.models.values()):
                ttl_s = supervisor.launch.model.idle_ttl_seconds
                load = supervisor.load
                is_idle = load is not None and not load.in_flight and not load.queued
                if supervisor.is_in(ModelStatus.LOADED) and ttl_s and is_idle and supervisor.used_at <= now - ttl_s:
                    log.info("model_idle", model=supervisor.id, idle_s=round(now - supervisor.used_at, 1))
                    self._begin_unload_or_sleep(supervisor, f"it was idle for {now - supervisor.used_at:.0f} s")

    async def end(self, grace_s: float) -> None:
        """Stop every engine in order; returns when none is left, or after `grace_s`."""
        for supervisor in self.models.values():
            if supervisor.is_in(*_HAS_ENGINE):
                supervisor.begin_unload("the neuron is ending")
        with trio.move_on_after(grace_s):
            for supervisor in list(self.models.values()):
                while supervisor.is_in(ModelStatus.UNLOADING):
                    await supervisor.changed()

    # Load .............................................................................................................

    async def load(self, request: ModelLoadRequest) -> None:
        """Return when the model is loaded. Joins a load under way, wakes a sleeper, waits for a recovery or an unload.

        Cancelling this does not end the load.

        Raises:
            NeuronRequestError: It cannot be loaded.
        """
        while True:
            supervisor = self._to_load(request)
            match supervisor.status:
                case ModelStatus.LOADED:
                    return
                case ModelStatus.POISONED:
                    hint = "unload it to try again, or change its configuration"
                    raise StartFailed(f"model '{supervisor.id}' is poisoned ({supervisor.reason}): {hint}")
                case ModelStatus.RECOVERING | ModelStatus.UNLOADING:
                    await supervisor.changed()
                case ModelStatus.LOADING:
                    await supervisor.attempt.wait()
                    return
                case ModelStatus.ASLEEP:
                    attempt = supervisor.begin_wake()
                    self._start(supervisor.wake)
                    await attempt.wait()
                    return
                case ModelStatus.UNLOADED:
                    launch = replace(supervisor.launch, options=LaunchOptions(request.quant, request.tensor_parallel))
                    attempt = supervisor.begin_load(launch, request.devices)
                    self._start(self._keep, supervisor)
                    await attempt.wait()
                    return

    async def _keep(self, supervisor: ModelSupervisor) -> None:
        """Run a model from its load to its unload."""
        await supervisor.run_until_unloaded()
        self._forget_if_gone(supervisor)

    def _forget_if_gone(self, supervisor: ModelSupervisor) -> None:
        is_ours = self.models.get(supervisor.id) is supervisor
        if is_ours and (supervisor.removed or supervisor.transient) and supervisor.is_in(ModelStatus.UNLOADED):
            del self.models[supervisor.id]

    def _start(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        if self._nursery is None:
            raise StartFailed("the neuron is not ready yet")
        self._nursery.start_soon(function, *arguments)

    def _to_load(self, request: ModelLoadRequest) -> ModelSupervisor:
        """The model that a load request means: by its id, or by `source:id`, or any with `allow_any`."""
        for name in (request.model_id, request.model_id.partition(":")[2]):
            supervisor = self.models.get(name)
            if supervisor is not None and not supervisor.removed:
                self._check_harness(supervisor, request.harness)
                return supervisor
        if not self.settings.api.allow_any:
            hint = "add a [[models]] table, or set [api] allow_any = true"
            raise NotLoadable(f"unknown model '{request.model_id}': {hint}")
        if request.harness not in self.settings.engines:
            raise InvalidRequest(f"unknown harness '{request.harness}': known are {', '.join(self.settings.engines)}")
        source, colon, name = request.model_id.partition(":")
        model_id = name if colon and source in _HUBS else request.model_id
        supervisor = self._add(ModelSettings(id=model_id, engine=str(request.harness)))
        supervisor.transient = True
        return supervisor

    def _check_harness(self, supervisor: ModelSupervisor, harness: str | None) -> None:
        engine = supervisor.launch.model.engine
        if harness is not None and harness != engine and harness in self.settings.engines:
            raise InvalidRequest(f"model '{supervisor.id}' runs on the engine '{engine}' here, not on '{harness}'")

    # Unload and sleep .................................................................................................

    async def unload(self, model_id: str, *, force: bool = False) -> None:
        """Return when the model's memory is free. A model that may sleep is put to sleep, unless `force`.

        Raises:
            UnknownModel: It is not loaded.
            InUse: It has requests in flight, or is being loaded, and `force` is not set.
        """
        supervisor = self._resident(model_id)
        if supervisor.is_in(ModelStatus.POISONED):
            supervisor.clear_poison()
            self._forget_if_gone(supervisor)
            return
        if supervisor.is_in(ModelStatus.LOADING) and not force:
            raise InUse(f"model '{supervisor.id}' is loading; `force` ends the load")
        if not supervisor.is_in(ModelStatus.UNLOADING):
            await self._refuse_in_use(supervisor, force=force)
        if supervisor.is_in(*_HAS_ENGINE):
            self._begin_unload_or_sleep(supervisor, "its memory was wanted", force=force)
        while supervisor.is_in(ModelStatus.UNLOADING):
            await supervisor.changed()

    async def sleep(self, model_id: str, level: int | None) -> None:
        """Return when the model sleeps. Raises as `unload`, and InvalidRequest if it may not sleep."""
        supervisor = self._resident(model_id)
        if supervisor.is_in(ModelStatus.ASLEEP):
            return
        if not supervisor.launch.model.sleep:
            raise InvalidRequest(f"model '{supervisor.id}' may not sleep: set `sleep` in its table")
        if not supervisor.is_in(ModelStatus.LOADED):
            raise InvalidRequest(f"model '{supervisor.id}' is {supervisor.reported_status}, not loaded")
        await self._refuse_in_use(supervisor, force=False)
        if supervisor.is_in(ModelStatus.LOADED):
            self._begin_sleep(supervisor, level or supervisor.launch.model.sleep, "an operator put it to sleep")
        while supervisor.is_in(ModelStatus.UNLOADING):
            await supervisor.changed()
        if not supervisor.is_in(ModelStatus.ASLEEP):
            raise StartFailed(f"model '{supervisor.id}' did not fall asleep; it is {supervisor.reported_status}")

    async def wake(self, model_id: str) -> None:
        """Return when a sleeper is loaded again. Raises as `load`, and InvalidRequest if it does not sleep."""
        supervisor = self._resident(model_id)
        if supervisor.status not in {ModelStatus.ASLEEP, ModelStatus.LOADED, ModelStatus.LOADING}:
            raise InvalidRequest(f"model '{supervisor.id}' is {supervisor.reported_status}, not asleep")
        await self.load(ModelLoadRequest(supervisor.id))

    def _resident(self, model_id: str) -> ModelSupervisor:
        for name in (model_id, model_id.partition(":")[2]):
            supervisor = self.models.get(name)
            if supervisor is not None and not supervisor.is_in(ModelStatus.UNLOADED):
                return supervisor
        raise UnknownModel(f"model '{model_id}' not loaded")

    async def _refuse_in_use(self, supervisor: ModelSupervisor, *, force: bool) -> None:
        if force:
            return
        load = await supervisor.read_load() if supervisor.is_in(ModelStatus.LOADED) else None
        busy = 0 if load is None else load.in_flight + load.queued
        if busy and supervisor.is_in(ModelStatus.LOADED):
            raise InUse(f"model '{supervisor.id}' has {busy} requests in flight; `force` unloads it all the same")

    def _begin_unload_or_sleep(self, supervisor: ModelSupervisor, reason: str, *, force: bool = False) -> None:
        level = supervisor.launch.model.sleep
        may_sleep = level and not force and not supervisor.removed and supervisor.is_in(ModelStatus.LOADED)
        if may_sleep and self._fits_into_host_memory(supervisor, level):
            self._begin_sleep(supervisor, level, reason)
        else:
            supervisor.begin_unload()

    def _fits_into_host_memory(self, supervisor: ModelSupervisor, level: int) -> bool:
        """Level 1 keeps the weights in host memory; the device memory that they have now is an upper bound."""
        held_mb = None if supervisor.claim is None else supervisor.claim.total_mb
        return level != 1 or held_mb is None or held_mb * HOST_MEMORY_MARGIN < self._host_memory_mb()

    def _begin_sleep(self, supervisor: ModelSupervisor, level: int, reason: str) -> None:
        supervisor.begin_sleep()
        self._start(supervisor.fall_asleep, level, reason)

    # Reload ...........................................................................................................

    def apply(self, settings: NeuronFile) -> ReloadOutcome:
        """Put a new configuration in force. Nothing that runs is restarted; removed models are drained and unloaded."""
        before, self.settings = self.settings, settings
        wanted = {model.id: model for model in settings.models}
        known = {model_id for model_id, each in self.models.items() if not each.removed}
        changed = [model for model in settings.models if model.id in known and self._change(model)]
        added = [model for model in settings.models if model.id not in known]
        for model in added:
            self._add_again(model)
        removed = [model.id for model in before.models if model.id in known - wanted.keys()]
        for model_id in removed:
            self._remove(self.models[model_id])
        for model in added:
            if model.preload:
                self._start(self._load_added, model.id)
        return ReloadOutcome(
            tuple(model.id for model in added),
            tuple(removed),
            tuple(model.id for model in changed),
            tuple(model.id for model in changed if self.models[model.id].changes_at_next_load),
            _keys_of_restart(before, settings),
        )

    def _change(self, model: ModelSettings) -> bool:
        """Replace the configuration of a known model; whether it differs. A changed one is poisoned no more."""
        supervisor, launch = self.models[model.id], self._launch(model)
        supervisor.transient = False
        if (launch.model, launch.engine) == (supervisor.launch.model, supervisor.launch.engine):
            return False
        supervisor.launch = launch
        if supervisor.is_in(ModelStatus.POISONED):
            supervisor.clear_poison()
        return True

    def _add_again(self, model: ModelSettings) -> None:
        """Add a model. One that was removed and is not gone yet stays."""
        supervisor = self.models.get(model.id)
        if supervisor is None:
            self._add(model)
        else:
            supervisor.removed, supervisor.launch = False, self._launch(model)

    def _remove(self, supervisor: ModelSupervisor) -> None:
        supervisor.removed = True
        if supervisor.is_in(ModelStatus.POISONED):
            supervisor.clear_poison()
        self._start(self._drain_and_unload, supervisor)

    async def _drain_and_unload(self, supervisor: ModelSupervisor) -> None:
        """Unload a removed model when its last request has ended."""
        while supervisor.is_in(*_HAS_ENGINE):
            load = await supervisor.read_load() if supervisor.is_in(ModelStatus.LOADED) else None
            if not supervisor.removed:
                return  # it was added again
            if load is not None and load.in_flight + load.queued:
                await trio.sleep(DRAIN_POLL_S)
            elif supervisor.is_in(*_HAS_ENGINE):
                supervisor.begin_unload("is in the configuration no more")
        self._forget_if_gone(supervisor)

    async def _load_added(self, model_id: str) -> None:
        try:
            await self.load(ModelLoadRequest(model_id))
        except NeuronRequestError as error:
            log.warning("preload_failed", model=model_id, reason=str(error))


_HAS_ENGINE = frozenset({ModelStatus.LOADING, ModelStatus.LOADED, ModelStatus.RECOVERING, ModelStatus.ASLEEP})
_HUBS = frozenset({"huggingface", "hf"})


def _keys_of_restart(before: NeuronFile, after: NeuronFile) -> tuple[str, ...]:
    """The keys that have changed and are read at the start only."""
    old, new = before.api, after.api
    names = ("listen", "cert", "key", "open")
    changed = [f"api.{name}" for name in names if getattr(old, name) != getattr(new, name)]
    return (*changed, *(("state.dir",) if before.state != after.state else ()))
