"""Runs a gateway on its two ports until a signal stops it or another process takes over, then drains it.

root nursery                      a crash of any task in it ends the process with a traceback
+-- background tasks              those of Gateway.start_serving
+-- state writers                 those of Gateway.start_writers; they end first if another process takes over
+-- metrics and admin server
+-- takeover listener             `cortex serve --takeover` of a new process talks to it
+-- public server                 drained first; what is left after the drain time is cut
    +-- one task per connection, one nursery per request
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import structlog
import trio

from gateway import __version__, errors
from gateway.config.settings import Listen, Settings
from gateway.http import fd_limit
from gateway.http.epoll.pump import Pump
from gateway.http.hypercorn_server import HypercornServer
from gateway.http.server import HttpServer, ServerLimits
from gateway.server.gateway import Gateway
from gateway.server.listen import Addresses, address_of, listener, listening, set_options
from gateway.server.restart.service_manager import ServiceManager
from gateway.server.restart.socket_activation import NO_SOCKETS, ListeningSockets
from gateway.server.restart.state_writers import StateWriters
from gateway.server.restart.takeover import Predecessor
from gateway.server.restart.takeover_listener import TakeoverListener
from gateway.telemetry.log import write_in_batches

__all__ = ["Start", "serve"]

ADMIN_CONNECTIONS = 64  # scrapers and operators; they fit in the reserve of http/fd_limit.py
CUT_GRACE_S = 5.0  # after the drain time: for the error event of each remaining stream to reach its client
CLOSE_DEADLINE_S = 1.0

# Which process serves newcomers while this one drains: none, because the sockets are its own; one that the service
# manager starts once this one has ended; or one that runs already.
_Successor: TypeAlias = Literal["none", "later", "running"]

# Clients use their open connections first, so these are in use again soon, or not needed. While newcomers wait for the
# next process, idle ones are given up sooner.
QUIET_S: dict[_Successor, float] = {"later": 1.0, "running": 5.0}

log = structlog.get_logger("cortex.serve")


@dataclass(frozen=True, slots=True)
class Start:
    """How a process gets its sockets, and which service manager it notifies. By default it opens the sockets itself.

    `inherited` are sockets of the service manager. `predecessor` is a process to take over from. With `replaceable`
    another process may take over from this one.
    """

    inherited: ListeningSockets = NO_SOCKETS
    predecessor: Predecessor | None = None
    manager: ServiceManager = field(default_factory=ServiceManager)
    replaceable: bool = False


async def serve(
    gateway: Gateway,
    *,
    stop: Callable[[], Awaitable[None]] | None = None,
    start: Start | None = None,
    task_status: trio.TaskStatus[Addresses] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a gateway until `stop` returns, then drain it. Started once it listens and has polled every neuron once.

    Returns when the last request has its answer, or `drain_seconds` later when each of those left has its error event.
    Cancelling it cuts everything at once. A background task that crashes ends this with its exception.
    """
    fd_limit.raise_limit()
    try:
        async with trio.open_nursery() as root:
            await root.start(write_in_batches)
            process = _GatewayProcess(gateway, root, start or Start())
            await process.serve_until_drained(stop or trio.sleep_forever, task_status)
            root.cancel_scope.cancel()
    finally:
        with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
            await gateway.aclose()


class _GatewayProcess:
    """One run of a gateway: its sockets, its servers, and what happens to them at the end."""

    def __init__(self, gateway: Gateway, root: trio.Nursery, start: Start) -> None:
        self._gateway = gateway
        self._settings = gateway.settings
        self._root = root
        self._start = start
        self._writers = StateWriters(gateway.start_writers)
        self._tls = None if gateway.certificates is None else gateway.certificates.context
        self._managed = start.inherited.api is not None  # the service manager passes the socket to the next process

    async def serve_until_drained(
        self, stop: Callable[[], Awaitable[None]], task_status: trio.TaskStatus[Addresses]
    ) -> None:
        gateway, start = self._gateway, self._start
        async with self._listening(start.predecessor) as (api, metrics):
            addresses = Addresses(address_of(api), address_of(metrics), is_tls=self._tls is not None)
            gateway.console.listens(addresses, admin_is_tls=self._tls is not None and self._settings.tls.admin)
            await self._root.start(self._writers.run)
            # Our own server here too: a scraper that stops reading must not keep the process from ending.
            limits = _server_limits(self._settings, ADMIN_CONNECTIONS)
            admin_tls = self._tls if self._settings.tls.admin else None
            admin = HttpServer(gateway.admin_app, limits=limits, log=log, tls=admin_tls)
            await self._root.start(admin.serve, [listener(metrics)])
            server = await self._start_public(api)
            if start.predecessor is not None:
                await start.predecessor.confirm()
            log.info("listening", api=str(addresses.api), metrics=str(addresses.metrics), version=__version__)
            takeover = TakeoverListener(
                gateway.catalogue_files.state_dir,
                sockets={"api": api, "metrics": metrics},
                writers=self._writers,
                state=gateway.handed_state,
                manager=start.manager,
                version=__version__,
                replaces=start.predecessor is not None,
                managed=self._managed,
            )
            if start.replaceable:
                await self._root.start(takeover.run)
            start.manager.ready()
            await self._root.start(start.manager.run, self._describe)
            task_status.started(addresses)
            is_taken = await _first(stop, takeover.wait_until_taken)
            admin.drain()
            metrics.close()  # with the duplicate that `drain` closes, so that the next process can listen there
            if is_taken:
                await self._drain(server, api, "running")
            else:
                start.manager.stopping()
                await self._drain(server, api, "later" if self._managed else "none")

    @contextlib.asynccontextmanager
    async def _listening(self, predecessor: Predecessor | None) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
        """Both sockets, with all neurons polled: handed over, inherited, or opened here. Closed on the way out.

        A process that takes over opens what it opens itself, and polls, before it takes anything: if that fails, the
        running process goes on.
        """
        settings, inherited = self._settings.gateway, self._start.inherited
        wanted = [] if predecessor is None else await predecessor.find_wanted(settings)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(inherited.close)

            async def own(port: str, listen: Listen, sock: socket.socket | None) -> socket.socket | None:
                if sock is not None or port in wanted:
                    return sock
                return await stack.enter_async_context(listening(listen))

            api = await own("api", settings.listen, inherited.api)
            metrics = await own("metrics", settings.metrics_listen, inherited.metrics)
            self._gateway.access_parts.listens_on(_address(api, predecessor))
            await self._gateway.start_serving(self._root)
            if predecessor is not None:
                sockets, handed = await predecessor.take(wanted)
                stack.callback(sockets.close)
                api, metrics = sockets.api or api, sockets.metrics or metrics
                self._managed = handed.managed
                await self._gateway.adopt(handed.state)
            if api is None or metrics is None:
                raise RuntimeError("a port has no socket")
            for sock in (api, metrics):
                set_options(sock)
            yield api, metrics

    async def _start_public(self, sock: socket.socket) -> HttpServer | HypercornServer:
        """The public port: our own HTTP/1.1, or Hypercorn's HTTP/1.1 and 2 (h2c) where the operator sets that."""
        settings = self._settings
        if settings.gateway.http_server == "hypercorn":
            worker = HypercornServer(self._gateway.app, sock, settings, self._gateway.certificates)
            await self._root.start(worker.serve)
            return worker
        connections = fd_limit.connections_within(settings.limits.connections)
        streaming = settings.streaming
        pump = Pump(streaming.pump_coalesce_us / 1e6) if streaming.pump else None
        server = HttpServer(
            self._gateway.app, limits=_server_limits(settings, connections), log=log, pump=pump, tls=self._tls
        )
        await self._root.start(server.serve, [listener(sock)])
        return server

    async def _drain(self, server: HttpServer | HypercornServer, sock: socket.socket, successor: _Successor) -> None:
        """Let running requests finish within the drain time, then cut what is left.

        Requests that wait for a model are refused, unless another process serves meanwhile. Newcomers are left to the
        next process, if there will be one; else they are refused, with a 503 instead of a refused connection.
        """
        gateway, drain_s = self._gateway, self._settings.gateway.drain_seconds
        log.info("draining", running=len(gateway.request_log.live), drain_s=drain_s, successor=successor)
        gateway.scheduler.drain()
        gateway.swaps.drain()
        gateway.shadows.stop()
        if successor != "running":
            gateway.inference.drain(refuse_new=successor == "none")
        server.drain(keep_idle=successor in QUIET_S)
        with contextlib.ExitStack() as refusing:
            if successor == "none":
                limits = _server_limits(self._settings, ADMIN_CONNECTIONS)
                newcomers = HttpServer(gateway.app, limits=limits, log=log, tls=self._tls)
                await self._root.start(newcomers.serve, [listener(sock)])
                refusing.callback(newcomers.drain)
            with trio.move_on_after(drain_s) as drain_scope:
                if successor in QUIET_S:
                    await server.close_when_quiet(QUIET_S[successor])
                await server.drained()
            if drain_scope.cancelled_caught:
                log.warning("cut", running=len(gateway.request_log.live))
                gateway.inference.cut(errors.ShuttingDown("this gateway is shutting down", retry_after_s=5))
                with trio.move_on_after(CUT_GRACE_S):
                    await server.drained()
        log.info("drained")

    def _describe(self) -> str:
        """The status line in `systemctl status`."""
        nodes = self._gateway.fleet.nodes.values()
        up = sum(node.healthy for node in nodes)
        return f"{up} of {len(nodes)} neurons up, {len(self._gateway.request_log.live)} requests, process {os.getpid()}"


async def _first(stop: Callable[[], Awaitable[None]], taken: Callable[[], Awaitable[None]]) -> bool:
    """Wait for either; returns whether it was `taken`."""
    is_taken = False

    async def wait_until_taken() -> None:
        nonlocal is_taken
        await taken()
        is_taken = True
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_until_taken)
        await stop()
        nursery.cancel_scope.cancel()
    return is_taken


def _address(api: socket.socket | None, predecessor: Predecessor | None) -> Listen:
    """Where this process will listen."""
    if api is not None:
        return address_of(api)
    if predecessor is None:
        raise RuntimeError("there is neither a socket nor a process to take one from")
    return predecessor.api


def _server_limits(settings: Settings, connections: int) -> ServerLimits:
    return ServerLimits(
        header_bytes=settings.limits.header_bytes,
        header_s=settings.deadlines.header_seconds,
        keep_alive_s=settings.gateway.keep_alive_seconds,
        client_write_s=settings.deadlines.client_write_seconds,
        connections=connections,
    )
