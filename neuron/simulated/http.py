"""One HTTP/1.1 connection of a simulated neuron, on h11: requests in, answers out, raw bytes where a fault needs them.

Knows nothing of models. h11 is the independent peer of the gateway's own parser: what it cannot read is the gateway's
fault and is reported as such.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import math
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import h11
import msgspec
import trio

_READ_BYTES = 65536
_HEADER_LIMIT_BYTES = 65536  # the same limit as the gateway's for a neuron's headers

Headers = Sequence[tuple[str, str]]


class Framing(enum.Enum):
    """How the end of a body is marked."""

    CHUNKED = enum.auto()
    LENGTH = enum.auto()  # by a content-length header
    CLOSE = enum.auto()  # by the end of the connection


class HangUp(Exception):
    """Raised by a handler to end the connection here and now; `reset` sends RST instead of FIN."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__("reset" if reset else "close")
        self.reset = reset


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request, its body read. `target` is as sent: still percent-encoded, query included."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query, still percent-encoded."""
        return self.target.partition("?")[0]


@dataclass(slots=True)
class SimExchange:
    """A request, and methods to answer it.

    Handlers call `respond`, or `begin`, `write` and `end`; or `raw`, after which they must raise `HangUp`.
    `client_left_at` is the clock's time when the client was seen to leave. The handler is cancelled in that moment,
    unless it has set `goes_on_alone`.
    """

    request: SimRequest
    _connection: h11.Connection
    _stream: trio.abc.Stream
    client_left_at: float | None = field(default=None, init=False)
    goes_on_alone: bool = field(default=False, init=False)
    _framing: Framing = field(default=Framing.CHUNKED, init=False)

    async def respond(self, status: int, body: bytes, content_type: str, headers: Headers = ()) -> None:
        """Send a whole answer with a content-length."""
        await self.begin(status, content_type, Framing.LENGTH, (*headers, ("content-length", str(len(body)))))
        await self.write(body)
        await self.end()

    async def respond_json(self, status: int, value: object, headers: Headers = ()) -> None:
        """Send a whole answer as JSON."""
        await self.respond(status, msgspec.json.encode(value), "application/json", headers)

    async def begin(self, status: int, content_type: str, framing: Framing, headers: Headers = ()) -> None:
        """Send status line and headers; the body follows with `write`."""
        self._framing = framing
        listed = [("server", "sim-neuron"), ("content-type", content_type), *headers]
        if framing is Framing.CHUNKED:
            listed.append(("transfer-encoding", "chunked"))
        if framing is Framing.CLOSE:
            # h11 would choose chunks for an HTTP/1.1 peer, so this one is written by hand.
            await self.raw(_head(status, [*listed, ("connection", "close")]))
        else:
            await self._send(h11.Response(status_code=status, headers=listed, reason=_reason(status)))

    async def inform(self, status: int) -> None:
        """Send a 1xx response before the real one."""
        headers = [("link", "</sim>; rel=preload")] if status == 103 else []
        await self._send(h11.InformationalResponse(status_code=status, headers=headers, reason=_reason(status)))

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; one chunk, if the body is chunked."""
        if self._framing is Framing.CLOSE:
            await self.raw(data)
        elif self.request.method != "HEAD":
            await self._send(h11.Data(data=data))

    async def end(self) -> None:
        """Complete the body.

        Raises:
            HangUp: The connection marks the end of this body.
        """
        if self._framing is Framing.CLOSE:
            raise HangUp
        await self._send(h11.EndOfMessage())

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are, without h11."""
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:  # noticed here before the watcher task did
            self.note_departure()
            raise

    async def watch(self, scope: trio.CancelScope) -> None:
        """Cancel the scope when the client disconnects. Bytes it sends meanwhile are kept for the next request."""
        try:
            while data := await self._stream.receive_some(_READ_BYTES):
                self._connection.receive_data(bytes(data))
        except trio.BrokenResourceError:
            pass  # the client sent an RST
        self.note_departure()
        if not self.goes_on_alone:
            scope.cancel()

    def note_departure(self) -> None:
        """Note when the client disconnected; the first note counts."""
        if self.client_left_at is None:
            self.client_left_at = trio.current_time()

    async def _send(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        if data:
            await self.raw(data)


Handler = Callable[[SimExchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Patience:
    """When a connection is closed unannounced: after this long without a request, after this many answers."""

    idle_s: float = math.inf
    requests: float = math.inf


async def serve_connection(
    stream: trio.abc.Stream,
    handler: Handler,
    on_breach: Callable[[str], None],
    on_cut: Callable[[], None],
    patience: Callable[[], Patience] = Patience,
) -> None:
    """Serve requests from one stream until either side ends it; closes it on every path out.

    While `handler` runs the stream is watched: when the client leaves, the handler is cancelled at once. A client that
    closes only its sending half counts as gone, as it does for uvicorn. `on_breach` hears what was wrong with a
    request that is not HTTP, `on_cut` that a client left in the midst of one. `patience` is asked before each request.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEADER_LIMIT_BYTES)
    try:
        for served in itertools.count():
            request = None
            if served < patience().requests:
                with trio.move_on_after(patience().idle_s):
                    request = await _read_request(connection, stream, on_cut)
            if request is None:
                break
            await _answer(SimExchange(request, connection, stream), handler)
            if connection.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                break
            connection.start_next_cycle()
    except h11.RemoteProtocolError as breach:
        on_breach(str(breach))
        await _refuse(connection, stream, breach)
    except HangUp as wish:
        if wish.reset:
            reset(stream)
    except trio.BrokenResourceError:
        pass  # the client disconnected, and the handler has been cancelled
    finally:
        await trio.aclose_forcefully(stream)


def reset(stream: trio.abc.Stream) -> None:
    """Make the coming close an RST. Streams that are not sockets only close."""
    if isinstance(stream, trio.SocketStream):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# ---- reading


async def _read_request(
    connection: h11.Connection, stream: trio.abc.Stream, on_cut: Callable[[], None]
) -> SimRequest | None:
    """The next request with its body, or None after the last one."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        match event:
            case h11.NEED_DATA:
                try:
                    await _receive(connection, stream)
                except (HangUp, trio.BrokenResourceError):
                    if head is not None:
                        on_cut()
                    raise
            case h11.Request():
                head = event
            case h11.Data():
                body += event.data
            case h11.EndOfMessage() if head is not None:
                return _request(head, bytes(body))
            case _:
                return None


async def _receive(connection: h11.Connection, stream: trio.abc.Stream) -> None:
    if connection.they_are_waiting_for_100_continue:
        go_on = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
        await stream.send_all(connection.send(go_on) or b"")
    data = await stream.receive_some(_READ_BYTES)
    if not data:  # a client may disconnect between requests and within one
        raise HangUp
    connection.receive_data(bytes(data))


def _request(head: h11.Request, body: bytes) -> SimRequest:
    headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers)
    return SimRequest(head.method.decode("ascii"), head.target.decode("ascii"), headers, body)


# ---- answering


async def _answer(exchange: SimExchange, handler: Handler) -> None:
    """Run the handler while watching for a disconnect.

    Raises:
        HangUp: the handler wants the connection ended, or the client has ended it.
    """
    wish: HangUp | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.watch, nursery.cancel_scope)
        try:
            await handler(exchange)
        except HangUp as raised:  # so that it is not part of the nursery's exception group
            wish = raised
        except trio.BrokenResourceError:
            wish = HangUp()
        nursery.cancel_scope.cancel()
    if wish is not None:
        raise wish
    if exchange.client_left_at is not None:
        raise HangUp


async def _refuse(connection: h11.Connection, stream: trio.abc.Stream, breach: h11.RemoteProtocolError) -> None:
    if connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
        return
    body = msgspec.json.encode({"error": f"malformed request: {breach}"})
    headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
    with contextlib.suppress(trio.BrokenResourceError):  # the client disconnected after its last bytes
        await stream.send_all(_head(breach.error_status_hint, headers) + body)


def _head(status: int, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status} ".encode() + _reason(status)]
    lines += [f"{name}: {value}".encode("latin-1") for name, value in headers]
    return b"\r\n".join([*lines, b"", b""])


def _reason(status: int) -> bytes:
    return _REASONS.get(status, b"")


_REASONS = {
    100: b"Continue",
    102: b"Processing",
    103: b"Early Hints",
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}
