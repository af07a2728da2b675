"""HTTP/1.1 to a neuron over Trio streams: connections, the pool they rest in, and one exchange on one of them.

llhttp (through `httptools`) parses; we keep to what it refuses. Nothing here knows of models or routing. httpx takes
700 to 800 us of CPU for what this does in about 50 (docs/decisions/0004-own-upstream-client.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools
import trio

from gateway import tls
from gateway.asgi import Headers
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse
from gateway.phases import Phases
from gateway.sending import Body, send_while_listening
from gateway.streams import close_now, descriptor, is_quiet, read, write_what_fits

__all__ = ["Connect", "Exchange", "Origin", "Response", "Upstream", "request_head"]


HEADER_LIMIT_BYTES = 64 * 1024  # contract section 13; also for trailers
IDLE_LIMIT_S = 3.0  # uvicorn and llama.cpp close at 5 s: we must be first, with room for a slow clock
SWEEP_INTERVAL_S = 1.0
TLS_UNHEARD_BYTES = 64 * 1024  # sent at a time without an ear for an early answer; any socket takes as much


class Origin(NamedTuple):
    """Where a neuron serves inference, taken apart once when its URL becomes known."""

    scheme: str
    host: str
    port: int
    base_path: bytes

    @classmethod
    def parse(cls, url: str) -> Origin:
        """From an inference URL such as `http://beast:8080/prefix`.

        Raises:
            ValueError: Not an http or https URL with a host.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"not an http(s) URL with a host: {url!r}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/").encode())

    @property
    def authority(self) -> str:
        """The value of a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def request_head(origin: Origin, path: bytes, headers: Headers, content_length: int | None) -> bytes:
    """A POST's request line and headers, to the blank line. `headers` must be free of hop-by-hop ones.

    Without a length the body is announced in chunks.
    """
    lines = [b"POST %b%b HTTP/1.1\r\nhost: %b" % (origin.base_path, path, origin.authority.encode())]
    lines.extend([b"%b: %b" % header for header in headers])
    framing = b"transfer-encoding: chunked" if content_length is None else b"content-length: %d" % content_length
    lines.append(framing + b"\r\n\r\n")
    return b"\r\n".join(lines)


Connect = Callable[[Origin], Awaitable[trio.abc.Stream]]


async def open_stream(origin: Origin) -> trio.abc.Stream:
    """A connected TCP or TLS stream; the caller owns it.

    Raises:
        OSError: Refused, unreachable, or the name does not resolve.
        trio.BrokenResourceError: The TLS handshake failed.
    """
    stream: trio.abc.Stream = await trio.open_tcp_stream(origin.host, origin.port)
    if origin.scheme == "http":
        return stream
    secure = trio.SSLStream(stream, tls.context(), server_hostname=origin.host, https_compatible=True)
    try:
        await secure.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secure


class Upstream:
    """The connections to all neurons: those at rest, and the way to open more.

    An idle connection rests at most `IDLE_LIMIT_S` and is checked for EOF before it is used again; one that was
    cancelled or broke in mid-exchange is closed, never returned. `run` sweeps the old ones out in the background.
    """

    def __init__(self, *, connect: Connect = open_stream, idle_limit: int = 256) -> None:
        self._connect = connect
        self._idle: dict[Origin, list[Connection]] = {}
        self._idle_limit = idle_limit
        self.opened = 0
        self.reused = 0
        self.in_use = 0

    def exchange(self, origin: Origin, message: Sequence[bytes], phases: Phases, body: Body | None = None) -> Exchange:
        """One request and its response, as an async context manager that yields a `Response`.

        `message` is the request's head and body in one or more pieces; the head alone if there is a `body` to be sent
        as it is produced. Entering moves `phases` through `connect`, `upload` if there is such a body, and
        `first_byte`, and returns when the response's head is there.

        Raises, on entering:
            UpstreamConnectionError: Refused, or gone before a response head came.
            UpstreamMalformedResponse: What came is not HTTP/1.1 we accept.
            Exception: What `body` raises.
        """
        return Exchange(self, origin, message, phases, body)

    async def run(self) -> None:
        """Close what has rested too long, for ever."""
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            self._sweep()

    def close(self) -> None:
        """Close every resting connection."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def statistics(self) -> dict[str, int]:
        """How many connections rest, are in use, were opened, and how often one was used again."""
        idle = sum(map(len, self._idle.values()))
        return {"idle": idle, "in_use": self.in_use, "opened": self.opened, "reused": self.reused}

    # Taking and giving back: sync, so atomic...

    def take(self, origin: Origin) -> Connection | None:
        """A rested connection that is still good, or None."""
        resting = self._idle.get(origin)
        while resting:
            connection = resting.pop()
            if connection.rested_since > trio.current_time() - IDLE_LIMIT_S and connection.is_quiet():
                self.reused += 1
                return connection
            connection.close()
        return None

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Let a connection rest whose exchange ended in good order; close it if too many do already."""
        resting = self._idle.setdefault(origin, [])
        if len(resting) >= self._idle_limit:
            connection.close()
            return
        connection.rested_since = trio.current_time()
        resting.append(connection)

    async def open(self, origin: Origin) -> Connection:
        """A fresh connection; the caller owns it. Raises UpstreamConnectionError."""
        try:
            stream = await self._connect(origin)
        except (OSError, trio.BrokenResourceError) as error:
            raise UpstreamConnectionError(
                f"cannot connect to the neuron at {origin.authority}: {_reason(error)}"
            ) from error
        self.opened += 1
        return Connection(stream)

    def _sweep(self) -> None:
        oldest = trio.current_time() - IDLE_LIMIT_S
        for origin, resting in list(self._idle.items()):
            for connection in resting:
                if connection.rested_since <= oldest:
                    connection.close()
            kept = [connection for connection in resting if connection.rested_since > oldest]
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]


class Exchange:
    """See `Upstream.exchange`."""

    __slots__ = ("_body", "_connection", "_message", "_origin", "_phases", "_upstream")

    def __init__(
        self, upstream: Upstream, origin: Origin, message: Sequence[bytes], phases: Phases, body: Body | None
    ) -> None:
        self._upstream = upstream
        self._origin = origin
        self._message = message
        self._body = body
        self._phases = phases
        self._connection: Connection | None = None

    async def __aenter__(self) -> Response:
        self._upstream.in_use += 1
        try:
            # A body that is produced as it is sent cannot be sent twice, so no connection that may be dead is tried.
            rested = self._upstream.take(self._origin) if self._body is None else None
            if rested is not None:
                try:
                    return await self._ask(rested)
                except _DiedUnanswered:
                    pass  # it died as it was used again, before any byte: the one case where asking twice is safe
            self._phases.enter("connect")
            fresh = await self._upstream.open(self._origin)
            try:
                return await self._ask(fresh)
            except _DiedUnanswered as error:
                raise UpstreamConnectionError(
                    f"the neuron at {self._origin.authority} closed the connection without an answer"
                ) from error
        except BaseException:
            self._upstream.in_use -= 1
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection = self._connection
        self._connection = None
        self._upstream.in_use -= 1
        if connection is None:
            return
        if connection.is_reusable():
            self._upstream.give_back(self._origin, connection)
        else:
            connection.close()

    async def _ask(self, connection: Connection) -> Response:
        self._phases.enter("first_byte" if self._body is None else "upload")
        try:
            response = await connection.ask(self._message, self._body, self._phases)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return response


class _DiedUnanswered(Exception):
    """The connection ended before the first byte of a response."""


class _HeadTooLong(Exception):
    """Raised inside llhttp's callback, which can only be left by an exception."""


class _NotUndone(Exception):
    """As above: the body is packed in a way that we would have to undo, as the header that says so goes no further."""


def _too_long() -> UpstreamMalformedResponse:
    return UpstreamMalformedResponse(f"the neuron sent more than {HEADER_LIMIT_BYTES} bytes of headers or trailers")


class Response:
    """One response as it comes in. Owned by its `Exchange`; of no use after that is left.

    llhttp calls the `on_` methods while it is fed; nobody else should.
    """

    __slots__ = (
        "_connection",
        "_parser",
        "_pieces",
        "_reason_bytes",
        "_section_bytes",
        "complete",
        "framed",
        "headers",
        "listener",
        "reusable",
        "status",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._reason_bytes = 0  # of the status line's reason phrase
        self._section_bytes = 0  # since the last thing that ended: what a neuron could make grow
        self.status = 0  # of the final response; 0 until its head is there
        self.headers: Headers = []
        self.framed = False  # whether length or chunks tell where the body ends
        self.complete = False
        self.reusable = False
        self.listener: Callable[[bytes], None] | None = None
        """Hears every piece of the body as it is received; may not block or raise."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header (`name` in lower case), or None."""
        return next((value for key, value in self.headers if key == name), None)

    async def receive(self) -> bytes:
        """The next piece of the body, as it came; `b""` at its proper end.

        Raises:
            UpstreamConnectionError: The neuron broke off.
            UpstreamMalformedResponse: Its chunks or trailers are not HTTP/1.1.
        """
        while not self._pieces:
            if self.complete:
                return b""
            data = await self._connection.receive()
            if data:
                self._feed(data)
            elif self.framed:
                raise UpstreamConnectionError("the neuron broke off in the middle of its answer")
            else:
                self.complete = True  # a body without a length lasts until the connection ends (RFC 9112, 6.3)
        return self._take()

    def _take(self) -> bytes:
        pieces = self._pieces
        taken = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self.listener is not None:
            self.listener(taken)
        return taken

    async def read_head(self) -> None:
        """Wait for status and headers, past any 1xx.

        Raises:
            _DiedUnanswered: Not a byte came.
            UpstreamConnectionError, UpstreamMalformedResponse: As for `receive`.
        """
        heard = False
        while not self.status:
            data = await self._connection.receive()
            if data:
                heard = True
                self._feed(data)
            elif heard:
                raise UpstreamConnectionError("the neuron broke off in the middle of its answer")
            else:
                raise _DiedUnanswered

    def _feed(self, data: bytes) -> None:
        self._section_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise UpstreamMalformedResponse("the neuron answered with a protocol upgrade nobody asked for") from None
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadTooLong):
                raise _too_long() from None
            if isinstance(error.__context__, _NotUndone):
                raise UpstreamMalformedResponse("the neuron's transfer-encoding is another than `chunked`") from None
            if not self.complete:
                raise UpstreamMalformedResponse(f"the neuron's answer is not HTTP/1.1: {error}") from error
            self.reusable = False
        # Body bytes reset the count, so what is left is a head, trailers, or chunk extensions without end.
        if self._section_bytes > HEADER_LIMIT_BYTES:
            raise _too_long()

    def on_message_begin(self) -> None:
        """A second one after the end: whatever it is, it answers nothing we asked."""
        if self.complete:
            self.reusable = False

    def on_status(self, reason: bytes) -> None:
        """A piece of the reason phrase: nobody reads it, but it counts."""
        self._reason_bytes += len(reason)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of a head. Trailers end here: nobody downstream has asked for them."""
        if not self.status:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """A head is there; if it is a 1xx, the next one is awaited."""
        status = self._parser.get_status_code()
        if status < 200:
            self.headers.clear()
            self._reason_bytes = 0
        elif not self.status:
            if self._section_bytes > HEADER_LIMIT_BYTES:
                self._refuse_a_long_head()
            encoding = self.header(b"transfer-encoding")
            if encoding is not None and encoding.lower() != b"chunked":
                raise _NotUndone
            self.status = status
            self.framed = status in {204, 304} or any(name in _FRAMING for name, _ in self.headers)
            self._section_bytes = 0

    def _refuse_a_long_head(self) -> None:
        """Body bytes may have come along with it, so only now it is worth counting."""
        head_bytes = len(b"HTTP/1.1 200 \r\n\r\n") + self._reason_bytes
        head_bytes += sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)
        if head_bytes > HEADER_LIMIT_BYTES:
            raise _HeadTooLong

    def on_body(self, data: bytes) -> None:
        """A piece of the body; llhttp hands out a copy."""
        self._section_bytes = 0
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """The end, unless it was that of a 1xx."""
        if self.status:
            self.complete = True
            self.reusable = self._parser.should_keep_alive()


class _Whole:
    """A large message that goes out over TLS, which cannot be asked how much it takes: as one that is produced."""

    def __init__(self, message: Sequence[bytes]) -> None:
        self._message = b"".join(message)
        self._sent = 0
        self.length = len(self._message)

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        piece = self._message[self._sent : self._sent + TLS_UNHEARD_BYTES]
        self._sent += len(piece)
        return piece


_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class Connection:
    """One connection to a neuron: at most one exchange at a time, and closed for good when one ends in disorder.

    A plain socket is read and written with `os.read` and `os.write` around Trio's readiness calls: measured 4 us a
    chunk less than `receive_some`, which makes a checkpoint before and after a system call that we know will succeed.
    """

    __slots__ = ("_fd", "_response", "_sent_whole", "_stream", "rested_since")

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._fd = descriptor(stream)
        self._response: Response | None = None
        self._sent_whole = False
        self.rested_since = 0.0

    async def ask(self, message: Sequence[bytes], body: Body | None, phases: Phases) -> Response:
        """Send a request and return its response once the head is there.

        Raises:
            _DiedUnanswered: Not a byte came back.
            UpstreamConnectionError, UpstreamMalformedResponse: As the names say.
            Exception: What `body` raises.
        """
        response = self._response = Response(self)
        if body is None and isinstance(self._stream, trio.SSLStream) and sum(map(len, message)) > TLS_UNHEARD_BYTES:
            message, body = (), _Whole(message)
        sent = True
        for piece in message:
            sent = sent and await self._send(piece)
        if sent and body is not None:
            sent = await send_while_listening(body, self._send_unheard, response.read_head, phases)
        else:
            await response.read_head()
        self._sent_whole = sent  # not after an early answer: the neuron has not read to the end
        return response

    def is_reusable(self) -> bool:
        """Whether the last exchange ended in good order and the neuron means to go on."""
        return self._response is not None and self._response.reusable and self._sent_whole

    def is_quiet(self) -> bool:
        """Whether it can be used again: open, and nothing unasked to read."""
        return is_quiet(self._stream)

    def close(self) -> None:
        """Close at once, without a goodbye: sync, so no cancellation can come in between."""
        self._response = None
        close_now(self._stream)

    async def receive(self) -> bytes:
        """Bytes as they come, `b""` at the end; a reset is an end too."""
        return await read(self._stream, self._fd)

    async def _send(self, piece: bytes) -> bool:
        """Send it all, or False if the neuron stopped listening: its answer, if any, says why."""
        try:
            if self._fd is None:
                await self._stream.send_all(piece)
                return True
            sent = write_what_fits(self._fd, piece)
            return sent == len(piece) or await self._send_slowly(self._fd, memoryview(piece)[sent:])
        except (OSError, trio.BrokenResourceError):
            return False

    async def _send_unheard(self, piece: bytes) -> bool:
        """As `_send`, while another task listens for an answer."""
        try:
            if self._fd is None:
                await self._stream.send_all(piece)
                return True
            rest = memoryview(piece)[write_what_fits(self._fd, piece) :]
            while rest:
                await trio.lowlevel.wait_writable(self._fd)
                rest = rest[write_what_fits(self._fd, rest) :]
        except (OSError, trio.BrokenResourceError):
            return False
        await trio.lowlevel.checkpoint()  # a client as fast as this socket would keep everybody else waiting
        return True

    async def _send_slowly(self, fd: int, rest: memoryview) -> bool:
        """The rest of a large body, unless an answer comes first: a neuron may say 413 without reading to the end."""
        answered = False

        async def watch_for_an_answer(scope: trio.CancelScope) -> None:
            nonlocal answered
            await trio.lowlevel.wait_readable(fd)
            answered = True
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_for_an_answer, nursery.cancel_scope)
            while rest:
                await trio.lowlevel.wait_writable(fd)
                rest = rest[write_what_fits(fd, rest) :]
            nursery.cancel_scope.cancel()
        return not answered


def _reason(error: BaseException) -> str:
    """The deepest text that says something: Trio wraps each failed address in a group in a cause."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(str(each) for each in cause.exceptions)
    return str(cause or error)
