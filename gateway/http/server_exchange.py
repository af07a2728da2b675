"""One HTTP/1.1 request and its response: what the ASGI callables `receive` and `send` do. No sockets, no parser."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from gateway.asgi import EXCHANGE, Flow, Headers, Message, Scope
from gateway.errors import GatewayError, envelope

__all__ = [
    "ClientDisconnected",
    "ServerExchange",
    "ServerLog",
    "ServerTransport",
    "error_response",
    "is_departure",
]


class ClientDisconnected(OSError):
    """The client has closed the connection. An OSError, because ASGI 2.4 says so of `send`."""


def is_departure(error: Exception) -> bool:
    """Whether the exception, or every exception of the group, is ClientDisconnected."""
    if isinstance(error, ExceptionGroup):
        return error.split(ClientDisconnected)[1] is None
    return isinstance(error, ClientDisconnected)


def error_response(error: GatewayError) -> bytes:
    """Return a whole response: OpenAI's error envelope, and `connection: close`."""
    body = envelope(error)
    headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *error.headers]
    return _head(error.status, headers, b"connection: close\r\n") + body


class ServerLog(Protocol):
    """The methods that the server needs of a logger; structlog's loggers have them."""

    def error(self, event: str, *, exc_info: BaseException, **facts: Any) -> Any:
        """Log an exception that was caught."""
        ...

    def exception(self, event: str, **facts: Any) -> Any:
        """Log the exception being handled."""
        ...


class ServerTransport(Protocol):
    """What an exchange needs of the connection that serves it; host and port of both sides, if it has a socket."""

    client: tuple[str, int] | None
    local: tuple[str, int] | None
    scheme: str

    @property
    def closing(self) -> bool:
        """Whether this exchange is the last one on the connection."""
        ...

    def write_nowait(self, data: bytes) -> bytes | memoryview:
        """Send what the client takes at once; return the rest. Raises ClientDisconnected."""
        ...

    async def write_rest(self, rest: bytes | memoryview) -> None:
        """Send the rest, or raise ClientDisconnected."""
        ...

    async def write(self, data: bytes) -> None:
        """Do both."""
        ...

    async def read_more(self) -> bool:
        """Feed the request parser with the next bytes; False when the client has closed."""
        ...

    async def checkpoint_if_due(self) -> None:
        """Let other tasks run from time to time."""
        ...

    def on_departure(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called when the client closes the connection. False if that cannot be watched."""
        ...

    @property
    def can_carry(self) -> bool:
        """Whether there is a pump for this connection."""
        ...

    async def carry(self, source: int, flow: Flow, *, chunked: bool) -> None:
        """Have the pump relay pieces of the body, framed as chunks or as they are."""
        ...

    async def flush(self) -> None:
        """Wait until the client has taken what `carry` could not send."""
        ...


class ServerExchange:
    """One request, filled by `RequestParser`, and its response, sent by the application."""

    __slots__ = (
        "_body_bytes_left", "_chunked", "_end_reported", "_head", "_no_body", "_transport", "_until_close", "answered",
        "body", "body_complete", "complete", "derived", "error", "expects_continue", "headers", "headers_complete",
        "method", "more_headers", "more_lines", "reusable", "started", "target", "version",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.version = ""
        self.headers: Headers = []
        self.derived: dict[str, Any] = {}
        self.more_headers: Headers = _NO_HEADERS  # of the response
        self.more_lines = b""
        self.body: list[bytes] = []
        self.headers_complete = False
        self.body_complete = False
        self.expects_continue = False
        self.error: GatewayError | None = None  # what is wrong with the body's framing
        self.reusable = False  # whether the connection may serve another request after this one
        self.started = False  # the response's first byte is sent
        self.answered = False  # the client should get time to read a response
        self.complete = False  # the response's last byte is sent
        self._end_reported = False
        self._head: tuple[int, Iterable[tuple[bytes, bytes]]] | None = None
        self._chunked = False
        self._no_body = False
        self._body_bytes_left: int | None = None  # until the application's content-length is reached
        self._until_close = False
        self._transport: ServerTransport | None = None

    @property
    def close_would_look_complete(self) -> bool:
        """Whether an orderly close would make an incomplete response look complete to the client."""
        return self._until_close and self.started and not self.complete

    def begin(self, transport: ServerTransport) -> Scope:
        """Set the connection that `receive` and `send` use; return the ASGI connection scope.

        https://asgi.readthedocs.io/en/latest/specs/www.html
        """
        self._transport = transport
        derived = self.derived
        if _SCOPE not in derived:
            derived[_SCOPE] = self._scope_of_head(transport.scheme)
        scope: dict[str, Any] = derived[_SCOPE].copy()
        scope["client"], scope["server"] = transport.client, transport.local
        scope["headers"] = self.headers
        scope["state"] = {}
        scope["extensions"] = {EXCHANGE: self}
        return scope

    def _scope_of_head(self, scheme: str) -> Scope:
        """What the scopes of all requests with this head have in common. A server's connections have one scheme."""
        target = self.target if self.target[:1] == b"/" else _origin_form(self.target)
        raw_path, _, query = target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": self.version,
            "method": self.method.decode("ascii"),
            "scheme": scheme,
            "path": (unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path).decode("utf-8", "replace"),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
        }

    def close(self) -> None:
        """The connection has ended: drop it, and what was not read. An application may keep the rest for longer."""
        self._transport = None
        self.body.clear()

    def on_departure(self, callback: Callable[[], None]) -> bool:
        """See `gateway.asgi.DirectExchange`."""
        return self._transport is not None and self._transport.on_departure(callback)

    @property
    def can_carry(self) -> bool:
        """See `gateway.asgi.DirectExchange`."""
        return (
            self.started
            and not self.complete
            and self._body_bytes_left is None
            and self._transport is not None
            and self._transport.can_carry
        )

    async def carry(self, source: int, flow: Flow) -> None:
        """See `gateway.asgi.DirectExchange`."""
        if self._transport is None or not self.can_carry:
            raise RuntimeError("the response cannot be carried: check can_carry first")
        await self._transport.carry(source, flow, chunked=self._chunked)

    async def flush(self) -> None:
        """See `gateway.asgi.DirectExchange`."""
        if self._transport is not None:
            await self._transport.flush()

    # ASGI receive .....................................................................................................

    def take_body(self, limit_bytes: int) -> bytes | None:
        """See `gateway.asgi.DirectExchange`."""
        if not self.body_complete or self._end_reported:
            return None
        body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
        if len(body) > limit_bytes:
            self.body = [body]
            return None
        self._end_reported = True
        self.body.clear()
        return body

    async def receive(self) -> Message:
        """Return the next piece of the body; after its end, wait for the disconnect. Cancelling this loses no bytes."""
        transport = self._transport
        if transport is None:
            raise RuntimeError("receive before the exchange is attached to a connection")
        if self.complete:
            return {"type": "http.disconnect"}
        if self.expects_continue and not self.body_complete and not self.started:
            self.expects_continue = False
            await transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while True:
            if not self._end_reported and (self.body or self.body_complete):
                body = b"".join(self.body) if len(self.body) != 1 else self.body[0]
                self.body.clear()
                self._end_reported = self.body_complete
                return {"type": "http.request", "body": body, "more_body": not self.body_complete}
            if self.error is not None or not await transport.read_more():
                return {"type": "http.disconnect"}

    # ASGI send ........................................................................................................

    async def send(self, message: Message) -> None:
        """Send one ASGI message: `start_response` or `send_body`, with what they raise."""
        if message["type"] == "http.response.start":
            self.start_response(message["status"], message.get("headers", ()))
        else:
            await self.send_body(message.get("body", b""), last=not message.get("more_body", False))

    def start_response(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """See `gateway.asgi.DirectExchange`."""
        if self._transport is None or self.complete:
            raise RuntimeError(_AFTER_THE_END)
        if self.more_headers:
            headers = [*headers, *self.more_headers]
        self._head, self._body_bytes_left = (status, headers), None

    async def send_body(self, data: bytes, *, last: bool) -> None:
        """Send a piece of the body; the first one together with the head.

        If this is cancelled while it waits for the client to read, the connection cannot be used again. Otherwise a
        piece is sent whole or not at all.

        Raises:
            ClientDisconnected: (an OSError) The client has closed the connection, or the request's body is malformed.
            RuntimeError, ValueError: The application violates ASGI or HTTP; nothing of this piece is sent.
        """
        transport = self._transport
        if transport is None or self.complete:
            raise RuntimeError(_AFTER_THE_END)
        if self.error is not None and not self.started:
            raise ClientDisconnected("the request's body is malformed")
        framed = self._framed(data, last=last) if self._head is None else self._begin(*self._head, data, last=last)
        rest = transport.write_nowait(framed) if framed else b""
        if rest:
            await self._write_rest(transport, rest)
        if last:
            self.complete = True
        else:
            await transport.checkpoint_if_due()

    def respond(self, status: int, headers: Headers, body: bytes) -> Awaitable[None] | None:
        """See `gateway.asgi.DirectExchange`."""
        self.start_response(status, headers)
        if self._head is None or self._transport is None or self.error is not None:
            return self.send_body(body, last=True)
        rest = self._transport.write_nowait(self._begin(*self._head, body, last=True))
        if rest:
            return self._end(self._transport, rest)
        self.complete = True
        return None

    async def _end(self, transport: ServerTransport, rest: bytes | memoryview) -> None:
        await self._write_rest(transport, rest)
        self.complete = True

    async def _write_rest(self, transport: ServerTransport, rest: bytes | memoryview) -> None:
        reusable, self.reusable = self.reusable, False
        await transport.write_rest(rest)
        self.reusable = reusable

    def _framed(self, body: bytes, *, last: bool) -> bytes:
        if self._no_body:
            return b""
        if not self._chunked:
            if self._body_bytes_left is not None:
                self._count_body(len(body), last=last)
            return body
        if not body:
            return b"0\r\n\r\n" if last else b""
        return b"%x\r\n%b\r\n%b" % (len(body), body, b"0\r\n\r\n" if last else b"")

    def _count_body(self, size: int, *, last: bool) -> None:
        """Check the body against the application's content-length.

        A client would read missing bytes from the next response, and surplus bytes as the next response.
        """
        left_bytes = (self._body_bytes_left or 0) - size
        if left_bytes < 0 or (last and left_bytes):
            raise RuntimeError("the response body is longer or shorter than its content-length")
        self._body_bytes_left = left_bytes

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, last: bool) -> bytes:
        """Choose the framing; return the head and the first body bytes."""
        self._no_body = self.method == b"HEAD" or status in _WITHOUT_BODY
        headers = headers if isinstance(headers, list) else list(headers)
        if not _CHECKED.isdisjoint(dict(headers)):
            headers = self._kept_headers(status, headers, [header for header in headers if header[0] in _CHECKED])
        framing = b""
        if self._body_bytes_left is None and not self._no_body:
            if last:
                framing = b"content-length: %d\r\n" % len(body)
            elif self.version == "1.1":
                self._chunked = True
                framing = b"transfer-encoding: chunked\r\n"
            else:
                self._until_close = True
                self.reusable = False
        if not self.reusable or not self.body_complete or (transport := self._transport) is None or transport.closing:
            self.reusable = False  # also after a response that begins before the request's end: do not read the rest
            framing += b"connection: close\r\n"
        elif self.version == "1.0":
            framing += b"connection: keep-alive\r\n"
        head = _head(status, headers, framing + self.more_lines)
        # One whole piece is most responses: `_framed` would find that it needs no framing.
        is_whole = last and (framing[:15] == b"content-length:" or self._body_bytes_left == len(body))
        data = head + (body if is_whole and not self._no_body else self._framed(body, last=last))
        self._head = None
        self.started = self.answered = True
        return data

    def _kept_headers(self, status: int, headers: Headers, checked: Headers) -> Headers:
        """Return the application's headers without those that the server sets itself."""
        dropped, drops_any = _SET_BY_SERVER, False
        for name, value in checked:
            if name != b"content-length":
                drops_any = True
                if name == b"connection" and value.lower() == b"close":
                    self.reusable = False
                continue
            if self._body_bytes_left is not None:
                raise ValueError("the response has more than one content-length")
            self._body_bytes_left = int(value)
            if status == 204:
                dropped, drops_any = _CHECKED, True  # RFC 9110, section 8.6
        return [header for header in headers if header[0] not in dropped] if drops_any else headers


_SCOPE = "cortex.scope"
_NO_HEADERS: Headers = []
_AFTER_THE_END = "send after the end of the response"
_SET_BY_SERVER = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date"})
_CHECKED = _SET_BY_SERVER | {b"content-length"}
_WITHOUT_BODY = frozenset({204, 304})


def _head(status: int, headers: Headers, more: bytes) -> bytes:
    """Return the status line and headers, to the empty line. Raises ValueError if a header contains CR or LF."""
    global _date_made, _date_value
    lines = b"\r\n".join([*map(_LINE, headers), b""])
    count = len(headers)
    if lines.count(b"\n") != count or lines.count(b"\r") != count:
        raise ValueError("a response header contains a line end")
    now = int(time.time())
    if now != _date_made:
        _date_made, _date_value = now, formatdate(now, usegmt=True).encode()
    line = _status_lines[status] if status in _status_lines else _status_line(status)
    return b"%b%bdate: %b\r\n%b\r\n" % (line, lines, _date_value, more)


_LINE = b": ".join  # of name and value
_date_made = 0
_date_value = b""
"""The time as an IMF-fixdate (RFC 9110, section 5.6.7); formatted once a second."""


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    line = _status_lines[status] = b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())
    return line


_status_lines: dict[int, bytes] = {}


def _origin_form(target: bytes) -> bytes:
    """Return path and query of a request target. Proxies send the absolute form (RFC 9112, section 3.2.2)."""
    parts = _ABSOLUTE_FORM.match(target)
    if parts is None:
        return target
    rest = target[parts.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


_ABSOLUTE_FORM = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
