"""The HTTP/1.1 client for requests to neurons: a pool of idle connections, and one exchange on one of them.

Start with `UpstreamPool.exchange`. Why not httpx: docs/decisions/0004-own-upstream-client.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import msgspec
import structlog
import trio

from gateway.asgi import Headers
from gateway.errors import UpstreamConnectionError, UpstreamUnreachable
from gateway.http import redirect, tls
from gateway.http.connection import UpstreamConnection
from gateway.http.phase_deadlines import PhaseDeadlines, WaitTimer
from gateway.http.response_parser import ClosedBeforeResponse, UpstreamResponse
from gateway.http.sockets import connect_error_reason, detect_dead_peer
from gateway.http.streamed_body import StreamedBody
from gateway.http.tcp.known_addresses import KnownAddresses

__all__ = [
    "Connect",
    "Origin",
    "UpstreamExchange",
    "UpstreamPool",
    "complete_head",
    "header_lines",
    "request_head",
    "request_opening",
]

IDLE_LIMIT_S = 3.0  # uvicorn and llama.cpp close idle connections after 5 s; the pool must close them first
SWEEP_INTERVAL_S = 1.0
_REDIRECTS = frozenset({307, 308})

log = structlog.get_logger("cortex.upstream")


class Origin(NamedTuple):
    """Where a neuron serves inference: its URL, parsed once when it becomes known."""

    scheme: str
    host: str
    port: int
    base_path: bytes

    @classmethod
    def parse(cls, url: str) -> Origin:
        """Parse an inference URL such as `http://beast:8080/prefix`.

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
        """The value of the Host header (RFC 9110, section 7.2): without the scheme's default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def header_lines(headers: Headers) -> bytes:
    """Return the headers as they are sent: each ends with its line end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def request_opening(origin: Origin, path: bytes) -> bytes:
    """Return the request line and the `host` of a POST."""
    return b"POST %b%b HTTP/1.1\r\nhost: %b\r\n" % (origin.base_path, path, origin.authority.encode())


def request_head(origin: Origin, path: bytes, lines: bytes, content_length: int | None) -> bytes:
    """Return the request line and headers of a POST, to the empty line.

    `lines` are `header_lines` without hop-by-hop headers. If `content_length` is None, the body must be sent chunked.
    """
    return complete_head(request_opening(origin, path), lines, content_length)


def complete_head(opening: bytes, lines: bytes, content_length: int | None) -> bytes:
    """Return the `request_head` that begins with this `request_opening`."""
    if content_length is None:
        return b"%b%btransfer-encoding: chunked\r\n\r\n" % (opening, lines)
    return b"%b%bcontent-length: %d\r\n\r\n" % (opening, lines, content_length)


Connect = Callable[[Origin], Awaitable[trio.abc.Stream]]


async def open_stream(origin: Origin, known: KnownAddresses | None = None) -> trio.abc.Stream:
    """Open a TCP connection, or TLS for https. The caller owns the stream.

    Args:
        origin: Where to.
        known: Remembers addresses from one call to the next.

    Raises:
        OSError: Connection refused, host unreachable, or the name does not resolve.
        UnicodeError: The host is not a valid name: two dots in a row, or a label that is too long.
        trio.BrokenResourceError: The TLS handshake failed.
    """
    stream = await (known or KnownAddresses()).open_tcp_stream(origin.host, origin.port)
    detect_dead_peer(stream.socket.setsockopt)
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
    """The connections to all neurons.

    A connection is idle for at most `IDLE_LIMIT_S` and is checked for EOF before reuse. One whose exchange was
    cancelled or failed is closed and never reused. The owner runs `run` in a task, and calls `close` at the end.

    Args:
        connect: Opens a stream to an origin; tests replace it.
        idle_limit: Idle connections per origin.
    """

    def __init__(self, *, connect: Connect | None = None, idle_limit: int = 256) -> None:
        self._connect = connect or partial(open_stream, known=KnownAddresses())
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._idle_limit = idle_limit
        self.timer = WaitTimer()
        self.opened = 0
        self.reused = 0
        self.in_use = 0

    def exchange(
        self,
        origin: Origin,
        message: Sequence[bytes | memoryview],
        phases: PhaseDeadlines,
        body: StreamedBody | None = None,
    ) -> UpstreamExchange:
        """One request and its response; a context manager. In it call `UpstreamExchange.response` once.

        `message` is the request's head and body in one or more pieces; the head alone if `body` follows, which is
        sent while it arrives. A redirect with 307 or 308 within the origin is followed once.

        `response` moves `phases` through `connect`, `upload` (with `body`) and `first_byte`.
        Leaving returns the connection to the pool, or closes it.

        Raises, from `response`:
            UpstreamUnreachable: Connecting failed.
            UpstreamConnectionError: The neuron closed the connection before a response head.
            UpstreamMalformedResponse: The response is not valid HTTP/1.1.
            Exception: Whatever `body` raises.
        """
        return UpstreamExchange(self, origin, message, phases, body)

    async def run(self) -> None:
        """Close connections that have been idle too long, every second, and end overdue waits, forever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.timer.run)
            while True:
                await trio.sleep(SWEEP_INTERVAL_S)
                self._sweep()

    def close(self) -> None:
        """Close all idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def statistics(self) -> dict[str, int]:
        """Return the number of connections that are idle, in use, and opened so far, and how often one was reused."""
        idle = sum(map(len, self._idle.values()))
        return {"idle": idle, "in_use": self.in_use, "opened": self.opened, "reused": self.reused}

    # Sync, so atomic under Trio .......................................................................................

    def take(self, origin: Origin, now: float) -> UpstreamConnection | None:
        """Return an idle connection that can be used, or None. The caller owns it."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.idle_since > now - IDLE_LIMIT_S and connection.is_quiet():
                self.reused += 1
                return connection
            connection.close()
        return None

    def give_back(self, origin: Origin, connection: UpstreamConnection, now: float) -> None:
        """Keep a connection whose exchange is complete; close it if the origin has enough idle ones."""
        idle = self._idle.setdefault(origin, [])
        if len(idle) >= self._idle_limit:
            connection.close()
            return
        connection.idle_since = now
        idle.append(connection)

    async def open(self, origin: Origin) -> UpstreamConnection:
        """Open a new connection; the caller owns it. Raises UpstreamUnreachable."""
        try:
            stream = await self._connect(origin)
        except (OSError, trio.BrokenResourceError, UnicodeError) as error:
            reason = connect_error_reason(error)
            log.info("connect_failed", address=origin.authority, reason=reason)  # the client does not get the address
            raise UpstreamUnreachable(f"cannot connect to the neuron: {reason}") from error
        self.opened += 1
        return UpstreamConnection(stream)

    def _sweep(self) -> None:
        oldest = trio.current_time() - IDLE_LIMIT_S
        for origin, idle in list(self._idle.items()):
            for connection in idle:
                if connection.idle_since <= oldest:
                    connection.close()
            kept = [connection for connection in idle if connection.idle_since > oldest]
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]


class UpstreamExchange(msgspec.Struct, eq=False):
    """One request and its response; see `UpstreamPool.exchange`."""

    pool: UpstreamPool
    origin: Origin
    message: Sequence[bytes | memoryview]
    phases: PhaseDeadlines
    body: StreamedBody | None
    connection: UpstreamConnection | None = None

    def __enter__(self) -> Self:
        self.pool.in_use += 1
        return self

    async def response(self) -> UpstreamResponse:
        """Send the request and wait for the response's head; see `UpstreamPool.exchange`."""
        phases, pool = self.phases, self.pool
        for may_redirect in (True, False):
            response: UpstreamResponse | None = None
            now = phases.now()
            # A body that is sent while it arrives cannot be sent twice. An idle one may be dead: open another.
            idle = pool.take(self.origin, now) if self.body is None else None
            if idle is not None:
                self.connection = idle
                phases.enter("first_byte", now, waits=False)
                try:
                    response = await idle.send_request(self.message, None, phases, pool.timer)
                except ClosedBeforeResponse:  # while it was idle: the neuron has not processed the request
                    self._release(now)
            if response is None:
                response = await self._ask_anew()
            redirects = may_redirect and response.status in _REDIRECTS
            if not redirects or (message := self._redirected(response)) is None:
                return response
            self._release(phases.now())
            self.message = message
        raise AssertionError("the answer to a redirected request ends the loop")

    async def _ask_anew(self) -> UpstreamResponse:
        """Send the request over a new connection."""
        self.phases.enter("connect")
        new = self.connection = await self.pool.open(self.origin)
        self.phases.enter("first_byte" if self.body is None else "upload")
        try:
            return await new.send_request(self.message, self.body, self.phases, self.pool.timer)
        except ClosedBeforeResponse as error:
            raise UpstreamConnectionError("the neuron closed the connection without sending a response") from error

    def _redirected(self, response: UpstreamResponse) -> Sequence[bytes | memoryview] | None:
        """The request to send after a redirect within the origin; None if the redirect is not followed."""
        url = f"{self.origin.scheme}://{self.origin.authority}"
        target = redirect.new_target(response.status, response.headers, self.message, url)
        if target is None or (self.body is not None and not self.body.rewind()):
            return None
        return redirect.with_target(self.message, target)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.pool.in_use -= 1
        now = self.phases.exchanged_at = self.phases.now()
        self._release(now)

    def _release(self, now: float) -> None:
        """Return the connection to the pool, or close it."""
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if connection.is_reusable():
            self.pool.give_back(self.origin, connection, now)
        else:
            connection.close()
