"""HTTP/1.1 to a neuron over Trio streams: the pool its connections rest in, and one exchange on one of them.

Nothing here knows of models or routing. httpx takes 700 to 800 us of CPU for what this does in about 50
(docs/decisions/0004-own-upstream-client.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

import trio

from gateway.asgi import Headers
from gateway.errors import UpstreamConnectionError
from gateway.http import tls
from gateway.http.connection import UpstreamConnection
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.response_parser import ClosedBeforeResponse, UpstreamResponse
from gateway.http.streamed_body import StreamedBody

__all__ = ["Connect", "Origin", "UpstreamExchange", "UpstreamPool", "request_head"]

IDLE_LIMIT_S = 3.0  # uvicorn and llama.cpp close at 5 s: we must be first, with room for a slow clock
SWEEP_INTERVAL_S = 1.0


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
        UnicodeError: The name is none: two dots in a row, a label too long.
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


class UpstreamPool:
    """The connections to all neurons: those at rest, and the way to open more.

    An idle connection rests at most `IDLE_LIMIT_S` and is checked for EOF before it is used again; one that was
    cancelled or broke in mid-exchange is closed, never returned. `run` sweeps the old ones out in the background.
    """

    def __init__(self, *, connect: Connect = open_stream, idle_limit: int = 256) -> None:
        self._connect = connect
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._idle_limit = idle_limit
        self.opened = 0
        self.reused = 0
        self.in_use = 0

    def exchange(
        self, origin: Origin, message: Sequence[bytes], phases: PhaseDeadlines, body: StreamedBody | None = None
    ) -> UpstreamExchange:
        """One request and its response, as an async context manager that yields an `UpstreamResponse`.

        `message` is the request's head and body in one or more pieces; the head alone if there is a `body` to be sent
        as it is produced. Entering moves `phases` through `connect`, `upload` if there is such a body, and
        `first_byte`, and returns when the response's head is there.

        Raises, on entering:
            UpstreamConnectionError: Refused, or gone before a response head came.
            UpstreamMalformedResponse: What came is not HTTP/1.1 we accept.
            Exception: What `body` raises.
        """
        return UpstreamExchange(self, origin, message, phases, body)

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

    def take(self, origin: Origin) -> UpstreamConnection | None:
        """A rested connection that is still good, or None."""
        resting = self._idle.get(origin)
        while resting:
            connection = resting.pop()
            if connection.rested_since > trio.current_time() - IDLE_LIMIT_S and connection.is_quiet():
                self.reused += 1
                return connection
            connection.close()
        return None

    def give_back(self, origin: Origin, connection: UpstreamConnection) -> None:
        """Let a connection rest whose exchange ended in good order; close it if too many do already."""
        resting = self._idle.setdefault(origin, [])
        if len(resting) >= self._idle_limit:
            connection.close()
            return
        connection.rested_since = trio.current_time()
        resting.append(connection)

    async def open(self, origin: Origin) -> UpstreamConnection:
        """A fresh connection; the caller owns it. Raises UpstreamConnectionError."""
        try:
            stream = await self._connect(origin)
        except (OSError, trio.BrokenResourceError, UnicodeError) as error:
            raise UpstreamConnectionError(
                f"cannot connect to the neuron at {origin.authority}: {_reason(error)}"
            ) from error
        self.opened += 1
        return UpstreamConnection(stream)

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


class UpstreamExchange:
    """See `UpstreamPool.exchange`."""

    __slots__ = ("_body", "_connection", "_message", "_origin", "_phases", "_upstream")

    def __init__(
        self,
        upstream: UpstreamPool,
        origin: Origin,
        message: Sequence[bytes],
        phases: PhaseDeadlines,
        body: StreamedBody | None,
    ) -> None:
        self._upstream = upstream
        self._origin = origin
        self._message = message
        self._body = body
        self._phases = phases
        self._connection: UpstreamConnection | None = None

    async def __aenter__(self) -> UpstreamResponse:
        self._upstream.in_use += 1
        try:
            # A body that is produced as it is sent cannot be sent twice, so no connection that may be dead is tried.
            rested = self._upstream.take(self._origin) if self._body is None else None
            if rested is not None:
                try:
                    return await self._ask(rested)
                except ClosedBeforeResponse:
                    pass  # it died as it was used again, before any byte: the one case where asking twice is safe
            self._phases.enter("connect")
            fresh = await self._upstream.open(self._origin)
            try:
                return await self._ask(fresh)
            except ClosedBeforeResponse as error:
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

    async def _ask(self, connection: UpstreamConnection) -> UpstreamResponse:
        self._phases.enter("first_byte" if self._body is None else "upload")
        try:
            response = await connection.ask(self._message, self._body, self._phases)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return response


def _reason(error: BaseException) -> str:
    """The deepest text that says something: Trio wraps each failed address in a group in a cause."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(str(each) for each in cause.exceptions)
    return str(cause or error)
