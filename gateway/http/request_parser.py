"""Bytes to requests, with llhttp (`httptools`) and the checks it leaves out. No sockets, no responses.

Framing follows RFC 9112. What the RFC lets a server accept or reject is rejected here, because a proxy before us could
read it differently: Content-Length beside Transfer-Encoding (section 6.3), a bare LF as line end (2.2), a missing or
second Host (3.2).
"""

from __future__ import annotations

import re
from collections import deque

import httptools

from gateway.errors import (
    GatewayError,
    HeadersTooLarge,
    HttpVersionNotSupported,
    MalformedRequest,
    MethodNotAllowed,
)
from gateway.http.server_exchange import ServerExchange

__all__ = ["LatestHead", "RequestParser"]

LENGTH_DIGITS = 12
UNLIKE_HEADS = 3  # in a row: then the connection's heads differ, and are not remembered any more
PLAIN_CHUNK_BYTES = 24  # at most, of the framing of a chunk without extensions: 16 digits, and three line ends


class RequestParser:
    """Takes the bytes of one connection (`feed`) and returns requests once their headers are complete (`take`).

    An error in the bytes is raised by `take` after the requests before it, so that those are still served.

    A client repeats its head from request to request, but for the length of the body. `read` knows such a head again
    and copies what llhttp has made of it: llhttp's call per header is most of what a head costs.

    The `on_` methods are llhttp's callbacks.

    Args:
        header_limit_bytes: Of a request's head.
        latest: Has the latest head of other connections: a client that opens many repeats it in each.
    """

    def __init__(self, header_limit_bytes: int, latest: LatestHead | None = None) -> None:
        self._header_limit_bytes = header_limit_bytes
        self._latest_head = latest or LatestHead()
        self._parser: httptools.HttpRequestParser | None = None  # until bytes need it
        self._parsing: ServerExchange | None = None
        self._latest = _NONE_YET
        self._resuming = False
        self._ready: deque[ServerExchange] = deque()
        self._error: GatewayError | None = None
        self._head_bytes = 0
        self._chunk_framing_bytes = 0  # of the body: chunk extensions and trailers, less what plain chunks need
        self._begun = 0  # requests in the data being parsed
        self._body_bytes = 0  # in the data being parsed
        self._head_size = 0  # of the latest request
        self._known: _KnownHead | None = None
        self._unlike = 0  # heads in a row that `_known` did not help with
        self.ahead_bytes = 0  # of requests that were sent before the one being served had ended

    @property
    def pending(self) -> bool:
        """Whether a request has begun whose headers are not complete."""
        return self._parsing is not None and not self._parsing.headers_complete

    @property
    def pending_body(self) -> bool:
        """Whether a request has begun whose headers are complete and whose body is not."""
        return self._parsing is not None and self._parsing.headers_complete

    @property
    def has_more(self) -> bool:
        """Whether bytes have arrived after the request that `take` returned last."""
        return bool(self._ready) or self.pending or self._error is not None

    def take(self) -> ServerExchange | None:
        """Return the next request whose headers are complete, or None.

        Raises:
            GatewayError: The bytes after the last request are not an acceptable request.
        """
        if self._ready:
            exchange = self._ready.popleft()
            if not self._ready:  # not earlier: all requests sent ahead must be served before more are read
                self.ahead_bytes = 0
            return exchange
        if self._error is not None:
            raise self._error
        return None

    def read(self, data: bytes) -> ServerExchange | None:
        """Parse `data` when no request is being served: `feed` and `take` in one. Raises as `take`."""
        is_start = self._parsing is None and not self._ready and self._error is None
        known = self._known or self._latest_head.known
        if is_start and known is not None and (exchange := known.repeated_in(data)) is not None:
            self._unlike, self._known = 0, known
            return exchange
        self.feed(data)
        exchange = self.take()
        if is_start and exchange is not None and self._unlike < UNLIKE_HEADS:
            self._unlike += 1
            self._known = _KnownHead.of(data, exchange, self._header_limit_bytes)
            if _SECRET.isdisjoint(name for name, _ in exchange.headers):
                self._latest_head.known = self._known
        return exchange

    def feed(self, data: bytes) -> None:
        """Parse `data`. Raises nothing; see `take`."""
        if self._error is not None:
            return
        if self._parsing is None or self._ready:
            self.ahead_bytes += len(data)
        self._head_bytes += len(data)
        in_body = self.pending_body
        self._begun = self._body_bytes = 0
        try:
            rest = self._parse(data)
            while rest:
                rest = self._parse(rest)
        except httptools.HttpParserError as error:
            self._fail(_error_of(error))
        # This also limits chunk extensions and trailers, for which llhttp has no limit.
        if self._head_bytes > self._header_limit_bytes and self._parsing is not None:
            self._fail(_headers_too_large(self._header_limit_bytes))
        if (in_body and not self._begun) or (self._begun == 1 and not in_body and self.pending_body):
            head_size = 0 if in_body else self._head_size
            framing_bytes = self._chunk_framing_bytes + len(data) - head_size - self._body_bytes
            self._chunk_framing_bytes = max(0, framing_bytes)
            if framing_bytes > self._header_limit_bytes:
                self._latest.body_complete = False  # not to be served, although the rest of it has arrived
                self._parsing = self._latest
                self._fail(_headers_too_large(self._header_limit_bytes))

    def close(self) -> None:
        """The connection has ended: drop what refers to it and to this object, so that no cycle is left."""
        self._parser = self._parsing = self._error = None  # an error that was raised has the frames of its connection
        self._latest = _NONE_YET

    def _parse(self, data: bytes | memoryview) -> memoryview | None:
        """Parse `data` to its end, or up to a request that offers an upgrade; then return the rest."""
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            rest = memoryview(data)[upgrade.args[0] :]
            self._head_bytes = len(rest)
            return rest
        return None

    def _ignore_upgrade(self) -> None:
        """Serve a request that offers h2c or websocket as an ordinary request (RFC 9110, section 7.8).

        llhttp expects another protocol after such headers and stops. So a new parser reads on; if the request has a
        body, the parser is first given a made-up head with the same framing.
        """
        self._parser = httptools.HttpRequestParser(self)
        exchange = self._latest
        framing = [header for header in exchange.headers if header[0] in _FRAMING]
        if framing and framing != [(b"content-length", b"0")]:
            exchange.body_complete = False
            self._parsing = exchange
            self._resuming = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join([b"%b: %b\r\n" % line for line in framing]))
            self._resuming = False

    def _fail(self, error: GatewayError) -> None:
        if self._error is not None:
            return
        self._error = error
        exchange = self._parsing
        if exchange is not None and exchange.headers_complete and not exchange.body_complete:
            exchange.error = error  # the application may be reading this body

    # llhttp's callbacks ...............................................................................................

    def on_message_begin(self) -> None:
        """A request line begins."""
        if not self._resuming:
            self._parsing = self._latest = ServerExchange()
            self._head_bytes = self._chunk_framing_bytes = 0
            self._begun += 1

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        if not self._resuming:
            (self._parsing or self._current()).target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line. Trailers are dropped."""
        exchange = self._parsing or self._current()  # a call per header would be most of its cost
        if not exchange.headers_complete:
            exchange.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Check the headers. An exception raised here stops llhttp; `feed` finds it as the context of llhttp's own."""
        parser = self._parser
        if self._resuming or parser is None:
            return
        exchange = self._parsing or self._current()
        exchange.method = parser.get_method()
        exchange.version = parser.get_http_version()
        exchange.reusable = parser.should_keep_alive()
        self._head_size = _check(exchange, self._header_limit_bytes)
        exchange.headers_complete = True
        self._ready.append(exchange)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._head_bytes = 0
        self._body_bytes += len(data)
        (self._parsing or self._current()).body.append(data)

    def on_chunk_header(self) -> None:
        """The line before a chunk's data, with its extensions, is complete."""
        self._chunk_framing_bytes -= PLAIN_CHUNK_BYTES

    def on_message_complete(self) -> None:
        """The request is complete."""
        (self._parsing or self._current()).body_complete = True
        self._parsing = None

    def _current(self) -> ServerExchange:
        if self._parsing is None:
            raise MalformedRequest("bytes that belong to no request")
        return self._parsing


class LatestHead:
    """The latest head that a server's connections have had, if it may be copied.

    It has no secret: one would outlive its connection, and the time of a comparison would say how much of it is right.
    """

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: _KnownHead | None = None


class _KnownHead:
    """The head of a request whose body has a length, and what llhttp has made of it."""

    __slots__ = (
        "_after", "_after_size", "_before", "_before_size", "_derived", "_headers", "_length_at", "_method", "_target",
        "_version",
    )  # fmt: skip

    def __init__(self, before: bytes, after: bytes, request: ServerExchange, length_at: int) -> None:
        self._before = before  # the bytes up to the digits of the content-length
        self._after = after  # the bytes after them, to the empty line
        self._before_size, self._after_size = len(before), len(after)
        self._length_at = length_at  # its place among the headers
        self._method, self._target, self._version = request.method, request.target, request.version
        self._headers, self._derived = request.headers.copy(), request.derived

    @classmethod
    def of(cls, data: bytes, request: ServerExchange, header_limit_bytes: int) -> _KnownHead | None:
        """That of a request at the beginning of `data`; None if it should not be copied."""
        end = data.find(b"\r\n\r\n") + 4
        length = _CONTENT_LENGTH.search(data, 0, end)
        names = [name for name, _ in request.headers]
        if (
            length is None
            or names.count(b"content-length") != 1
            or not _COPIED_NEVER.isdisjoint(names)
            or not request.reusable
            or not data.startswith(request.method + b" " + request.target)
            or end + LENGTH_DIGITS > header_limit_bytes
        ):
            return None
        return cls(data[: length.start(1)], data[length.end(1) : end], request, names.index(b"content-length"))

    def repeated_in(self, data: bytes) -> ServerExchange | None:
        """The request in `data` if it has this head and is whole, with nothing after it."""
        if not data.startswith(self._before):
            return None
        digits_at = self._before_size
        digits_end = data.find(b"\r", digits_at, digits_at + LENGTH_DIGITS)
        digits = data[digits_at:digits_end]
        if digits_end < 0 or not digits.isdigit() or not data.startswith(self._after, digits_end):
            return None
        body = data[digits_end + self._after_size :]
        if len(body) != int(digits):
            return None
        request = ServerExchange()
        request.method, request.target, request.version = self._method, self._target, self._version
        request.headers = self._headers.copy()
        request.headers[self._length_at] = (b"content-length", digits)
        request.derived = self._derived
        request.body = [body]
        request.headers_complete = request.body_complete = request.reusable = True
        return request


def _error_of(error: httptools.HttpParserError) -> GatewayError:
    raised_in_callback = error.__context__
    if isinstance(raised_in_callback, GatewayError):
        return raised_in_callback
    if str(error) == "Invalid HTTP version":  # llhttp's text for anything but 0.9, 1.0, 1.1 and 2.0
        return _version_not_supported("this HTTP version")
    if "PRI" in str(error):  # llhttp pauses at the first line of HTTP/2 with prior knowledge
        return _version_not_supported("HTTP/2")
    return MalformedRequest(f"not a valid HTTP/1.1 request: {error}")


def _version_not_supported(version: str) -> HttpVersionNotSupported:
    return HttpVersionNotSupported(f"{version} is not supported on this port: use HTTP/1.1")


def _headers_too_large(limit_bytes: int) -> HeadersTooLarge:
    return HeadersTooLarge(f"the request's headers are larger than {limit_bytes} bytes (limits.header_bytes)")


def _check(exchange: ServerExchange, header_limit_bytes: int) -> int:
    """Reject what llhttp accepts and this server does not. Returns the size of the head in bytes, about.

    Raises:
        MalformedRequest, HeadersTooLarge, HttpVersionNotSupported, MethodNotAllowed: As the names say.
    """
    hosts = 0
    size = len(exchange.target)
    for name, value in exchange.headers:
        size += len(name) + len(value) + 4
        if name == b"host":
            hosts += 1
        elif name == b"expect":
            exchange.expects_continue = value.lower() == b"100-continue" and exchange.version == "1.1"
        elif name == b"transfer-encoding" and (value.lower() != b"chunked" or exchange.version != "1.1"):
            raise MalformedRequest("the only transfer-encoding accepted is `chunked`, in an HTTP/1.1 request")
    if size > header_limit_bytes:
        raise _headers_too_large(header_limit_bytes)
    if exchange.version not in {"1.1", "1.0"}:
        raise _version_not_supported(f"HTTP/{exchange.version}")
    if hosts != 1 and (hosts > 1 or exchange.version == "1.1"):
        raise MalformedRequest("an HTTP/1.1 request must have exactly one Host header")
    if exchange.method == b"CONNECT":
        raise MethodNotAllowed("this gateway opens no tunnels: CONNECT is not allowed", allow=_METHODS)
    return size


_NONE_YET = ServerExchange()
# A length of so many digits at most: llhttp checks the others.
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]{1,%d})\r\n" % (LENGTH_DIGITS - 1), re.IGNORECASE)
_COPIED_NEVER = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"connection"})
_SECRET = frozenset({b"authorization", b"x-api-key", b"api-key", b"proxy-authorization", b"cookie"})
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})  # headers that say how long a body is
_METHODS = ("GET", "HEAD", "OPTIONS", "POST")
