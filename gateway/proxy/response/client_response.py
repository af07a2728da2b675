"""The response that one client receives: what has been sent so far, and what may still be sent. ASGI.

It does not know where the bytes come from, which upstream was chosen, or what an error means.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from gateway.asgi import DirectExchange, Flow, Headers, Send
from gateway.http import sse

__all__ = ["ClientGone", "ClientResponse", "Head"]

Head = Callable[[], tuple[int, Headers]]
"""Returns status and headers; called when they are about to be sent."""


class ClientGone(Exception):
    """The client disconnected. There is no response to send and nothing to retry."""


class ClientResponse:
    """One response to one client. Two tasks may write to it, but never at the same time.

    `started` means that status and headers were sent. `committed` means that bytes of an upstream's answer were sent:
    from then on no other upstream can take over. Methods that send raise `ClientGone` if the client has disconnected.

    Attributes:
        exchange: The server's own exchange, if pieces may be sent by its pump; see `carry`.
    """

    __slots__ = (
        "_keepalive_sent",
        "_send",
        "_tail",
        "_writing",
        "bytes_sent",
        "committed",
        "ended",
        "ending",
        "exchange",
        "first_write_at",
        "is_writing_terminator",
        "keepalive_bytes",
        "started",
        "status",
        "terminator_sent",
    )

    def __init__(self, send: Send, exchange: DirectExchange | None = None) -> None:
        self._send = send
        self.exchange = exchange
        self._tail = b""
        self._writing = False
        self._keepalive_sent: trio.Event | None = None
        self.started = False
        self.committed = False
        self.ending = False
        self.ended = False
        self.terminator_sent = False
        self.is_writing_terminator = False
        """Whether the stream's own terminator was sent. OpenAI's SDKs disconnect at `[DONE]`, before the body ends."""
        self.status = 0
        self.bytes_sent = 0
        self.keepalive_bytes = sse.KEEP_ALIVE
        self.first_write_at: float | None = None
        """When the first bytes of an upstream's answer had been sent, by Trio's clock."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers. The server may delay them until the first bytes of the body, and send both at once.

        Raises:
            ClientGone: As every method that sends.
        """
        self.started = True
        self.status = status
        if self.exchange is not None:
            self.exchange.start_response(status, headers)
        else:
            await self._send_message({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send a piece of the body. Returns when the server has taken it: that is the backpressure."""
        if self._keepalive_sent is not None:
            await self._keepalive_sent.wait()
        self._writing = True
        self._tail = data[-3:] if len(data) >= 3 else (self._tail + data)[-3:]
        self.bytes_sent += len(data)
        try:
            if self.exchange is not None:
                await self.exchange.send_body(data, last=False)
            else:
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
            if self.first_write_at is None:
                self.first_write_at = trio.current_time()
        except OSError as error:
            raise ClientGone from error
        finally:
            self._writing = False

    @property
    def is_sending_keepalive(self) -> bool:
        """Whether a keep-alive is on its way: a piece must wait until it was sent."""
        return self._keepalive_sent is not None

    def count(self, data: bytes) -> None:
        """A pump sends this piece of the body."""
        self._tail = data[-3:] if len(data) >= 3 else (self._tail + data)[-3:]
        self.bytes_sent += len(data)

    async def carry(self, source: int, flow: Flow) -> None:
        """Have the server's pump send what `flow` makes of the bytes from `source`; see `DirectExchange.carry`.

        Returns once the client has taken every piece. The flow calls `count` for each.
        """
        if self.exchange is None:
            raise RuntimeError("the server has no pump")
        try:
            await self.exchange.carry(source, flow)
            self._writing = True
            await self.exchange.flush()
        except OSError as error:
            raise ClientGone from error
        finally:
            self._writing = False

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body, which may be empty."""
        if self._keepalive_sent is not None:
            await self._keepalive_sent.wait()
        self.bytes_sent += len(data)
        self.ending = True
        try:
            if self.exchange is not None:
                await self.exchange.send_body(data, last=True)
            else:
                await self._send({"type": "http.response.body", "body": data, "more_body": False})
        except OSError as error:
            if not self.terminator_sent:
                raise ClientGone from error
        self.ended = True

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response. No keep-alive can get into it."""
        self.ending = True
        if self.exchange is None or self._keepalive_sent is not None:
            await self.start(status, headers)
            await self.end(body)
            return
        self.started, self.status = True, status
        self.bytes_sent += len(body)
        try:
            if (rest := self.exchange.respond(status, headers, body)) is not None:
                await rest
        except OSError as error:
            raise ClientGone from error
        self.ended = True

    async def send_keepalive(self, head: Head, comment: str | None = None) -> None:
        """Send a keep-alive comment, and the head first if it was not sent. Do nothing if a comment would do harm.

        A `write` during this call waits until the comment was sent, so that a comment is never split. `comment` is its
        text; None for the usual one.
        """
        if self._writing or self.ending or self.terminator_sent or not self.between_events:
            return
        self._keepalive_sent = sent = trio.Event()
        try:
            if not self.started:
                await self.start(*head())
            data = self.keepalive_bytes if comment is None else sse.with_comment(self.keepalive_bytes, comment)
            self.bytes_sent += len(data)
            await self._send_message({"type": "http.response.body", "body": data, "more_body": True})
        finally:
            self._keepalive_sent = None
            sent.set()

    async def end_with_error(self, event: bytes) -> None:
        """End a stream with an error event. An event that was sent in part is ended first, so that they do not join."""
        blank_line = b"" if self.between_events else b"\n\n"
        await self.end(blank_line + event)

    @property
    def between_events(self) -> bool:
        """Whether the bytes sent so far do not end inside an event."""
        return not self._tail or sse.ends_an_event(self._tail)

    async def _send_message(self, message: dict[str, object]) -> None:
        try:
            await self._send(message)
        except OSError as error:
            raise ClientGone from error
