"""One HTTP/1.1 exchange: a request that was read, and the response as ASGI wants it sent. No sockets, no parser."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol
from urllib.parse import unquote_to_bytes

from gateway.asgi import Headers, Message, Scope
from gateway.errors import envelope_of

__all__ = ["ClientDisconnected", "RejectedRequest", "ServerExchange", "ServerTransport", "rejection_bytes"]


class ClientDisconnected(OSError):
    """Nobody to send to any more (ASGI 2.4: `send` raises an OSError then)."""


class RejectedRequest(Exception):
    """The bytes are no request we serve: this is the answer, and then the connection is closed."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


def rejection_bytes(refusal: RejectedRequest) -> bytes:
    """The whole response: OpenAI's error envelope, and `connection: close`."""
    type_ = "invalid_request_error" if refusal.status < 500 else "api_error"
    body = envelope_of(refusal.message, type_, refusal.code)
    headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
    return _head(refusal.status, headers, b"connection: close\r\n") + body


class ServerTransport(Protocol):
    """The connection an exchange is served on."""

    @property
    def closing(self) -> bool:
        """Whether this exchange is to be the last one here."""
        ...

    async def write(self, data: bytes) -> None:
        """Send it all, or raise ClientDisconnected."""
        ...

    async def read_more(self) -> bool:
        """Feed the reader with what comes; False if nothing will."""
        ...

    async def give_way(self) -> None:
        """Let others run, if it is time to."""
        ...


class ServerExchange:
    """One request and its response: what the ASGI callables `receive` and `send` stand for."""

    __slots__ = (
        "_chunked", "_end_reported", "_head", "_no_body", "_owed_bytes", "_until_close", "_wire", "answered", "body",
        "body_complete", "complete", "expects_continue", "headers", "headers_complete", "method", "refusal", "reusable",
        "started", "target", "version",
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
        self.refusal: RejectedRequest | None = None
        self.reusable = False  # whether the connection may serve another request after this one
        self.started = False  # the response's first byte is out
        self.answered = False  # there is an answer the client should get to read
        self.complete = False  # the response's last byte is out
        self._end_reported = False
        self._head: Message | None = None
        self._chunked = False
        self._no_body = False
        self._owed_bytes: int | None = None  # of the content-length the application gave
        self._until_close = False
        self._wire: ServerTransport | None = None

    def attach(self, wire: ServerTransport) -> None:
        """Serve it on this connection."""
        self._wire = wire

    @property
    def looks_whole_if_closed(self) -> bool:
        """Whether a client would take what it has so far for all of it, were the connection closed in order."""
        return self._until_close and self.started and not self.complete

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
        if self.expects_continue and not self.body_complete and not self.started:
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
        """Head and first bytes leave together.

        Cancelled while it waits for the client to take bytes, it leaves the connection of no more use. A cancellation
        that comes after the bytes have left is noticed there, so that what was sent is always whole messages.

        Raises:
            ClientDisconnected: (an OSError) There is nobody any more, or the request turned out to be none.
            RuntimeError, ValueError: The application breaks the rules; nothing of this message was sent.
        """
        wire = self._wire
        if wire is None or self.complete:
            raise RuntimeError("send after the end of the response")
        if message["type"] == "http.response.start":
            self._head = message
            return
        if self.refusal is not None and not self.started:
            raise ClientDisconnected("the request's body is malformed")
        body: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        data = self._framed(body, last=last) if self._head is None else self._begin(self._head, body, last=last)
        reusable, self.reusable = self.reusable, False
        if data:
            await wire.write(data)
        self.reusable = reusable
        if last:
            self.complete = True
        else:
            await wire.give_way()

    def _framed(self, body: bytes, *, last: bool) -> bytes:
        if self._no_body:
            return b""
        if not self._chunked:
            if self._owed_bytes is not None:
                self._pay(len(body), last=last)
            return body
        if not body:
            return b"0\r\n\r\n" if last else b""
        return b"%x\r\n%b\r\n%b" % (len(body), body, b"0\r\n\r\n" if last else b"")

    def _pay(self, paid_bytes: int, *, last: bool) -> None:
        """Hold the application to its content-length: a client would read the difference into the next response."""
        owed_bytes = (self._owed_bytes or 0) - paid_bytes
        if owed_bytes < 0 or (last and owed_bytes):
            raise RuntimeError("the response's body is not as long as its content-length says")
        self._owed_bytes = owed_bytes

    def _begin(self, start: Message, body: bytes, *, last: bool) -> bytes:
        """Decide on the framing, and return the head with the first of the body."""
        status: int = start["status"]
        self._no_body = self.method == b"HEAD" or status in {204, 304}
        headers = self._own_headers(status, start.get("headers", ()))
        head = _head(status, headers, self._framing(body, last=last))
        data = head + self._framed(body, last=last)
        self._head = None
        self.started = self.answered = True
        return data

    def _own_headers(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """The application's headers, less those that are ours to decide on."""
        self._owed_bytes = None
        kept: Headers = []
        for header in headers:
            name = header[0]
            if name in _OURS:
                if name == b"connection" and header[1].lower() == b"close":
                    self.reusable = False
                continue
            if name == b"content-length":
                if self._owed_bytes is not None:
                    raise ValueError("a response has one content-length")
                self._owed_bytes = int(header[1])
                if status == 204:
                    continue  # RFC 9110, 8.6
            kept.append(header)
        return kept

    def _framing(self, body: bytes, *, last: bool) -> bytes:
        framing = b""
        if self._owed_bytes is None and not self._no_body:
            if last:
                framing = b"content-length: %d\r\n" % len(body)
            elif self.version == "1.1":
                self._chunked = True
                framing = b"transfer-encoding: chunked\r\n"
            else:
                self._until_close = True
                self.reusable = False
        if not self.reusable or not self.body_complete or (self._wire is not None and self._wire.closing):
            self.reusable = False  # an answer before the end of the request: the rest of it is not worth reading
            return framing + b"connection: close\r\n"
        return framing + b"connection: keep-alive\r\n" if self.version == "1.0" else framing


_OURS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date"})


def _head(status: int, headers: Headers, more: bytes) -> bytes:
    """Status line and headers to the blank line. Raises ValueError for a header that would end early."""
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
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
    if target.startswith(b"/"):
        return target
    parts = _ABSOLUTE_FORM.match(target)
    if parts is None:
        return target
    rest = target[parts.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


_ABSOLUTE_FORM = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


def _decoded(raw_path: bytes) -> str:
    if b"%" not in raw_path:
        return raw_path.decode("utf-8", "replace")
    return unquote_to_bytes(raw_path).decode("utf-8", "replace")
