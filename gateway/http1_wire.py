"""One HTTP/1.1 request and its response as bytes: what llhttp hands us, and what ASGI wants sent. No sockets.

`RequestReader` turns bytes into `Exchange`s, in order; an `Exchange` is one request's ASGI side. Framing follows
RFC 9112; what it leaves to a server's caution is refused (section 6.3: CL with TE; section 2.2: bare LF; 3.2: Host).
"""

from __future__ import annotations

import time
from collections import deque
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol
from urllib.parse import unquote_to_bytes

import httptools

from gateway.asgi import Headers, Message, Scope
from gateway.errors import envelope_of

__all__ = ["Exchange", "Refused", "RequestReader", "refusal_bytes"]


class Refused(Exception):
    """The bytes are no request we serve: this is the answer, and then the connection is closed."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


def refusal_bytes(refusal: Refused) -> bytes:
    """The whole response: OpenAI's error envelope, and `connection: close`."""
    type_ = "invalid_request_error" if refusal.status < 500 else "api_error"
    body = envelope_of(refusal.message, type_, refusal.code)
    headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
    return _head(refusal.status, headers, b"connection: close\r\n") + body


class RequestReader:
    """Feed it what a connection receives; take requests from it once their headers are complete.

    Also the callbacks llhttp calls; those are not for others. A fault in the bytes is remembered and raised when its
    request is due, so that requests sent before it are still served.
    """

    def __init__(self, header_limit_bytes: int) -> None:
        self._header_limit_bytes = header_limit_bytes
        self._parser = httptools.HttpRequestParser(self)
        self._parsing: Exchange | None = None
        self._latest = Exchange()
        self._resuming = False
        self._ready: deque[Exchange] = deque()
        self._refusal: Refused | None = None
        self._head_bytes = 0
        self.ahead_bytes = 0

    @property
    def pending(self) -> bool:
        """Whether a request has begun whose headers are not complete."""
        return self._parsing is not None and not self._parsing.headers_complete

    def take(self) -> Exchange | None:
        """The next request whose headers are there, or None. Raises Refused if instead of one there is a fault."""
        if self._ready:
            self.ahead_bytes = 0
            return self._ready.popleft()
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
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade()
            self._head_bytes = 0
            self.feed(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(_reason(error))
        if self.pending and self._head_bytes > self._header_limit_bytes:
            self._refuse(_headers_too_large(self._header_limit_bytes))

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

    def _refuse(self, refusal: Refused) -> None:
        self._refusal = refusal
        exchange = self._parsing
        if exchange is not None and exchange.headers_complete and not exchange.body_complete:
            exchange.refusal = refusal  # its body is at fault; the application may be reading it

    # What llhttp calls ................................................................................................

    def on_message_begin(self) -> None:
        """A request line begins."""
        if not self._resuming:
            self._parsing = self._latest = Exchange()
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

    def _due(self) -> Exchange:
        if self._parsing is None:
            raise Refused(400, "malformed_request", "bytes outside a request")
        return self._parsing


def _reason(error: httptools.HttpParserError) -> Refused:
    ours = error.__context__
    if isinstance(ours, Refused):
        return ours
    return Refused(400, "malformed_request", f"not a valid HTTP/1.1 request: {error}")


def _headers_too_large(limit_bytes: int) -> Refused:
    return Refused(431, "headers_too_large", f"the request's headers are larger than {limit_bytes} bytes")


def _check(exchange: Exchange, header_limit_bytes: int) -> None:
    """What llhttp lets pass and we do not. Raises Refused."""
    hosts = 0
    size = len(exchange.target)
    for name, value in exchange.headers:
        size += len(name) + len(value) + 4
        if name == b"host":
            hosts += 1
        elif name == b"expect":
            exchange.expects_continue = value.lower() == b"100-continue"
        elif name == b"transfer-encoding" and (value.lower() != b"chunked" or exchange.version != "1.1"):
            raise Refused(400, "malformed_request", "transfer-encoding may only be `chunked`, and only in HTTP/1.1")
    if size > header_limit_bytes:
        raise _headers_too_large(header_limit_bytes)
    if exchange.version not in {"1.1", "1.0"}:
        raise Refused(505, "http_version_not_supported", f"HTTP/{exchange.version} is not spoken here: use HTTP/1.1")
    if hosts != 1 and (hosts > 1 or exchange.version == "1.1"):
        raise Refused(400, "malformed_request", "an HTTP/1.1 request has exactly one Host header")
    if exchange.method == b"CONNECT":
        raise Refused(405, "method_not_allowed", "this is a gateway for inference, not a tunnel")


class Wire(Protocol):
    """The connection an exchange is served on."""

    async def write(self, data: bytes) -> None:
        """Send it all, or raise ClientDisconnected."""
        ...

    async def read_more(self) -> bool:
        """Feed the reader with what comes; False if nothing will."""
        ...


class Exchange:
    """One request and its response: what the ASGI callables `receive` and `send` stand for."""

    __slots__ = (
        "_chunked", "_closing", "_end_reported", "_head", "_no_body", "_wire", "answered", "body", "body_complete",
        "complete", "expects_continue", "headers", "headers_complete", "method", "refusal", "reusable", "started",
        "target", "version",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.version = ""
        self.headers: Headers = []
        self.body: list[bytes] = []
        self.headers_complete = False
        self.body_complete = False
        self.expects_continue = False
        self.refusal: Refused | None = None
        self.reusable = False  # whether the connection may serve another request after this one
        self.started = False  # the response's first byte is out
        self.answered = False  # there is an answer the client should get to read
        self.complete = False  # the response's last byte is out
        self._end_reported = False
        self._head: Message | None = None
        self._chunked = False
        self._no_body = False
        self._closing = False
        self._wire: Wire | None = None

    def attach(self, wire: Wire, *, closing: bool) -> None:
        """Serve it on this connection; `closing` says that it will be the last one there."""
        self._wire = wire
        self._closing = closing

    def scope(self, client: tuple[str, int] | None, server: tuple[str, int] | None) -> Scope:
        """The ASGI connection scope (https://asgi.readthedocs.io/en/latest/specs/www.html)."""
        raw_path, _, query = _origin_form(self.target).partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": self.version,
            "method": self.method.decode("ascii"),
            "scheme": "http",
            "path": _decoded(raw_path),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self.headers,
            "client": client,
            "server": server,
            "state": {},
            "extensions": {},
        }

    # ASGI receive .....................................................................................................

    async def receive(self) -> Message:
        """The next piece of the body; after its end, the client's departure. Cancelled, it loses nothing."""
        wire = self._wire
        if wire is None:
            raise RuntimeError("the exchange is not being served")
        if self.complete:
            return {"type": "http.disconnect"}
        if self.expects_continue and not self.body_complete:
            self.expects_continue = False
            await wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while True:
            if not self._end_reported and (self.body or self.body_complete):
                body = b"".join(self.body) if len(self.body) != 1 else self.body[0]
                self.body.clear()
                self._end_reported = self.body_complete
                return {"type": "http.request", "body": body, "more_body": not self.body_complete}
            if self.refusal is not None or not await wire.read_more():
                return {"type": "http.disconnect"}

    # ASGI send ........................................................................................................

    async def send(self, message: Message) -> None:
        """Head and first bytes leave together. Raises ClientDisconnected (an OSError) when there is nobody any more."""
        wire = self._wire
        if wire is None or self.complete:
            raise RuntimeError("send after the end of the response")
        if message["type"] == "http.response.start":
            self._head = message
            return
        body: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        data = self._framed(body, last=last)
        if self._head is not None:
            data = self._begin(self._head, body, last=last)
        reusable, self.reusable = self.reusable, False  # cancelled half-way, the connection is of no more use
        if data:
            await wire.write(data)
        self.reusable = reusable
        if last:
            self.complete = True

    def _framed(self, body: bytes, *, last: bool) -> bytes:
        if self._no_body:
            return b""
        if not self._chunked:
            return body
        if not body:
            return b"0\r\n\r\n" if last else b""
        return b"%x\r\n%b\r\n%b" % (len(body), body, b"0\r\n\r\n" if last else b"")

    def _begin(self, start: Message, body: bytes, *, last: bool) -> bytes:
        """Decide on the framing, and return the head with the first of the body."""
        status: int = start["status"]
        headers: Headers = [(n, v) for n, v in start["headers"] if n not in _OURS]
        self._no_body = self.method == b"HEAD" or status in {204, 304}
        framing = self._framing(headers, status, body, last=last)
        head = _head(status, headers, framing)
        self._head = None
        self.started = self.answered = True
        return head + self._framed(body, last=last)

    def _framing(self, headers: Headers, status: int, body: bytes, *, last: bool) -> bytes:
        framing = b""
        if not any(name == b"content-length" for name, _ in headers) and status not in {204, 304}:
            if self.method == b"HEAD":
                pass  # how a body that is not sent would have been framed is no use to anybody
            elif last:
                framing = b"content-length: %d\r\n" % len(body)
            elif self.version == "1.1":
                self._chunked = True
                framing = b"transfer-encoding: chunked\r\n"
            else:
                self.reusable = False  # HTTP/1.0: the body lasts until the connection ends
        if self._closing or not self.reusable or not self.body_complete:
            self.reusable = False  # an answer before the end of the request: the rest of it is not worth reading
            return framing + b"connection: close\r\n"
        return framing + b"connection: keep-alive\r\n" if self.version == "1.0" else framing


_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_OURS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date"})


def _head(status: int, headers: Headers, more: bytes) -> bytes:
    """Status line and headers to the blank line. Raises ValueError for a header that would end early."""
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if lines.count(b"\n") != len(headers):
        raise ValueError("a response header contains a line end")
    return b"%b%bdate: %b\r\n%b\r\n" % (_status_line(status), lines, _date(), more)


def _status_line(status: int) -> bytes:
    line = _status_lines.get(status)
    if line is None:
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        line = _status_lines[status] = b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())
    return line


_status_lines: dict[int, bytes] = {}  # at most one for each number an application uses


def _date() -> bytes:
    """An IMF-fixdate (RFC 9110, 5.6.7), made once a second."""
    global _date_made, _date_value
    now = int(time.time())
    if now != _date_made:
        _date_made, _date_value = now, formatdate(now, usegmt=True).encode()
    return _date_value


_date_made = 0
_date_value = b""


def _origin_form(target: bytes) -> bytes:
    """The path and query of a request target; a proxy may send the absolute form (RFC 9112, 3.2.2)."""
    if target.startswith((b"http://", b"https://")):
        slash = target.find(b"/", len(b"https://"))
        return target[slash:] if slash > 0 else b"/"
    return target


def _decoded(raw_path: bytes) -> str:
    if b"%" not in raw_path:
        return raw_path.decode("utf-8", "replace")
    return unquote_to_bytes(raw_path).decode("utf-8", "replace")
