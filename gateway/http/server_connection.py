"""One client's connection: reads its requests, calls the application for each, in order, and writes the responses.

The application runs in the connection's own task. Its `receive` reads the socket, so backpressure is the socket's; when
the body is complete, `receive` waits for the client to disconnect.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from gateway.asgi import App, Flow, Scope
from gateway.errors import GatewayError, InternalError, MalformedRequest, RequestTimeout
from gateway.http import sockets
from gateway.http.epoll.hang_ups import HangUps
from gateway.http.epoll.pump import Pump
from gateway.http.request_parser import RequestParser
from gateway.http.server_exchange import ClientDisconnected, ServerExchange, ServerLog, error_response, is_departure
from gateway.http.server_tls.handshake import FailedHandshakes, shake_hands
from gateway.http.server_tls.tls_stream import TlsStream
from gateway.http.sockets import close_now, descriptor, has_hung_up, is_quiet, read, write_what_fits

__all__ = ["ServerConnection", "ServerLimits", "ServerState"]

HUNG_UP_INTERVAL_S = 0.5
TLS_WRITE_BYTES = 65536  # per write deadline; a plain socket tells how much it has taken
SENDS_PER_CHECKPOINT = 16  # a checkpoint costs 2.7 us; 16 sends of 10 us delay other tasks less than one request does


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits on what a client can send and on how long it can take."""

    header_bytes: int = 65536
    header_s: float = 30  # from a request's first byte to the end of its headers
    keep_alive_s: float = 650  # between requests; longer than common load balancers, whose longest is 600 s
    client_write_s: float = 60  # for the client to read something
    connections: int = 10_000
    linger_s: float = 2  # for a client to read an early response and stop sending
    linger_bytes: int = 256 * 1024**2  # four bodies of the default limit
    pipelined_bytes: int = 65536  # of requests sent ahead; further ones stay in the client's socket


class ServerState:
    """What a server's connections share."""

    __slots__ = ("draining", "failed_handshakes", "hang_ups", "idle", "incomplete", "keeps_idle", "pump", "served")

    def __init__(self, pump: Pump | None = None) -> None:
        self.draining = False
        self.keeps_idle = False  # while draining: a connection may wait for its last request
        self.failed_handshakes = FailedHandshakes()
        self.hang_ups = HangUps()
        self.pump = pump
        self.served = 0  # requests
        self.idle: dict[ServerConnection, None] = {}
        """Connections between two requests; the one that has been idle longest comes first."""
        self.incomplete: dict[ServerConnection, None] = {}
        """Connections that wait for the rest of a request; the one that has waited longest comes first."""


class ServerConnection:
    """Serves the requests of one connection until it ends. Its creator calls `close`."""

    __slots__ = (
        "_app", "_client_gone", "_departed", "_evicted", "_fd", "_limits", "_log", "_on_departure", "_owed", "_parser",
        "_sends", "_serving", "_socket_fd", "_state", "_stream", "_wait", "_watched", "client", "idle", "local",
    )  # fmt: skip

    def __init__(
        self,
        stream: trio.abc.Stream,
        client: tuple[str, int] | None,
        *,
        app: App,
        limits: ServerLimits,
        state: ServerState,
        log: ServerLog,
    ) -> None:
        self._app = app
        self._limits = limits
        self._log = log
        self._state = state
        self._stream = stream
        self._fd = descriptor(stream)
        self._client_gone = False
        self._parser = RequestParser(limits.header_bytes)
        self._owed = b""  # of a piece that the pump has sent in part: it goes before anything else
        self._sends = 0  # since the last checkpoint
        self._wait: trio.CancelScope | None = None  # around the wait for a request, or for the rest of one
        self._serving: ServerExchange | None = None
        self._evicted = False
        self._watched = False  # by the server's `hang_ups`
        self._departed = False  # as `hang_ups` has reported
        self._on_departure: Callable[[], None] | None = None  # of the exchange being served
        self.client = client
        self.local: tuple[str, int] | None = None
        self.idle = True
        tcp = sockets.transport(stream)
        self._socket_fd = None if tcp is None else tcp.socket.fileno()  # with TLS it cannot be read or written directly
        if tcp is not None:
            remote, self.local = sockets.addresses(tcp)
            self.client = client or remote

    @property
    def closing(self) -> bool:
        """Whether the running exchange is the last one on this connection."""
        return self._state.draining

    async def run(self) -> None:
        """Serve requests until the client or the server ends the connection."""
        if isinstance(self._stream, TlsStream) and not await self._shake_hands(self._stream):
            return
        while True:
            try:
                exchange = await self._next_request()
            except GatewayError as error:
                await self.send_error(error)
                return
            if exchange is None:
                return
            await self._serve(exchange)
            if not exchange.reusable:
                if exchange.answered and self._may_have_unread(exchange):
                    await self._linger()
                return

    async def _shake_hands(self, stream: TlsStream) -> bool:
        """The TLS handshake, which counts as an incomplete request. Returns whether there can be requests."""
        self.idle, result = False, None
        self._state.incomplete[self] = None
        try:
            with trio.CancelScope(deadline=trio.current_time() + self._limits.header_s) as self._wait:
                result = await shake_hands(stream, self._state.failed_handshakes, self.client)
        finally:
            del self._state.incomplete[self]
            self._wait = None
        self.idle = True
        if result == "plain HTTP":
            self._stream, self._fd = stream.transport_stream, self._socket_fd
            await self.send_error(MalformedRequest("this port speaks TLS: use https"))
        return result == "done"

    def _may_have_unread(self, exchange: ServerExchange) -> bool:
        return not exchange.body_complete or self._parser.has_more or not is_quiet(self._stream)

    # Reading ..........................................................................................................

    async def _next_request(self) -> ServerExchange | None:
        """Wait for the next request's headers. Returns None when the connection ends without one.

        Raises:
            GatewayError: The bytes are no request the server accepts, or the headers missed their deadline.
        """
        exchange = self._parser.take()
        if exchange is not None:
            await trio.lowlevel.checkpoint()  # serving a burst of pipelined requests has no other checkpoint
            return exchange
        limits = self._limits
        self.idle = not self._parser.pending
        if self.idle and self.closing and not self._state.keeps_idle and is_quiet(self._stream):
            return None
        waiting = self._state.idle if self.idle else self._state.incomplete
        waiting[self] = None
        allowed_s = limits.keep_alive_s if self.idle else limits.header_s
        try:
            with trio.CancelScope(deadline=trio.current_time() + allowed_s) as self._wait:
                while exchange is None:
                    data = await self.read()
                    if not data:
                        return None
                    was_idle, self.idle = self.idle, False
                    self._parser.feed(data)
                    exchange = self._parser.take()
                    if was_idle and exchange is None:
                        del waiting[self]
                        waiting = self._state.incomplete
                        waiting[self] = None
                        self._wait.deadline = trio.current_time() + limits.header_s
        finally:
            del waiting[self]
            self._wait = None
        if exchange is None and not self.idle and not self._evicted:
            raise RequestTimeout(f"the request's headers did not arrive within {limits.header_s:g} s")
        return exchange

    async def read(self) -> bytes:
        """Return the next bytes; `b""` when the client has closed. Cancelling this loses no bytes."""
        data = await read(self._stream, self._fd)
        if not data:
            self._client_gone = True
        return data

    async def read_more(self) -> bool:
        """Feed the parser with the next bytes; False when the client has closed.

        When the client has sent enough requests ahead, the rest stays in its socket, and this waits until it closes.
        """
        if self._parser.ahead_bytes > self._limits.pipelined_bytes:
            await self._wait_until_hung_up()
            return False
        exchange = self._serving
        if exchange is None or exchange.body_complete:
            data = await self.read()
        else:
            data = await self._read_body()
        if data:
            self._parser.feed(data)
        return bool(data)

    async def _read_body(self) -> bytes:
        """Return the next bytes while a request's body is incomplete; `b""` also if the connection is evicted."""
        data = b""
        waiting = self._state.incomplete
        waiting[self] = None
        try:
            with trio.CancelScope() as self._wait:
                data = await self.read()
        finally:
            del waiting[self]
            self._wait = None
        if not data:
            self._client_gone = True
        return data

    async def _wait_until_hung_up(self) -> None:
        """Wait until the client closes its side or resets the connection. Bytes before that may stay unread."""
        fd = self._socket_fd
        if fd is None:
            await trio.sleep_forever()
        while not has_hung_up(fd):  # noqa: ASYNC110 - unread bytes hide every event
            await trio.sleep(HUNG_UP_INTERVAL_S)
        self._client_gone = True

    # Serving ..........................................................................................................

    async def _serve(self, exchange: ServerExchange) -> None:
        """Call the application. Its exceptions are logged and answered with a 500; Cancelled passes."""
        exchange.attach(self)
        self._serving = exchange
        self._state.served += 1
        scope = exchange.scope(self.client, self.local)
        if isinstance(self._stream, TlsStream):
            scope["scheme"] = "https"
        if self._fd is None and isinstance(self._stream, TlsStream):
            scope["scheme"] = "https"
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - logged by _report; an application must not take the server down
            self._report(error, scope)
            await self._send_failure(exchange, exchange.error or (_INCOMPLETE if is_departure(error) else _CRASHED))
        except BaseExceptionGroup as group:
            crashes, cancelled = group.split(Exception)
            self._report(crashes, scope)
            raise (cancelled or group) from None
        else:
            if not exchange.complete:
                await self._send_failure(exchange, exchange.error or _NO_RESPONSE)
        finally:
            self._on_departure = None
            if exchange.close_would_look_complete:
                self._reset_on_close()

    def on_departure(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called if the client hangs up before the exchange ends. False if that cannot be watched.

        The connection is registered once, for all its requests. Without this a request needs a task that reads.
        """
        hang_ups = self._state.hang_ups
        if self._socket_fd is None or not hang_ups.running:
            return False
        self._on_departure = callback
        if not self._watched:
            self._watched = True
            hang_ups.watch(self._socket_fd, self._depart)
        if self._departed:
            self._depart()
        return True

    def _depart(self) -> None:
        self._departed = True
        callback, self._on_departure = self._on_departure, None
        if callback is not None:
            self._client_gone = True
            callback()

    def _report(self, error: Exception | None, scope: Scope) -> None:
        if error is not None and not is_departure(error):
            self._log.error("app_crashed", exc_info=error, path=scope["path"])

    async def _send_failure(self, exchange: ServerExchange, error: GatewayError) -> None:
        """Send an error if no response has begun. A response that was cut off stays visibly incomplete."""
        exchange.reusable = False
        if exchange.started:
            exchange.answered = exchange.complete
        elif not self._client_gone:
            await self.write(error_response(error))
            exchange.answered = True

    async def send_error(self, error: GatewayError) -> None:
        """Send an error response and give the client time to read it."""
        await self.write(error_response(error))
        await self._linger()

    # Writing ..........................................................................................................

    async def write(self, data: bytes) -> None:
        """Send all of `data`. No checkpoint if the socket takes it at once: see `checkpoint_if_due`.

        If this is cancelled, part of `data` may be sent, and the connection cannot be used again.

        Raises:
            ClientDisconnected: The client has closed, or has read nothing for `client_write_s`.
        """
        if self._client_gone:
            raise ClientDisconnected(_CLIENT_CLOSED)
        if self._owed:
            data, self._owed = self._owed + data, b""
        if self._fd is None:
            for begin in range(0, len(data), TLS_WRITE_BYTES):
                await self._within_write_deadline(self._stream.send_all, data[begin : begin + TLS_WRITE_BYTES])
            return
        try:
            sent = write_what_fits(self._fd, data)
        except OSError as error:
            self._client_gone = True
            raise ClientDisconnected(_CLIENT_CLOSED) from error
        if sent < len(data):
            await self._write_rest(self._fd, memoryview(data)[sent:])

    @property
    def can_carry(self) -> bool:
        """Whether a pump can write to this connection."""
        pump = self._state.pump
        return pump is not None and pump.running and self._fd is not None and not self._client_gone

    async def carry(self, source: int, flow: Flow, *, chunked: bool) -> None:
        """Have the pump relay from `source`. See `Pump.carry`."""
        pump, fd = self._state.pump, self._fd
        if pump is None or fd is None or self._client_gone:
            raise ClientDisconnected(_CLIENT_CLOSED)
        await pump.carry(source, fd, flow, self._owe, chunked=chunked)

    def _owe(self, rest: bytes) -> None:
        self._owed = rest

    async def flush(self) -> None:
        """Send what the client has not taken from the pump. Raises as `write`."""
        if self._owed:
            await self.write(b"")

    async def checkpoint_if_due(self) -> None:
        """Run a checkpoint once in `SENDS_PER_CHECKPOINT` calls.

        A relay waits for the neuron's next chunk between sends, which is a checkpoint. An application with its response
        in memory has none if the client reads fast: other tasks would wait, and a cancellation would go unnoticed.
        """
        self._sends += 1
        if self._sends >= SENDS_PER_CHECKPOINT:
            self._sends = 0
            await trio.lowlevel.checkpoint()

    async def _write_rest(self, fd: int, rest: memoryview) -> None:
        while rest:
            await self._within_write_deadline(trio.lowlevel.wait_writable, fd)
            try:
                rest = rest[write_what_fits(fd, rest) :]
            except OSError as error:
                self._client_gone = True
                raise ClientDisconnected(_CLIENT_CLOSED) from error

    async def _within_write_deadline(self, step: Callable[[Any], Awaitable[object]], argument: object) -> None:
        try:
            with trio.move_on_after(self._limits.client_write_s) as scope:
                await step(argument)
        except trio.Cancelled:
            self._client_gone = True  # part of the data may be sent: nothing else can be sent after it
            raise
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._client_gone = True
            raise ClientDisconnected(_CLIENT_CLOSED) from error
        if scope.cancelled_caught:
            self._client_gone = True
            raise ClientDisconnected(f"the client read nothing for {self._limits.client_write_s:g} s")

    # Ending ...........................................................................................................

    async def _linger(self) -> None:
        """Shut down the sending side, then discard what the client still sends until it closes.

        If a socket is closed while it has unread bytes, the kernel sends a reset, and the client may lose the response
        (RFC 9112, section 9.6).
        """
        if self._client_gone:
            return
        discarded = 0
        with trio.move_on_after(self._limits.linger_s):
            if isinstance(self._stream, trio.SocketStream | TlsStream):
                try:
                    await self._stream.send_eof()
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # the client has reset the connection
            while discarded < self._limits.linger_bytes and (data := await self.read()):
                discarded += len(data)

    def close_if_idle(self) -> bool:
        """End the connection if it waits for its next request and no byte of it has arrived. Returns whether it did."""
        if not self.idle or self._wait is None or self._evicted or not is_quiet(self._stream):
            return False
        self.evict()
        return True

    def evict(self) -> None:
        """End the connection, which waits for a request or for the rest of one."""
        self._evicted = True
        if self._wait is not None:
            self._wait.cancel()

    @property
    def evicted(self) -> bool:
        """Whether `evict` was called."""
        return self._evicted

    def _reset_on_close(self) -> None:
        """Make the close a reset: an orderly close would mark an incomplete body as complete (see RFC 9112, 6.3)."""
        if isinstance(self._stream, TlsStream):
            self._stream.abortive = True
        if (tcp := sockets.transport(self._stream)) is not None:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        """Close at once. Sync, so that it cannot be cancelled."""
        self._client_gone = True
        if self._watched and self._socket_fd is not None:
            self._state.hang_ups.forget(self._socket_fd)
        self._fd = self._socket_fd = None  # the kernel may give the number to another socket
        close_now(self._stream)


_CLIENT_CLOSED = "the client has closed the connection"
_INCOMPLETE = RequestTimeout("the client closed its side before the request was complete")
_CRASHED = InternalError("an error inside the gateway; its log has more")
_NO_RESPONSE = InternalError("an error inside the gateway: the application sent no response")
