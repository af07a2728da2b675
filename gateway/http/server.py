"""The HTTP/1.1 server for an ASGI application: accepts connections, limits their number, drains.

One task per connection; the application runs in that task. `server_connection` serves a connection, with or without
TLS. There is no HTTP/2: put a proxy in front, or use `hypercorn_server`. Why not Hypercorn:
docs/decisions/0003-own-http-front.md.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable

import trio

from gateway.asgi import App
from gateway.errors import Overloaded
from gateway.http.epoll.pump import Pump
from gateway.http.server_connection import ServerConnection
from gateway.http.server_exchange import ClientDisconnected, ServerLog
from gateway.http.server_state.server_limits import ServerLimits
from gateway.http.server_state.server_state import ServerState
from gateway.http.server_tls.tls_stream import TlsStream
from gateway.http.sockets import set_latency_options
from gateway.http.tcp.plain_stream import PlainStream

__all__ = ["HttpServer", "ServerLimits"]

QUIET_CHECK_S = 0.05
ACCEPTS_PER_TURN = 64  # connections that wait are accepted this many at a time; each costs 40 us, so this is 2.5 ms
NO_ROOM_WAIT_S = 0.1  # without descriptors or memory for another connection
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NOT_LISTENING = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
CONCURRENT_REJECTIONS = 100  # connections beyond the limit that get a 503; further ones are closed without a response


class HttpServer:
    """Serves one application on any number of listeners.

    Args:
        app: ASGI 3, HTTP only. The server sends no lifespan events.
        limits: Sizes, times and the number of connections.
        log: Receives exceptions that the application raises.
        pump: Carries streams that the application relays; None: each goes through its own task. `serve` runs it.
        tls: Returns the context for a new connection; None for a port without TLS. The pump carries no stream with TLS.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: ServerLimits,
        log: ServerLog,
        pump: Pump | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._app = app
        self._tls = tls
        self._limits = limits
        self.log = log
        self._state = ServerState(pump)
        self._refused = 0
        self._rejecting = 0  # connections that are being sent a 503
        self._connections: set[ServerConnection] = set()
        self._accepting = trio.CancelScope()
        self._ended = trio.Event()

    async def serve(
        self, listeners: list[trio.SocketListener], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept and serve until drained. Ready (`started`) when accepting.

        Closes the listeners. Cancelling this closes all connections at once.
        """
        try:
            async with trio.open_nursery() as helpers:
                await helpers.start(self.watch_connections)
                if self._state.pump is not None:
                    await helpers.start(self._state.pump.run)
                async with trio.open_nursery() as connections:
                    with self._accepting:
                        async with trio.open_nursery() as accepting:
                            for listener in listeners:
                                await accepting.start(self._accept, listener, connections)
                            task_status.started()
                helpers.cancel_scope.cancel()
        finally:
            self._ended.set()

    async def _accept(
        self,
        listener: trio.SocketListener,
        connections: trio.Nursery,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept all connections that wait, then let other tasks run. Closes the listener in the end.

        Trio's own loop accepts one connection per pass of the event loop: of many clients that come at once, the last
        would wait until the first have their answers.
        """
        async with listener:
            with socket.socket(
                fileno=os.dup(listener.socket.fileno())
            ) as sock:  # Trio's has no accept that never waits
                set_latency_options(sock.setsockopt)
                task_status.started()
                while True:
                    await trio.lowlevel.wait_readable(sock)
                    if not self._accept_waiting(sock, connections):
                        await trio.sleep(NO_ROOM_WAIT_S)

    def _accept_waiting(self, sock: socket.socket, connections: trio.Nursery) -> bool:
        """Start a task for each connection that waits, up to `ACCEPTS_PER_TURN`. False if the system has no room.

        Beyond the limit of connections it accepts one at a time, whose 503 goes first: the descriptors would run out.
        """
        room = self._limits.connections - len(self._connections)
        for _ in range(min(ACCEPTS_PER_TURN, max(1, room))):
            try:
                accepted, _ = sock.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self.log.exception("accept_failed", retry_after_s=NO_ROOM_WAIT_S)
                    return False
                if error.errno in _NOT_LISTENING:
                    raise
                continue  # since it connected, the client has left, or the network has failed
            connections.start_soon(self.serve_stream, PlainStream(accepted))
        return True

    async def watch_connections(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch all clients for their leaving, and for waits that exceed their deadline; a part of `serve`.

        Without it each request has a task that watches its client, and clients may be silent forever.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._state.hang_ups.run)
            nursery.start_soon(self._state.end_overdue, self._limits)
            task_status.started()

    async def serve_stream(self, stream: trio.abc.Stream, client: tuple[str, int] | None = None) -> None:
        """Serve one connection until it ends, and close the stream. Raises nothing but Cancelled.

        Args:
            stream: A TCP connection, which gets TLS if this server has it, or another stream.
            client: Host and port for the ASGI scope; None: those of the socket.
        """
        if self._tls is not None and isinstance(stream, PlainStream):
            stream = TlsStream(stream, self._tls())
        connection = ServerConnection(
            stream, client, app=self._app, limits=self._limits, state=self._state, log=self.log
        )
        try:
            if len(self._connections) >= self._limits.connections and not self._evict_one():
                await self._reject(connection)
                return
            self._connections.add(connection)
            await connection.run()
        except ClientDisconnected:
            pass  # nothing left to do for this client
        except Exception:
            self.log.exception("connection_crashed")
        finally:
            self._connections.discard(connection)
            connection.close()

    def _evict_one(self) -> bool:
        """Close the oldest connection without a complete request, to make room for a new one. False if there is none.

        Idle ones first. Without this, a few thousand connections that send nothing, or one byte, would lock all other
        clients out.
        """
        if any(connection.close_if_idle() for connection in list(self._state.idle)):
            return True
        for connection in self._state.incomplete:
            if not connection.evicted:
                connection.evict()
                return True
        return False

    async def _reject(self, connection: ServerConnection) -> None:
        """Send a 503 to a connection beyond the limit, unless too many are being sent one already."""
        self._refused += 1
        if self._rejecting >= CONCURRENT_REJECTIONS or self._tls is not None:  # handshakes are what costs the most
            return
        self._rejecting += 1
        try:
            message = f"this gateway has reached its limit of {self._limits.connections} connections; try again later"
            await connection.send_error(Overloaded(message, retry_after_s=1))
        finally:
            self._rejecting -= 1

    def drain(self, *, keep_idle: bool = False) -> None:
        """Stop accepting, let running requests finish. Sync; `drained` waits for the end.

        With `keep_idle` each open connection may still send one request, whose answer announces the close. Otherwise
        idle ones are closed at once. A client that sends a request at that moment gets no answer.
        """
        self._state.draining = True
        self._state.keeps_idle = keep_idle
        self._accepting.cancel()
        if not keep_idle:
            self._close_idle()

    async def close_when_quiet(self, quiet_s: float) -> None:
        """After `drain(keep_idle=True)`: close the idle connections once no request has been running for this long."""
        quiet_since, served = trio.current_time(), self._state.served
        while trio.current_time() - quiet_since < quiet_s:
            if len(self._connections) > len(self._state.idle) or served != self._state.served:
                quiet_since, served = trio.current_time(), self._state.served
            await trio.sleep(min(QUIET_CHECK_S, quiet_s))
        self._state.keeps_idle = False
        self._close_idle()

    def _close_idle(self) -> None:
        for connection in list(self._connections):
            connection.close_if_idle()

    async def drained(self) -> None:
        """Wait until the last connection has ended."""
        await self._ended.wait()
