"""A neuron's response: bytes to status, headers and body, with llhttp (`httptools`). Rejects what llhttp rejects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httptools
import trio

from gateway.asgi import Headers
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http.content_coding import ContentDecoder, MalformedContent, coding_in
from gateway.http.sockets import read

__all__ = ["ClosedBeforeResponse", "ResponseParser", "UpstreamResponse"]

HEADER_LIMIT_BYTES = 64 * 1024  # of a response's head; also of its trailers, and of one chunk's extensions

DECODED_PIECE_BYTES = 256 * 1024  # returned at a time: a read of 64 KiB may decode to a thousand times as much

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_WITHOUT_BODY = frozenset({204, 304})


class ClosedBeforeResponse(Exception):
    """The neuron closed the connection before the first byte of a response."""


class _HeadTooLong(Exception):
    """Raised in a callback, because only an exception stops llhttp."""


class _UnsupportedTransferEncoding(Exception):
    """Raised in a callback: the body is compressed in transit, and the header that says so is not passed on."""


class _AfterTheEnd(Exception):
    """Raised in a callback: what follows the complete response is not parsed."""


_CUT_SHORT = "the neuron closed the connection in the middle of its response"


def _too_long() -> UpstreamMalformedResponse:
    return UpstreamMalformedResponse(
        f"the neuron's response has more than {HEADER_LIMIT_BYTES} bytes of headers or trailers"
    )


class UpstreamResponse:
    """One response while it arrives. Valid until its `UpstreamExchange` is left.

    `ResponseParser` fills it: `pieces` (of the body, not returned yet), `reason_bytes` (of the status line's reason
    phrase), `section_bytes` (of a head, a trailer or chunk extensions: received since the last body byte).
    """

    __slots__ = (
        "_decoder", "_failure", "_parser", "_stream", "complete", "descriptor", "framed", "headers", "pieces",
        "reason_bytes", "reusable", "section_bytes", "status",
    )  # fmt: skip

    def __init__(self, stream: trio.abc.Stream, descriptor: int | None, parser: ResponseParser) -> None:
        self._stream = stream
        self.descriptor = descriptor  # of the stream, if it is a plain socket
        self._parser = parser
        self.pieces: list[bytes] = []
        self._decoder: ContentDecoder | None = None
        self._failure: UpstreamMalformedResponse | None = None  # to be raised once the bytes before it were returned
        self.reason_bytes = 0
        self.section_bytes = 0
        self.status = 0  # of the final response; 0 until its head has arrived
        self.headers: Headers = []
        self.framed = False  # whether a length or chunks say where the body ends
        self.complete = False
        self.reusable = False

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header (`name` in lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def decode_body(self) -> None:
        """Have `receive` return the body without its content coding; the headers that describe the coded body go.

        For a body that must be read, before its first piece is received.

        Raises:
            UpstreamMalformedResponse: The body has a coding that cannot be decoded.
        """
        try:
            coding = coding_in([value for name, value in self.headers if name == b"content-encoding"])
        except ValueError as error:
            raise UpstreamMalformedResponse(
                f"the neuron's response has the content-encoding '{error}', although the request asked for none"
            ) from error
        if coding is not None:
            self._decoder = ContentDecoder(coding)
            coded = {b"content-encoding", b"content-length"}
            self.headers = [header for header in self.headers if header[0] not in coded]

    def receive(self) -> Awaitable[bytes]:
        """Return the next piece of the body as it arrived; `b""` after a complete body.

        Raises:
            UpstreamConnectionError: The neuron closed the connection before the end of the body.
            UpstreamMalformedResponse: The chunks or trailers are not valid HTTP/1.1, or the coding is broken.
        """
        # Not a coroutine itself, to spare each chunk a frame.
        return self._receive_raw() if self._decoder is None else self._receive_decoded(self._decoder)

    def receive_now(self) -> bytes | None:
        """What `receive` returns, if it need not wait for it, and all of a complete body; else None."""
        pieces = self.pieces
        if self._decoder is not None or not (len(pieces) == 1 or (pieces and self.complete)):
            return None
        first = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return first

    @property
    def can_be_fed(self) -> bool:
        """Whether `feed` may take the next bytes, which are read from `descriptor`."""
        return not (
            self.descriptor is None or self.pieces or self.complete or self._failure or self._decoder is not None
        )

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes that were read from `descriptor` in place of `receive`; return the piece of the body in them.

        None if this is over: the response is complete, or not valid. `receive` then returns the rest, or raises.
        """
        try:
            self._parse(data)
        except UpstreamMalformedResponse as error:
            self._failure = error
            return None
        if self.complete:
            return None
        pieces = self.pieces
        return pieces.pop() if len(pieces) == 1 else self._take()

    async def _receive_decoded(self, decoder: ContentDecoder) -> bytes:
        try:
            while True:
                if decoder.has_more:
                    await trio.lowlevel.checkpoint()  # a small body may unpack to many pieces
                    piece, ended = decoder.decode(b"", DECODED_PIECE_BYTES), False
                else:
                    data = await self._receive_raw()
                    piece, ended = decoder.decode(data, DECODED_PIECE_BYTES), not data
                if piece:
                    return piece
                if ended:
                    decoder.finish()
                    return b""
        except MalformedContent as error:
            raise UpstreamMalformedResponse(f"the body of the neuron's response is {error}") from error

    async def _receive_raw(self) -> bytes:
        while not self.pieces:
            if self._failure is not None:
                raise self._failure
            if self.complete:
                return b""
            data = await read(self._stream, self.descriptor)
            if data:
                self._feed(data)
            elif self.framed:
                raise UpstreamConnectionError(_CUT_SHORT)
            else:
                self.complete = (
                    True  # without a length, the end of the connection ends the body (RFC 9112, section 6.3)
                )
        return self._take()

    def _take(self) -> bytes:
        pieces, self.pieces = self.pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read_head(self) -> None:
        """Wait for status and headers of the final response; 1xx responses are skipped.

        Raises:
            ClosedBeforeResponse: The neuron closed the connection before the first byte.
            UpstreamConnectionError, UpstreamMalformedResponse: As for `receive`.
        """
        while not self.status:
            self.take_head(await read(self._stream, self.descriptor))

    def take_head(self, data: bytes) -> None:
        """Take what was read in place of `read_head`, which tells what this raises; `b""` at EOF."""
        if data:
            self._feed(data)
        elif self.section_bytes:
            raise UpstreamConnectionError(_CUT_SHORT)
        else:
            raise ClosedBeforeResponse

    def _feed(self, data: bytes) -> None:
        """Parse `data`. An error after valid bytes of the body is kept until those have been received."""
        try:
            self._parse(data)
        except UpstreamMalformedResponse as error:
            if not self.pieces:
                raise
            self._failure = error

    def _parse(self, data: bytes) -> None:
        self.section_bytes += len(data)
        in_body_bytes = self.section_bytes if self.status else 0
        try:
            self._parser.feed(data)
        except httptools.HttpParserUpgrade:
            raise UpstreamMalformedResponse(
                "the neuron's response switches to another protocol (101), which the request did not ask for"
            ) from None
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadTooLong):
                raise _too_long() from None
            if isinstance(error.__context__, _UnsupportedTransferEncoding):
                raise UpstreamMalformedResponse(
                    "the neuron's response has a transfer-encoding other than `chunked`"
                ) from None
            if not self.complete:
                raise UpstreamMalformedResponse(f"the neuron's response is not valid HTTP/1.1: {error}") from error
            self.reusable = False
        # Body bytes reset the count, so these are bytes of a head, trailers, or chunk extensions.
        if self.section_bytes > HEADER_LIMIT_BYTES:
            raise _too_long()
        # A chunk extension that began in an earlier read and ended in this one, before body bytes.
        if in_body_bytes > HEADER_LIMIT_BYTES and in_body_bytes - sum(map(len, self.pieces)) > HEADER_LIMIT_BYTES:
            raise _too_long()

    def head_arrived(self, status: int) -> None:
        """The head of the final response is complete."""
        if self.section_bytes > HEADER_LIMIT_BYTES:
            self._check_head_size()
        framed = status in _WITHOUT_BODY
        for name, value in self.headers:
            if name in _FRAMING:
                framed = True
                if name == b"transfer-encoding" and value.lower() != b"chunked":
                    raise _UnsupportedTransferEncoding
        self.status = status
        self.framed = framed
        self.section_bytes = 0

    def _check_head_size(self) -> None:
        """Compute the exact size of the head; `section_bytes` may include body bytes that arrived with it."""
        head_bytes = len(b"HTTP/1.1 200 \r\n\r\n") + self.reason_bytes
        head_bytes += sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)
        if head_bytes > HEADER_LIMIT_BYTES:
            raise _HeadTooLong


class ResponseParser:
    """Parses the responses of one connection, one after the other: to make a parser for each costs 4 us.

    The `on_` methods are llhttp's callbacks.

    Attributes:
        feed: Parses bytes. Raises what httptools raises.
        response: The response that arrives.
    """

    __slots__ = ("_llhttp", "feed", "response")

    response: UpstreamResponse

    def __init__(self) -> None:
        self._llhttp = httptools.HttpResponseParser(self)
        self.feed: Callable[[bytes], None] = self._llhttp.feed_data

    def close(self) -> None:
        """The connection is closed after a request: drop what refers to this object, so that no cycle is left."""
        del self._llhttp, self.feed, self.response

    def on_message_begin(self) -> None:
        """A response after the end of this one belongs to no request: drop it, and do not reuse the connection."""
        response = self.response
        if response.complete:
            response.reusable = False
            raise _AfterTheEnd

    def on_status(self, reason: bytes) -> None:
        """A piece of the reason phrase, which counts towards the header limit."""
        self.response.reason_bytes += len(reason)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line. Trailers are dropped."""
        if not self.response.status:
            self.response.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """A head is complete. After a 1xx, another head follows."""
        response, status = self.response, self._llhttp.get_status_code()
        if status < 200:
            response.headers.clear()
            response.reason_bytes = 0
        elif not response.status:
            response.head_arrived(status)

    def on_body(self, data: bytes) -> None:
        """A piece of the body; httptools passes a copy."""
        response = self.response
        response.section_bytes = 0
        response.pieces.append(data)

    def on_message_complete(self) -> None:
        """The end of the response, or of a 1xx."""
        response = self.response
        if response.status:
            response.complete = True
            response.reusable = self._llhttp.should_keep_alive()
