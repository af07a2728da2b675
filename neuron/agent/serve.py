"""Runs the neuron: reads its state, ends what an earlier run left over, opens its port, and supervises the models.

root nursery             a crash of any task ends the process with a traceback; launchers then end the engines
+-- models               one task per resident model, one nursery per engine process
+-- device readings, state file, configuration file
+-- HTTP server          one task per connection: management API, and the forwarder
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog
import trio

from catalogue.toml.addresses import Listen
from gateway.asgi import App, Receive, Scope, Send
from gateway.http.pool import UpstreamPool
from gateway.http.server import HttpServer, ServerLimits
from neuron.agent.api.forwarder import Forwarder, is_inference_path
from neuron.agent.api.management import management_app
from neuron.agent.api.metrics import NeuronMetrics
from neuron.agent.api.views import NeuronViews
from neuron.agent.config.load import parse_neuron_file
from neuron.agent.config.rules import is_loopback
from neuron.agent.config.settings import ApiSettings, NeuronFile
from neuron.agent.config_reload import ConfigReload
from neuron.agent.devices.device_memory import DeviceMemory, read_in_thread
from neuron.agent.devices.devices import CpuDevice, Devices, open_devices
from neuron.agent.engines.engine_client import open_engine_client
from neuron.agent.engines.launch import LOOPBACK, EngineHost
from neuron.agent.listeners import open_listeners, tls_context
from neuron.agent.process.engine_process import EngineProcess
from neuron.agent.process.ports import PortAllocator
from neuron.agent.process.survivors import MARK, end_survivors
from neuron.agent.supervision.engine_tools import EngineTools
from neuron.agent.supervision.host import ModelHost
from neuron.agent.supervision.model_supervisor import ModelSupervisor
from neuron.agent.supervision.state_file import StateFile, locked_state_dir

__all__ = ["NeuronServer", "state_dir_of"]

VERSION = "1"  # of the neuron API
CONNECTIONS = 4096
END_MARGIN_S = 5.0  # beyond the longest `stop_seconds`

log = structlog.get_logger("cortex.neuron.serve")


def state_dir_of(settings: NeuronFile, path: Path) -> Path:
    """The state directory of a configuration file."""
    return (settings.state.dir or path.absolute().parent / "neuron-state").absolute()


@dataclass(slots=True)
class NeuronServer:
    """A neuron on real sockets and processes.

    Args:
        path: Of `neuron.toml`.
        data: Its content.
        environ: The environment that engines inherit.
        devices: The devices; None: those of this host.
    """

    path: Path
    data: bytes
    environ: Mapping[str, str]
    devices: Devices | None = None

    async def serve(
        self,
        *,
        stop: Callable[[], Awaitable[object]] = trio.sleep_forever,
        reload_requested: Callable[[], Awaitable[object]] = trio.sleep_forever,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until `stop` returns, then end every engine. Started, with the base URL, once the API answers.

        Raises:
            CannotServe: The address or a certificate cannot be used.
            StateDirectoryInUse: Another neuron runs with the state directory.
            FaultyFile: The configuration has faults.
        """
        settings = parse_neuron_file(self.data, self.path).settings
        state_dir = state_dir_of(settings, self.path)
        with locked_state_dir(state_dir):
            state = StateFile(state_dir / "state.json")
            state.read()
            await _end_survivors(state, state_dir)
            devices = self.devices if self.devices is not None else await trio.to_thread.run_sync(open_devices)
            metrics = NeuronMetrics()
            tools = _tools(settings, devices, state, state_dir, metrics)
            host = ModelHost(settings, self.path.absolute().parent, self.environ, tools, _free_host_memory_mb)
            metrics.read_from(host)
            await tools.memory.refresh()
            listeners = await open_listeners(settings.api.listen)
            port: int = listeners[0].socket.getsockname()[1]
            tls, pool = tls_context(settings.api), UpstreamPool()
            reload = ConfigReload(self.path, self.data, host)
            inference_url = partial(_inference_url, settings.api, port, forwarded=tools.forwarded)
            management = management_app(
                host,
                NeuronViews(host, devices),
                metrics,
                inference_url=inference_url,
                reload=reload.now,
                version=VERSION,
            )
            app = _dispatch(management, Forwarder(host, pool, tools.engine_host))
            server = HttpServer(
                app,
                limits=ServerLimits(connections=CONNECTIONS),
                log=log,
                tls=None if tls is None else lambda: tls,
            )
            try:
                async with trio.open_nursery() as root:
                    for task in (state.run, tools.memory.run, pool.run, reload.watch):
                        root.start_soon(task)
                    await root.start(host.run)
                    await root.start(server.serve, listeners)
                    root.start_soon(reload.when, reload_requested)
                    url = f"{'https' if tls else 'http'}://{Listen(settings.api.listen.host, port)}"
                    log.info("listening", api=url, devices=[device.name for device in devices.infos])
                    task_status.started(url)
                    await stop()
                    await _end(host, server)
                    root.cancel_scope.cancel()
            finally:
                pool.close()


def _tools(
    settings: NeuronFile, devices: Devices, state: StateFile, state_dir: Path, metrics: NeuronMetrics
) -> EngineTools:
    log_dir = state_dir / "logs"
    log_dir.mkdir(exist_ok=True)
    is_local, is_open = is_loopback(settings.api.listen), settings.api.open
    engine_host = EngineHost(settings.api.listen.host) if is_open and not is_local else LOOPBACK
    return EngineTools(
        start_engine=EngineProcess,
        open_client=partial(open_engine_client, host=engine_host),
        device_environment=devices.environment,
        ports=PortAllocator(engine_host),
        memory=DeviceMemory(devices.infos, read_in_thread(devices)),
        state=state,
        mark={MARK: str(state_dir)},
        log_dir=log_dir,
        on_loaded=metrics.loaded,
        engine_host=engine_host,
        forwarded=not (is_local or is_open),
    )


async def _end(host: ModelHost, server: HttpServer) -> None:
    """Accept nothing more, and end every engine in order."""
    log.info("ending", models=[supervisor.id for supervisor in host.models.values() if supervisor.is_routable])
    server.drain()
    longest_s = max((engine.stop_seconds for engine in host.settings.engines.values()), default=0.0)
    await host.end(longest_s + END_MARGIN_S)
    log.info("ended")


async def _end_survivors(state: StateFile, state_dir: Path) -> None:
    ended = await trio.to_thread.run_sync(end_survivors, state.started(), state_dir)
    if ended:
        log.warning("survivors_ended", pids=ended)
    state.forget_processes()


def _free_host_memory_mb() -> int:
    return CpuDevice("").read()[0].memory_free_mb


def _inference_url(api: ApiSettings, port: int, supervisor: ModelSupervisor, *, forwarded: bool) -> str:
    """Where gateways send requests for a loaded model.

    `localhost` stands for the host by which a gateway knows this neuron.
    """
    if not forwarded:
        return f"http://{api.advertise or 'localhost'}:{supervisor.port}"
    scheme = "https" if api.cert else "http"
    return f"{scheme}://{api.advertise or 'localhost'}:{port}/engines/{quote(supervisor.id, safe='')}"


def _dispatch(management: Any, forwarder: App) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        target = forwarder if is_inference_path(scope["path"]) else management
        await target(scope, receive, send)

    return app
