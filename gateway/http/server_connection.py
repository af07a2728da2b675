"""One client's connection: reads its requests, calls the application for each, in order, and writes the responses.

The application runs in the connection's own task. Its `receive` reads the socket, so backpressure is the socket's; when
the body is complete, `receive` waits for the client to disconnect.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from math import inf
from typing import Any

import trio

from gateway.asgi import App, Flow, Scope
from gateway.errors import GatewayError, InternalError, MalformedRequest, RequestTimeout
from gateway.http import sockets
from gateway.http.request_parser import RequestParser
from gateway.http.server_exchange import ClientDisconnected, ServerExchange, ServerLog, error_response, is_departure
from gateway.http.server_state.server_limits import ServerLimits
from gateway.http.server_state.server_state import ServerState
from gateway.http.server_tls.handshake import shake_hands
from gateway.http.server_tls.tls_stream import TlsStream
from gateway.http.sockets import close_now, descriptor, has_hung_up, is_quiet, read, read_at_once, write_what_fits
from gateway.http.tcp.plain_stream import PlainStream

__all__ = ["ServerConnection"]

HUNG_UP_INTERVAL_S = 0.5
TLS_WRITE_BYTES = 65536  # per write deadline; a plain socket tells how much it has taken
SENDS_PER_CHECKPOINT = 16  # a checkpoint costs 2.7 us; 16 sends of 10 us delay other tasks less than one request does


class ServerConnection:
    """Serves the requests of one connection until it ends. Its creator calls `close`."""

    __slots__ = (
        "_app", "_client_gone", "_departed", "_evicted", "_fd", "_is_new", "_is_overdue", "_limits", "_log", "_now",
        "_on_departure", "_owed", "_parser", "_scope", "_sends", "_serving", "_socket_fd", "_state", "_stream", "_wait",
        "_watched", "client", "idle", "local", "scheme",
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
        self._app, self._log = app, log
        self._limits, self._state = limits, state
        self._now = trio.lowlevel.current_clock().current_time  # `trio.current_time` takes four times as long
        self._stream = stream
        self._fd = descriptor(stream)
        self._client_gone = False
        self._parser = RequestParser(limits.header_bytes, state.latest_head)
        self._owed = b""  # of a piece that the pump has sent in part: it goes before anything else
        self._sends = 0  # since the last checkpoint
        self._scope = trio.CancelScope() if self._fd is None else None  # around all requests; it costs 12 us
        self._wait: trio.CancelScope | None = None  # the scope of a wait for a request, or for the rest of one
        self._serving: ServerExchange | None = None
        self._evicted = self._is_overdue = False
        self._is_new = True  # its first bytes have probably come with it
        self._watched = False  # by the server's `hang_ups`
        self._departed = False  # as `hang_ups` has reported
        self._on_departure: Callable[[], None] | None = None  # of the exchange being served
        self.client = client
        self.scheme = "https" if isinstance(stream, TlsStream) else "http"
        self.local: tuple[str, int] | None = None
        self.idle = True
        tcp = sockets.transport(stream)
        self._socket_fd = None if tcp is None else tcp.fileno()  # with TLS it cannot be read or written directly
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
        try:
            with self._scope or nullcontext():
                await self._serve()
            if self._is_overdue and not self.idle:
                raise RequestTimeout(f"the request's headers did not arrive within {self._limits.header_s:g} s")
        except GatewayError as error:
            await self.send_error(error)

    async def _serve(self) -> None:
        """Call the application for each request. Its exceptions are logged and answered with a 500; Cancelled passes.

        Raises:
            GatewayError: The bytes after the last request are no request that the server accepts.
        """
        state, parser = self._state, self._parser
        while True:
            exchange = parser.take()
            if exchange is not None:
                await trio.lowlevel.checkpoint()  # serving a burst of pipelined requests has no other checkpoint
            elif (exchange := await self._next_request()) is None:
                return
            self._serving = exchange
            state.served += 1
            scope = exchange.begin(self)
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - an application must not take the server down
                await self._recover(exchange, error, scope)
            else:
                if not exchange.complete:
                    await self._send_failure(exchange, exchange.error or _NO_RESPONSE)
            finally:
                self._on_departure = None
                if not exchange.complete and exchange.close_would_look_complete:
                    self._reset_on_close()
            if not exchange.reusable:
                if exchange.answered and (not exchange.body_complete or parser.has_more or not is_quiet(self._stream)):
                    await self._linger()
                return

    async def _shake_hands(self, stream: TlsStream) -> bool:
        """The TLS handshake, which counts as an incomplete request. Returns whether there can be requests."""
        self.idle, result = False, None
        self._state.incomplete[self] = trio.current_time() + self._limits.header_s
        try:
            with trio.CancelScope() as self._wait:
                result = await shake_hands(stream, self._state.failed_handshakes, self.client)
        finally:
            del self._state.incomplete[self]
            self._wait = None
        self.idle = True
        if result == "plain HTTP":
            self._stream, self._fd = stream.transport_stream, self._socket_fd
            await self.send_error(MalformedRequest("this port speaks TLS: use https"))
        return result == "done"

    # Reading ..........................................................................................................

    async def _next_request(self) -> ServerExchange | None:
        """Wait for the next request's headers. Returns None when the connection ends without one.

        `HttpServer.watch_connections` ends the wait at its deadline.

        Raises:
            GatewayError: The bytes are no request that the server accepts.
        """
        state, parser, fd, exchange = self._state, self._parser, self._fd, None
        self.idle = not parser.pending
        if self.idle and state.draining and not state.keeps_idle and is_quiet(self._stream):
            return None
        waiting, limits = state.idle if self.idle else state.incomplete, self._limits
        waiting[self] = self._now() + (limits.keep_alive_s if self.idle else limits.header_s)
        self._wait = self._scope
        try:
            while exchange is None:
                data = read_at_once(fd) if self._is_new and fd is not None else None
                self._is_new = False
                while data is None and not self._evicted:  # which a wait that begins now would not notice
                    data = await sockets.read_if_any(self._stream, fd)
                if not data or self._evicted:  # in the instant in which data arrived
                    self._client_gone = not (data or self._evicted)
                    break
                was_idle, self.idle = self.idle, False
                exchange = parser.read(data)
                if was_idle and exchange is None:
                    del waiting[self]
                    waiting = state.incomplete
                    waiting[self] = self._now() + limits.header_s
        finally:
            del waiting[self]
            self._wait = None
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
        waiting[self] = inf
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

    async def _recover(self, exchange: ServerExchange, error: Exception | BaseExceptionGroup, scope: Scope) -> None:
        """Report what the application raised, and answer for it. Raises what is not an Exception, such as Cancelled."""
        crash, rest = (error, None) if isinstance(error, Exception) else error.split(Exception)
        failure: GatewayError = _INCOMPLETE
        if crash is not None and not is_departure(crash):
            failure = _CRASHED
            self._log.error("app_crashed", exc_info=crash, path=scope["path"])
        if rest is not None:
            raise rest from None
        await self._send_failure(exchange, exchange.error or failure)

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

    def write_nowait(self, data: bytes) -> bytes | memoryview:
        """Send what the client takes at once. Returns the rest, which `write_rest` sends.

        Raises:
            ClientDisconnected: The client has closed.
        """
        if self._client_gone:
            raise ClientDisconnected(_CLIENT_CLOSED)
        if self._owed:
            data, self._owed = self._owed + data, b""
        if self._fd is None:
            return data
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            return data
        except OSError as error:
            self._client_gone = True
            raise ClientDisconnected(_CLIENT_CLOSED) from error
        return memoryview(data)[sent:] if sent < len(data) else b""

    async def write_rest(self, rest: bytes | memoryview) -> None:
        """Send all of `rest`, as the client takes it.

        If this is cancelled, part of it may be sent, and the connection cannot be used again.

        Raises:
            ClientDisconnected: The client has closed, or has read nothing for `client_write_s`.
        """
        fd = self._fd
        if fd is None:
            for begin in range(0, len(rest), TLS_WRITE_BYTES):
                await self._within_write_deadline(self._stream.send_all, rest[begin : begin + TLS_WRITE_BYTES])
            return
        rest = memoryview(rest)
        while rest:
            await self._within_write_deadline(trio.lowlevel.wait_writable, fd)
            try:
                rest = rest[write_what_fits(fd, rest) :]
            except OSError as error:
                self._client_gone = True
                raise ClientDisconnected(_CLIENT_CLOSED) from error

    async def write(self, data: bytes) -> None:
        """Send all of `data`, as `write_nowait` and `write_rest` do. No checkpoint if the socket takes it at once."""
        if rest := self.write_nowait(data):
            await self.write_rest(rest)

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
            if isinstance(self._stream, PlainStream | TlsStream):
                try:
                    await self._stream.send_eof()
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # the client has reset the connection
            while discarded < self._limits.linger_bytes and (data := await self.read()):
                discarded += len(data)

    def close_if_idle(self) -> bool:
        """End the connection if it waits for its next request and no byte of it has arrived. Returns whether it did."""
        if self not in self._state.idle or self._evicted or not is_quiet(self._stream):
            return False
        self.evict()
        return True

    def expire(self) -> None:
        """End the connection, because its wait has exceeded its deadline. A request that has begun gets a 408."""
        if self.idle and not is_quiet(self._stream):
            return  # a request has arrived in this instant
        self._is_overdue = True
        self.evict()

    def evict(self) -> None:
        """End the connection, which waits for a request or for the rest of one."""
        self._evicted = True
        if self._wait is not None:
            self._wait.cancel()
        elif self._fd is not None:
            trio.lowlevel.notify_closing(self._fd)  # in place of a scope: `read` returns without data

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
        self._parser.close()
        if self._serving is not None:
            self._serving.close()
        close_now(self._stream)


_CLIENT_CLOSED = "the client has closed the connection"
_INCOMPLETE = RequestTimeout("the client closed its side before the request was complete")
_CRASHED = InternalError("an error inside the gateway; its log has more")
_NO_RESPONSE = InternalError("an error inside the gateway: the application sent no response")
