"""The only composition root: builds the parts, opens the nurseries, starts the background tasks, serves, drains.

root nursery                      a crash of anything in it ends the process, loudly
+-- signals                       SIGTERM and SIGINT drain, SIGHUP reloads the catalogue
+-- poller, watcher, auditor, rollouts, lifecycle, swaps, drains, shadows, upstream sweeper
+-- metrics and admin server
+-- public server                 drained first, then what is left is cut
+-- one task per connection, one nursery per request
"""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import structlog
import trio

from catalogue.models import Catalogue, Fault
from gateway import __version__, errors
from gateway.aliases import plan as planning
from gateway.aliases.auditor import Auditor
from gateway.aliases.catalogue_store import CatalogueKeeper
from gateway.aliases.files.paths import Records
from gateway.aliases.plan import Plan
from gateway.aliases.rollout import Rollouts
from gateway.aliases.warm_swap import FleetReadiness, Swaps
from gateway.asgi import App
from gateway.config.settings import Listen, NeuronSettings, Settings
from gateway.fleet.control.engine_client import EngineClient
from gateway.fleet.control.neuron_client import NeuronClient
from gateway.fleet.control.poller import Poller
from gateway.fleet.loading.drain import Drains
from gateway.fleet.loading.manual import ManualLoads
from gateway.fleet.loading.scheduler import Lifecycle
from gateway.fleet.state import Fleet
from gateway.http import fd_limit
from gateway.http.hypercorn_server import HypercornServer
from gateway.http.pool import UpstreamPool
from gateway.http.server import HttpServer, ServerLimits
from gateway.proxy.app import Inference
from gateway.proxy.shadow.shadower import Shadows
from gateway.server import admin_app
from gateway.server.models_api import CatalogueStatus, Entry, ModelsApi, health_body
from gateway.server.public_app import PublicApp, PublicRoutes, make_windows
from gateway.telemetry.metrics import CatalogueReadings, Metrics
from gateway.telemetry.request_log import Accounts

__all__ = ["Addresses", "Gateway", "run", "serve"]

BACKLOG = 2048
ADMIN_CONNECTIONS = 64  # scrapers, and operators; out of what descriptors.py keeps back
CUT_GRACE_S = 5.0  # after the drain has run out: for the error event of each stream left to reach its client
CLOSE_DEADLINE_S = 1.0
SECOND_SIGNAL_EXIT_CODE = 130  # 128 + SIGINT, as a shell reports it

log = structlog.get_logger("cortex.serve")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where it really listens, the kernel's choice of port included."""

    api: Listen
    metrics: Listen

    @property
    def url(self) -> str:
        """The base URL of the API."""
        return f"http://{self.api}"


class Gateway:
    """All parts of one gateway, built and wired, nothing started. `serve` runs it.

    Args:
        settings: Everything an operator can set.

    Raises:
        catalogue.models.FaultyFile: The configured `models.toml` is missing or faulty.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fleet = Fleet(settings.neurons, misses=settings.poll.misses)
        self.keeper = CatalogueKeeper(settings.models_config, readiness=FleetReadiness(self.fleet))
        self.keeper.load_initial()
        self.metrics = Metrics()
        self.neurons = {neuron.name: _client(neuron) for neuron in settings.neurons}
        self.poller = Poller(self.fleet, self.neurons, settings.poll)
        self.upstream = UpstreamPool(idle_limit=settings.limits.upstream_idle_connections)
        self.accounts = Accounts(
            self.metrics,
            log_requests=settings.gateway.access_log,
            remembered=settings.limits.explain_requests,
        )
        self.records = Records.of(settings)
        self.auditor = Auditor(self.records, self.keeper, plan=lambda old, new: self.plan(old, new).as_short_json())
        self.rollouts = Rollouts(self.records, keeper=self.keeper, watchable=self.accounts, metrics=self.metrics)
        self.lifecycle = Lifecycle(
            self.fleet,
            catalogue=self.keeper,
            neurons=self.neurons,
            settings=settings,
            metrics=self.metrics,
            poll_soon=self.poller.poll_soon,
        )
        self.swaps = Swaps(
            self.keeper,
            fleet=self.fleet,
            lifecycle=self.lifecycle,
            upstream=self.upstream,
            settings=settings,
            metrics=self.metrics,
            poll_soon=self.poller.poll_soon,
        )
        self.shadows = Shadows(
            self.fleet, self.upstream, catalogue=self.keeper, metrics=self.metrics, deadlines=settings.deadlines
        )
        self.drains = Drains(
            self.fleet, catalogue=self.keeper, lifecycle=self.lifecycle, load_s=settings.deadlines.load_seconds
        )
        self.orders = ManualLoads(self.fleet, catalogue=self.keeper, lifecycle=self.lifecycle, neurons=self.neurons)
        self.inference = Inference(
            settings,
            catalogue=self.keeper,
            fleet=self.fleet,
            upstream=self.upstream,
            accounts=self.accounts,
            poll_soon=self.poller.poll_soon,
            lifecycle=self.lifecycle,
            shadows=self.shadows,
        )
        self.keeper.subscribe(lambda *_: self.inference.admission.look_again())
        self._models = ModelsApi(owned_by=settings.gateway.owned_by)
        self.admin_app = cast("App", admin_app.make_app(self))
        windows = cast("App", make_windows(self._windows(), __version__))
        self.app = PublicApp(self.inference, windows, settings, admin=self.admin_app if settings.admin.public else None)
        self.metrics.watch_fleet(lambda: self.fleet.snapshot().nodes)
        self.metrics.watch_catalogue(self._catalogue_readings)
        self.metrics.watch_queue(
            lambda: {line.model: line.waiting_for_place for line in self.inference.admission.lines()}
        )

    def _windows(self) -> PublicRoutes:
        return PublicRoutes(
            models=lambda: self._models.list_models(self.keeper.current, self.fleet),
            model=self._model_entry,
            health=self.health,
            ready=lambda: self.fleet.statistics().ever_answered,
        )

    def _model_entry(self, model_id: str) -> Entry | None:
        return self._models.model_entry(self.keeper.current, self.fleet, model_id)

    def plan(self, old: Catalogue, new: Catalogue) -> Plan:
        """What it would take to go from one catalogue to the other, as the fleet is now."""
        live = [(record.alias, record.model) for record in self.accounts.live.values()]
        min_residency_s = self.settings.eviction.min_residency_seconds
        return planning.plan(old, new, self.fleet, live=live, min_residency_s=min_residency_s)

    def health(self) -> dict[str, Any]:
        """The body of `/health`."""
        status = catalogue_status(self.keeper.current, self.keeper.last_error)
        return health_body(self.fleet, status, self.swaps.views()) | {"audit": self.auditor.status()}

    def _catalogue_readings(self) -> CatalogueReadings:
        reloads = {str(result): times for result, times in self.keeper.reloads.items()}
        catalogue = self.keeper.current
        waiting = {name: warming.failed is not None for name, warming in catalogue.warming.items()}
        return CatalogueReadings(catalogue.generation, self.keeper.last_error is None, reloads, waiting)

    async def aclose(self) -> None:
        """Close what is open towards the neurons."""
        self.upstream.close()
        async with trio.open_nursery() as nursery:  # each is begun, and so done, even if there is no time left for it
            for client in self.neurons.values():
                nursery.start_soon(client.aclose)


def _client(neuron: NeuronSettings) -> NeuronClient | EngineClient:
    return NeuronClient(neuron.endpoint) if neuron.kind == "neuron" else EngineClient(neuron)


def catalogue_status(catalogue: Catalogue, faults: tuple[Fault, ...] | None) -> CatalogueStatus:
    """The watcher's account of itself, as `/health` shows it."""
    error = None
    if faults:
        told = [{"line": f.line, "key": f.key, "message": f.message, "hint": f.hint} for f in faults]
        error = {"message": str(faults[0]), "faults": told}
    return {
        "generation": catalogue.generation,
        "digest": catalogue.digest,
        "loaded_at": catalogue.loaded_at,
        "path": catalogue.path,
        "error": error,
    }


# Serving ..............................................................................................................


async def serve(
    gateway: Gateway,
    *,
    stop: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[Addresses] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a gateway until `stop` returns, then drain it. Started once it listens and every neuron was asked once.

    Returns when the last request has its answer, or `drain_seconds` later when those left have their error event.
    Cancelling it cuts everything at once. A background task that crashes ends this with its exception.
    """
    fd_limit.raise_limit()
    try:
        async with trio.open_nursery() as root:
            await _serve_until_drained(gateway, root, stop or trio.sleep_forever, task_status)
            root.cancel_scope.cancel()
    finally:
        with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
            await gateway.aclose()


async def _serve_until_drained(
    gateway: Gateway,
    root: trio.Nursery,
    stop: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[Addresses],
) -> None:
    settings = gateway.settings.gateway
    async with _listening(settings.listen) as api, _listening(settings.metrics_listen) as metrics:
        addresses = Addresses(_address_of(api), _address_of(metrics))
        await _start_background(gateway, root)
        await root.start(_admin_server(gateway).serve, [_listener(metrics)])
        server = await _start_public(gateway, api, root)
        log.info("listening", api=str(addresses.api), metrics=str(addresses.metrics), version=__version__)
        task_status.started(addresses)
        await stop()
        await _drain(gateway, server)


async def _start_background(gateway: Gateway, root: trio.Nursery) -> None:
    """Each crash of these ends the root nursery: better no gateway than one without its poller."""
    await root.start(gateway.auditor.run)
    await root.start(gateway.lifecycle.run)
    await root.start(gateway.drains.run)
    await root.start(gateway.swaps.run)
    await root.start(gateway.shadows.run)
    await root.start(gateway.keeper.watch)
    await root.start(gateway.rollouts.run)
    await root.start(gateway.poller.run)
    root.start_soon(gateway.upstream.run)


async def _drain(gateway: Gateway, server: HttpServer | HypercornServer) -> None:
    """Refuse what is new or still waits for a model, let what runs finish, and cut what is left in the end."""
    drain_s = gateway.settings.gateway.drain_seconds
    log.info("draining", running=len(gateway.accounts.live), drain_s=drain_s)
    gateway.swaps.drain()
    gateway.shadows.stop()
    gateway.inference.drain()
    server.drain()
    with trio.move_on_after(drain_s) as patience:
        await server.drained()
    if patience.cancelled_caught:
        log.warning("cut", running=len(gateway.accounts.live))
        gateway.inference.cut(errors.ShuttingDown("this gateway is shutting down", retry_after_s=5))
        with trio.move_on_after(CUT_GRACE_S):
            await server.drained()
    log.info("drained")


def _server_limits(settings: Settings, connections: int) -> ServerLimits:
    return ServerLimits(
        header_bytes=settings.limits.header_bytes,
        header_s=settings.deadlines.header_seconds,
        client_write_s=settings.deadlines.client_write_seconds,
        connections=connections,
    )


def _admin_server(gateway: Gateway) -> HttpServer:
    """The metrics port: ours too, so that a scraper that stops reading cannot keep the process from ending."""
    return HttpServer(gateway.admin_app, limits=_server_limits(gateway.settings, ADMIN_CONNECTIONS), log=log)


async def _start_public(gateway: Gateway, sock: socket.socket, root: trio.Nursery) -> HttpServer | HypercornServer:
    """The public port: our own HTTP/1.1, or Hypercorn's HTTP/1.1 and 2 (h2c) where an operator wants that."""
    if gateway.settings.gateway.http_server == "hypercorn":
        worker = HypercornServer(gateway.app, sock, gateway.settings)
        await root.start(worker.serve)
        return worker
    connections = fd_limit.connections_within(gateway.settings.limits.connections)
    server = HttpServer(gateway.app, limits=_server_limits(gateway.settings, connections), log=log)
    await root.start(server.serve, [_listener(sock)])
    return server


def _listener(sock: socket.socket) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


# Sockets ..............................................................................................................


@contextlib.asynccontextmanager
async def _listening(listen: Listen) -> AsyncIterator[socket.socket]:
    """A listening TCP socket, closed on the way out.

    Raises:
        CannotListen: The address is taken or not ours.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = await trio.socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _drop_stuck_readers(sock)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            raise CannotListen(f"cannot listen on {listen}: {error.strerror or error}") from error
        except UnicodeError as error:  # of a host with a label too long, or none between two dots
            raise CannotListen(f"cannot listen on {listen}: that is no host's name") from error
        yield sock


class CannotListen(OSError):
    """The one trouble at start that is an operator's, and no crash."""


def _drop_stuck_readers(sock: socket.socket) -> None:
    """Inherited by accepted sockets: the kernel ends a connection whose peer takes nothing for this long.

    Our own write deadline frees the task; this frees the kernel's memory, and is all that Hypercorn has (lessons.md).
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_READER_MS)


STUCK_READER_MS = 60_000


def _address_of(sock: socket.socket) -> Listen:
    host, port = sock.getsockname()[:2]
    return Listen(host, port)


# The process ..........................................................................................................


def run(gateway: Gateway) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the process's exit code.

    An address that cannot be listened on is one line on stderr and exit code 1; every other crash is loud.
    """
    exit_code = 1
    # What has been imported and built lives as long as the process. Left to the collector, each full collection looks
    # through it anew, and no stream moves for 25 ms (72,000 objects, measured).
    gc.collect()
    gc.freeze()
    try:
        exit_code = trio.run(_run_with_signals, gateway)
    except* CannotListen as group:
        for error in _leaves(group):
            sys.stderr.write(f"cortex: {error}\n")
    return exit_code


async def _run_with_signals(gateway: Gateway) -> int:
    stopping = trio.Event()
    exit_code = 0

    async def listen(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        nonlocal exit_code
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for signum in signals:
                if signum == signal.SIGHUP:
                    nursery.start_soon(_reload, gateway)  # a file system that hangs must not keep us from stopping
                elif stopping.is_set():
                    exit_code = SECOND_SIGNAL_EXIT_CODE
                    nursery.cancel_scope.cancel()
                else:
                    stopping.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        await serve(gateway, stop=stopping.wait)
        nursery.cancel_scope.cancel()
    return exit_code


async def _reload(gateway: Gateway) -> None:
    """And say what came of it: whoever sent the signal sees nothing else, should the file be as it was."""
    outcome = await gateway.keeper.reload()
    log.info("looked_at_sighup", result=outcome.result, generation=outcome.catalogue.generation)


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
