"""Requests out of bytes: llhttp, and the caution it lacks. No sockets, no responses.

Framing follows RFC 9112; what it leaves to a server's caution is refused (section 6.3: CL with TE; section 2.2: bare
LF; 3.2: Host).
"""

from __future__ import annotations

from collections import deque

import httptools

from gateway.http.server_exchange import RejectedRequest, ServerExchange

__all__ = ["RequestParser"]


class RequestParser:
    """Feed it what a connection receives; take requests from it once their headers are complete.

    Also the callbacks llhttp calls; those are not for others. A fault in the bytes is remembered and raised when its
    request is due, so that requests sent before it are still served.
    """

    def __init__(self, header_limit_bytes: int) -> None:
        self._header_limit_bytes = header_limit_bytes
        self._parser = httptools.HttpRequestParser(self)
        self._parsing: ServerExchange | None = None
        self._latest = ServerExchange()
        self._resuming = False
        self._ready: deque[ServerExchange] = deque()
        self._refusal: RejectedRequest | None = None
        self._head_bytes = 0
        self.ahead_bytes = 0

    @property
    def pending(self) -> bool:
        """Whether a request has begun whose headers are not complete."""
        return self._parsing is not None and not self._parsing.headers_complete

    @property
    def has_more(self) -> bool:
        """Whether something was sent behind the request that was taken last."""
        return bool(self._ready) or self.pending or self._refusal is not None

    def take(self) -> ServerExchange | None:
        """The next request whose headers are there, or None. Raises RejectedRequest."""
        if self._ready:
            exchange = self._ready.popleft()
            if not self._ready:  # not sooner: a backlog must shrink to nothing before more is read on top of it
                self.ahead_bytes = 0
            return exchange
        if self._refusal is not None:
            raise self._refusal
        return None

    def feed(self, data: bytes) -> None:
        """Parse what came."""
        if self._refusal is not None:
            return
        if self._parsing is None or self._ready:
            self.ahead_bytes += len(data)
        self._head_bytes += len(data)
        try:
            rest = self._parse(data)
            while rest:
                rest = self._parse(rest)
        except httptools.HttpParserError as error:
            self._refuse(_reason(error))
        # Also of what frames a body: a chunk extension or a trailer has no other end than this one.
        if self._head_bytes > self._header_limit_bytes and self._parsing is not None:
            self._refuse(_headers_too_large(self._header_limit_bytes))

    def _parse(self, data: bytes | memoryview) -> memoryview | None:
        """Parse up to the end, or to a request that offers an upgrade; then what is left."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade()
            rest = memoryview(data)[upgrade.args[0] :]
            self._head_bytes = len(rest)
            return rest
        return None

    def _go_on_without_upgrade(self) -> None:
        """Nobody here speaks h2c or websocket: the request is served as if it had not offered to (RFC 9110, 7.8).

        llhttp believes that after such a head another protocol begins. A fresh parser reads what follows; if that is a
        body, it is told so by a head of our own with the same framing.
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

    def _refuse(self, refusal: RejectedRequest) -> None:
        if self._refusal is not None:
            return
        self._refusal = refusal
        exchange = self._parsing
        if exchange is not None and exchange.headers_complete and not exchange.body_complete:
            exchange.refusal = refusal  # its body is at fault; the application may be reading it

    # What llhttp calls ................................................................................................

    def on_message_begin(self) -> None:
        """A request line begins."""
        if not self._resuming:
            self._parsing = self._latest = ServerExchange()
            self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        if not self._resuming:
            self._due().target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line; of trailers only that they are there."""
        exchange = self._due()
        if not exchange.headers_complete:
            exchange.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide whether this is a request we serve. Raising stops llhttp; `feed` then finds our reason in it."""
        if self._resuming:
            return
        exchange = self._due()
        parser = self._parser
        exchange.method = parser.get_method()
        exchange.version = parser.get_http_version()
        exchange.reusable = parser.should_keep_alive()
        _check(exchange, self._header_limit_bytes)
        exchange.headers_complete = True
        self._ready.append(exchange)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._head_bytes = 0
        self._due().body.append(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._due().body_complete = True
        self._parsing = None

    def _due(self) -> ServerExchange:
        if self._parsing is None:
            raise RejectedRequest(400, "malformed_request", "bytes outside a request")
        return self._parsing


def _reason(error: httptools.HttpParserError) -> RejectedRequest:
    ours = error.__context__
    if isinstance(ours, RejectedRequest):
        return ours
    if str(error) == "Invalid HTTP version":  # llhttp's words for what is not 0.9, 1.0, 1.1 or 2.0
        return _version_not_supported("this version")
    if "PRI" in str(error):  # the first line of HTTP/2 by prior knowledge; llhttp pauses there
        return _version_not_supported("HTTP/2")
    return RejectedRequest(400, "malformed_request", f"not a valid HTTP/1.1 request: {error}")


def _version_not_supported(version: str) -> RejectedRequest:
    return RejectedRequest(505, "http_version_not_supported", f"{version} is not spoken here: use HTTP/1.1")


def _headers_too_large(limit_bytes: int) -> RejectedRequest:
    return RejectedRequest(431, "headers_too_large", f"the request's headers are larger than {limit_bytes} bytes")


def _check(exchange: ServerExchange, header_limit_bytes: int) -> None:
    """What llhttp lets pass and we do not. Raises RejectedRequest."""
    hosts = 0
    size = len(exchange.target)
    for name, value in exchange.headers:
        size += len(name) + len(value) + 4
        if name == b"host":
            hosts += 1
        elif name == b"expect":
            exchange.expects_continue = value.lower() == b"100-continue" and exchange.version == "1.1"
        elif name == b"transfer-encoding" and (value.lower() != b"chunked" or exchange.version != "1.1"):
            raise RejectedRequest(
                400, "malformed_request", "transfer-encoding may only be `chunked`, and only in HTTP/1.1"
            )
    if size > header_limit_bytes:
        raise _headers_too_large(header_limit_bytes)
    if exchange.version not in {"1.1", "1.0"}:
        raise _version_not_supported(f"HTTP/{exchange.version}")
    if hosts != 1 and (hosts > 1 or exchange.version == "1.1"):
        raise RejectedRequest(400, "malformed_request", "an HTTP/1.1 request has exactly one Host header")
    if exchange.method == b"CONNECT":
        raise RejectedRequest(405, "method_not_allowed", "this is a gateway for inference, not a tunnel")


_FRAMING = frozenset({b"content-length", b"transfer-encoding"})  # headers that say how long a body is
