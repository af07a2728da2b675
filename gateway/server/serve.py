"""Runs a gateway on its two ports until a signal stops it, then drains it.

root nursery                      a crash of any task in it ends the process with a traceback
+-- background tasks              those of Gateway.start_background
+-- metrics and admin server
+-- public server                 drained first; what is left after the drain time is cut
    +-- one task per connection, one nursery per request
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import structlog
import trio

from gateway import __version__, errors
from gateway.config.settings import Settings
from gateway.http import fd_limit
from gateway.http.hypercorn_server import HypercornServer
from gateway.http.server import HttpServer, ServerLimits
from gateway.server.gateway import Gateway
from gateway.server.listen import Addresses, address_of, listener, listening

__all__ = ["serve"]

ADMIN_CONNECTIONS = 64  # scrapers and operators; they fit in the reserve of http/fd_limit.py
CUT_GRACE_S = 5.0  # after the drain time: for the error event of each remaining stream to reach its client
CLOSE_DEADLINE_S = 1.0

log = structlog.get_logger("cortex.serve")


async def serve(
    gateway: Gateway,
    *,
    stop: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[Addresses] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a gateway until `stop` returns, then drain it. Started once it listens and has polled every neuron once.

    Returns when the last request has its answer, or `drain_seconds` later when each of those left has its error event.
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
    async with listening(settings.listen) as api, listening(settings.metrics_listen) as metrics:
        addresses = Addresses(address_of(api), address_of(metrics))
        gateway.console.api_port = addresses.api.port
        gateway.access_parts.listens_on(addresses.api)
        await gateway.start_background(root)
        # Our own server here too: a scraper that stops reading must not keep the process from ending.
        limits = _server_limits(gateway.settings, ADMIN_CONNECTIONS)
        await root.start(HttpServer(gateway.admin_app, limits=limits, log=log).serve, [listener(metrics)])
        server = await _start_public(gateway, api, root)
        log.info("listening", api=str(addresses.api), metrics=str(addresses.metrics), version=__version__)
        task_status.started(addresses)
        await stop()
        await _drain(gateway, server)


async def _start_public(gateway: Gateway, sock: socket.socket, root: trio.Nursery) -> HttpServer | HypercornServer:
    """The public port: our own HTTP/1.1, or Hypercorn's HTTP/1.1 and 2 (h2c) where the operator sets that."""
    if gateway.settings.gateway.http_server == "hypercorn":
        worker = HypercornServer(gateway.app, sock, gateway.settings)
        await root.start(worker.serve)
        return worker
    connections = fd_limit.connections_within(gateway.settings.limits.connections)
    server = HttpServer(gateway.app, limits=_server_limits(gateway.settings, connections), log=log)
    await root.start(server.serve, [listener(sock)])
    return server


async def _drain(gateway: Gateway, server: HttpServer | HypercornServer) -> None:
    """Refuse new and queued requests, let running ones finish within the drain time, then cut what is left."""
    drain_s = gateway.settings.gateway.drain_seconds
    log.info("draining", running=len(gateway.request_log.live), drain_s=drain_s)
    gateway.swaps.drain()
    gateway.shadows.stop()
    gateway.inference.drain()
    server.drain()
    with trio.move_on_after(drain_s) as drain_scope:
        await server.drained()
    if drain_scope.cancelled_caught:
        log.warning("cut", running=len(gateway.request_log.live))
        gateway.inference.cut(errors.ShuttingDown("this gateway is shutting down", retry_after_s=5))
        with trio.move_on_after(CUT_GRACE_S):
            await server.drained()
    log.info("drained")


def _server_limits(settings: Settings, connections: int) -> ServerLimits:
    return ServerLimits(
        header_bytes=settings.limits.header_bytes,
        header_s=settings.deadlines.header_seconds,
        keep_alive_s=settings.gateway.keep_alive_seconds,
        client_write_s=settings.deadlines.client_write_seconds,
        connections=connections,
    )
