"""A neuron's response as it comes in: llhttp (through `httptools`) parses, and we keep to what it refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httptools

from gateway.asgi import Headers
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse

__all__ = ["ClosedBeforeResponse", "UpstreamResponse"]

HEADER_LIMIT_BYTES = 64 * 1024  # contract section 13; also for trailers

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class ClosedBeforeResponse(Exception):
    """The connection ended before the first byte of a response."""


class _HeadTooLong(Exception):
    """Raised inside llhttp's callback, which can only be left by an exception."""


class _NotUndone(Exception):
    """As above: the body is packed in a way that we would have to undo, as the header that says so goes no further."""


def _too_long() -> UpstreamMalformedResponse:
    return UpstreamMalformedResponse(f"the neuron sent more than {HEADER_LIMIT_BYTES} bytes of headers or trailers")


class UpstreamResponse:
    """One response as it comes in. Owned by its `Exchange`; of no use after that is left.

    llhttp calls the `on_` methods while it is fed; nobody else should.
    """

    __slots__ = (
        "_parser",
        "_pieces",
        "_read",
        "_reason_bytes",
        "_section_bytes",
        "complete",
        "framed",
        "headers",
        "listener",
        "reusable",
        "status",
    )

    def __init__(self, read: Callable[[], Awaitable[bytes]]) -> None:
        self._read = read  # bytes as they come, `b""` at their end
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
            data = await self._read()
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
            ClosedBeforeResponse: Not a byte came.
            UpstreamConnectionError, UpstreamMalformedResponse: As for `receive`.
        """
        heard = False
        while not self.status:
            data = await self._read()
            if data:
                heard = True
                self._feed(data)
            elif heard:
                raise UpstreamConnectionError("the neuron broke off in the middle of its answer")
            else:
                raise ClosedBeforeResponse

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
