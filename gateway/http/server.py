"""HTTP/1.1 for an ASGI application over Trio streams: one task per connection, nothing spawned, nothing queued.

llhttp (through `httptools`) parses and is strict where it matters: a bare LF ends no line, CL with TE is refused.
The application runs in the connection's own task; `receive` reads the socket when it is asked, which is all the
backpressure there is, and once the body is complete waits for the client to leave. Why not Hypercorn for this port:
docs/decisions/0003-own-http-front.md. No routing, no TLS, no HTTP/2: a proxy in front does those.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import trio

from gateway.asgi import App, Scope
from gateway.http.request_parser import RequestParser
from gateway.http.server_exchange import ClientDisconnected, RejectedRequest, ServerExchange, rejection_bytes
from gateway.http.sockets import close_now, descriptor, is_quiet, read, write_what_fits

__all__ = ["ClientDisconnected", "HttpServer", "ServerLimits", "ServerStatistics"]

SENDS_PER_CHECKPOINT = 16  # spreads a checkpoint's 2.7 us; at 10 us a send nobody waits longer than for one request
TURNED_AWAY_AT_A_TIME = 100  # connections beyond the limit that are still given time to read why


class ServerLog(Protocol):
    """What is needed of a logger; structlog's have it."""

    def error(self, event: str, *, exc_info: BaseException, **facts: Any) -> Any:
        """Log an exception that was caught."""
        ...

    def exception(self, event: str, **facts: Any) -> Any:
        """Log the exception being handled."""
        ...


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a client can make grow, and how long it may take."""

    header_bytes: int = 65536
    header_s: float = 30  # from a request's first byte to the end of its headers
    keep_alive_s: float = 75  # without a request; longer than the 60 s of common proxies, so that they close first
    client_write_s: float = 60  # without the client taking a byte
    connections: int = 10_000
    linger_s: float = 2  # for a client to notice an early answer and stop sending
    linger_bytes: int = 256 * 1024**2  # four bodies of the default limit
    pipelined_bytes: int = 65536  # of requests sent ahead; more of them wait in the client's socket


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A snapshot: connections open and of those idle, requests served, connections refused for their number."""

    open: int
    idle: int
    served: int
    refused: int


class HttpServer:
    """Serves one application on any number of listeners.

    Args:
        app: ASGI 3, HTTP only. Lifespan is the caller's business.
        limits: See there.
        log: Hears of exceptions that leave the application.
    """

    def __init__(self, app: App, *, limits: ServerLimits, log: ServerLog) -> None:
        self.app = app
        self.limits = limits
        self.log = log
        self.draining = False
        self.served = 0
        self._refused = 0
        self._turning_away = 0
        self._connections: set[_ServerConnection] = set()
        self._resting: dict[_ServerConnection, None] = {}
        """Those between two requests, the one that has rested longest first."""
        self._accepting = trio.CancelScope()
        self._ended = trio.Event()

    async def serve(
        self, listeners: list[trio.SocketListener], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept and serve until drained. Started when accepting. Closes the listeners; cancelling cuts connections."""
        try:
            async with trio.open_nursery() as connections:
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        accept = partial(trio.serve_listeners, handler_nursery=connections)
                        await accepting.start(accept, self.serve_stream, listeners)
                        task_status.started()
        finally:
            self._ended.set()

    async def serve_stream(self, stream: trio.abc.Stream, client: tuple[str, int] | None = None) -> None:
        """One connection, to its end. Owns the stream. Raises nothing but Cancelled.

        Args:
            stream: TCP, or anything that behaves so.
            client: Host and port for the ASGI scope; None to ask the socket.
        """
        connection = _ServerConnection(self, stream, client)
        try:
            if len(self._connections) >= self.limits.connections and not self._make_room():
                await self._turn_away(connection)
                return
            self._connections.add(connection)
            await connection.run()
        except ClientDisconnected:
            pass  # nothing to say and nobody to say it to
        except Exception:
            self.log.exception("connection_crashed")
        finally:
            self._connections.discard(connection)
            self.rests(connection, resting=False)
            connection.close()

    def _make_room(self) -> bool:
        """Close the connection that has rested longest: whoever comes with a request is worth more than who has none.

        Otherwise a few thousand connections that say nothing would keep everybody else out.
        """
        return any(connection.close_if_idle() for connection in list(self._resting))

    def rests(self, connection: _ServerConnection, *, resting: bool) -> None:
        """A connection has begun or ceased to wait for its next request."""
        if resting:
            self._resting[connection] = None
        else:
            self._resting.pop(connection, None)

    async def _turn_away(self, connection: _ServerConnection) -> None:
        """One connection too many: say why, unless even those told so are too many."""
        self._refused += 1
        if self._turning_away >= TURNED_AWAY_AT_A_TIME:
            return
        self._turning_away += 1
        try:
            await connection.answer_refusal(_FULL)
        finally:
            self._turning_away -= 1

    def drain(self) -> None:
        """Stop accepting, close what is idle, let what runs finish. Sync; `drained` waits for the end."""
        self.draining = True
        self._accepting.cancel()
        for connection in list(self._connections):
            connection.close_if_idle()

    async def drained(self) -> None:
        """Return when the last connection is gone."""
        await self._ended.wait()

    def statistics(self) -> ServerStatistics:
        """The numbers now."""
        idle = sum(connection.idle for connection in self._connections)
        return ServerStatistics(len(self._connections), idle, self.served, self._refused)


class _ServerConnection:
    """One client's connection: requests in turn, each a `ServerExchange`, read by one parser and answered in order."""

    __slots__ = ("_fd", "_gone", "_reader", "_sends", "_server", "_stream", "_waiting", "client", "idle", "local")

    def __init__(self, server: HttpServer, stream: trio.abc.Stream, client: tuple[str, int] | None) -> None:
        self._server = server
        self._stream = stream
        self._fd = descriptor(stream)
        self._gone = False
        self._reader = RequestParser(server.limits.header_bytes)
        self._sends = 0
        self._waiting: trio.CancelScope | None = None
        self.client = client
        self.local: tuple[str, int] | None = None
        self.idle = True
        if isinstance(stream, trio.SocketStream):
            remote, self.local = _addresses(stream)
            self.client = client or remote

    @property
    def closing(self) -> bool:
        """Whether the exchange that runs is the last one here."""
        return self._server.draining

    async def run(self) -> None:
        """Serve requests until either side has had enough."""
        while True:
            try:
                exchange = await self._next_request()
            except RejectedRequest as refusal:
                await self.answer_refusal(refusal)
                return
            if exchange is None:
                return
            await self._serve(exchange)
            if not exchange.reusable:
                if exchange.answered and self._may_have_unread(exchange):
                    await self._linger()
                return

    def _may_have_unread(self, exchange: ServerExchange) -> bool:
        return not exchange.body_complete or self._reader.has_more or not is_quiet(self._stream)

    # Reading ..........................................................................................................

    async def _next_request(self) -> ServerExchange | None:
        """The next request once its headers are there, None if none comes. Raises RejectedRequest."""
        exchange = self._reader.take()
        if exchange is not None:
            await trio.lowlevel.checkpoint()  # nothing else would be one, if all of a burst were served from memory
            return exchange
        limits = self._server.limits
        self.idle = not self._reader.pending
        if self.idle and self.closing and is_quiet(self._stream):
            return None
        patience_s = limits.keep_alive_s if self.idle else limits.header_s
        self._server.rests(self, resting=self.idle)
        with trio.CancelScope(deadline=trio.current_time() + patience_s) as self._waiting:
            while exchange is None:
                data = await self.read()
                if not data:
                    return None
                if self.idle:
                    self.idle = False
                    self._server.rests(self, resting=False)
                    self._waiting.deadline = trio.current_time() + limits.header_s
                self._reader.feed(data)
                exchange = self._reader.take()
        if exchange is None and not self.idle:
            raise RejectedRequest(
                408, "request_timeout", f"the request's headers did not arrive within {limits.header_s:g} s"
            )
        return exchange

    async def read(self) -> bytes:
        """Bytes as they come; `b""` once the client is gone. Safe to cancel: nothing is lost."""
        data = await read(self._stream, self._fd)
        if not data:
            self._gone = True
        return data

    async def read_more(self) -> bool:
        """Feed the parser with what comes next; False if nothing will.

        Requests sent ahead wait in the client's socket once there are enough of them here.
        """
        if self._reader.ahead_bytes > self._server.limits.pipelined_bytes:
            await trio.sleep_forever()
        data = await self.read()
        if data:
            self._reader.feed(data)
        return bool(data)

    # Serving ..........................................................................................................

    async def _serve(self, exchange: ServerExchange) -> None:
        """Call the application. Its exceptions are logged and answered; Cancelled passes."""
        exchange.attach(self)
        self._server.served += 1
        scope = exchange.scope(self.client, self.local)
        try:
            await self._server.app(scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - logged by _report; an application must not take the server down
            self._report(error, scope)
            await self._make_up_for(exchange, exchange.refusal or (_GONE if _is_departure(error) else _CRASHED))
        except BaseExceptionGroup as group:
            ours, cancelled = group.split(Exception)
            self._report(ours, scope)
            raise (cancelled or group) from None
        else:
            if not exchange.complete:
                await self._make_up_for(exchange, exchange.refusal or _SILENT)
        finally:
            if exchange.looks_whole_if_closed:
                self._break_off()

    def _report(self, error: Exception | None, scope: Scope) -> None:
        if error is not None and not _is_departure(error):
            self._server.log.error("app_crashed", exc_info=error, path=scope["path"])

    async def _make_up_for(self, exchange: ServerExchange, refusal: RejectedRequest) -> None:
        """An answer for one that never began. One cut off half-way stays broken, so that nobody takes it for whole."""
        exchange.reusable = False
        if exchange.started:
            exchange.answered = exchange.complete
        elif not self._gone:
            await self.write(rejection_bytes(refusal))
            exchange.answered = True

    async def answer_refusal(self, refusal: RejectedRequest) -> None:
        """Say no, and see to it that it is read."""
        await self.write(rejection_bytes(refusal))
        await self._linger()

    # Writing ..........................................................................................................

    async def write(self, data: bytes) -> None:
        """Send it all. No checkpoint if it fits into the socket: see `give_way`. Cancelled, the connection is done for.

        Raises:
            ClientDisconnected: It is gone, or took nothing for `client_write_s`.
        """
        if self._gone:
            raise ClientDisconnected("the client has left")
        if self._fd is None:
            await self._within_the_deadline(self._stream.send_all, data)
            return
        sent = self._write_what_fits(self._fd, data)
        if sent < len(data):
            await self._write_slowly(self._fd, memoryview(data)[sent:])

    async def give_way(self) -> None:
        """A checkpoint every so many sends.

        A relay waits for its next chunk between sends, which is a checkpoint; but an application that has it all in
        memory, for a client that is fast, would keep everybody else waiting and never notice that it was cancelled.
        """
        self._sends += 1
        if self._sends >= SENDS_PER_CHECKPOINT:
            self._sends = 0
            await trio.lowlevel.checkpoint()

    def _write_what_fits(self, fd: int, data: bytes | memoryview) -> int:
        try:
            return write_what_fits(fd, data)
        except OSError as error:
            self._gone = True
            raise ClientDisconnected("the client has left") from error

    async def _write_slowly(self, fd: int, rest: memoryview) -> None:
        while rest:
            await self._within_the_deadline(trio.lowlevel.wait_writable, fd)
            rest = rest[self._write_what_fits(fd, rest) :]

    async def _within_the_deadline(self, step: Callable[[Any], Awaitable[object]], argument: object) -> None:
        try:
            with trio.move_on_after(self._server.limits.client_write_s) as scope:
                await step(argument)
        except trio.Cancelled:
            self._gone = True  # who knows how much of it is out
            raise
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._gone = True
            raise ClientDisconnected("the client has left") from error
        if scope.cancelled_caught:
            self._gone = True
            raise ClientDisconnected(f"the client took nothing for {self._server.limits.client_write_s:g} s")

    # Ending ...........................................................................................................

    async def _linger(self) -> None:
        """Let the client finish sending before we close: closing on unread bytes is a reset, which eats the answer.

        RFC 9112, section 9.6.
        """
        if self._gone:
            return
        if isinstance(self._stream, trio.SocketStream):
            try:
                self._stream.socket.shutdown(trio.socket.SHUT_WR)
            except OSError:
                return  # reset meanwhile
        discarded = 0
        with trio.move_on_after(self._server.limits.linger_s):
            while discarded < self._server.limits.linger_bytes and (data := await self.read()):
                discarded += len(data)

    def close_if_idle(self) -> bool:
        """A connection that waits for its next request has nothing to lose, unless one is just coming."""
        if not self.idle or self._waiting is None or not is_quiet(self._stream):
            return False
        self._server.rests(self, resting=False)
        self._waiting.cancel()
        return True

    def _break_off(self) -> None:
        """Make the close a reset: where only the end of the connection ends a body, an orderly one would be a lie."""
        if isinstance(self._stream, trio.SocketStream):
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        """Close at once. Sync: no cancellation can come in between."""
        self._gone = True
        self._fd = None  # the kernel will give the number to somebody else
        close_now(self._stream)


_GONE = RejectedRequest(408, "request_timeout", "the request ended early")
_CRASHED = RejectedRequest(500, "internal_error", "an error inside the gateway")
_SILENT = RejectedRequest(500, "internal_error", "the gateway had no answer")
_FULL = RejectedRequest(503, "overloaded", "this gateway has all the connections it can hold", 1)


def _is_departure(error: Exception) -> bool:
    """Whether it says no more than that the client has left, however many nurseries it came through."""
    if isinstance(error, ExceptionGroup):
        return error.split(ClientDisconnected)[1] is None
    return isinstance(error, ClientDisconnected)


def _addresses(stream: trio.SocketStream) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
    try:
        return stream.socket.getpeername()[:2], stream.socket.getsockname()[:2]
    except OSError:
        return None, None  # gone already; the first read will say so
