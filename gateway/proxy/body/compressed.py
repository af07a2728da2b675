"""Request bodies with a content coding: decoded while they arrive, large ones outside the event loop."""

from __future__ import annotations

import trio

from gateway.asgi import Headers, Message, Receive
from gateway.errors import MalformedRequest, UnsupportedEncoding, body_too_large
from gateway.http.content_coding import CODINGS, ContentDecoder, MalformedContent, coding_in

__all__ = ["CompressedBody", "coding_of"]

INLINE_BYTES = 64 * 1024  # decoded in the event loop, which takes 0.2 ms; most bodies are smaller
THREAD_BYTES = 4 * 1024**2  # decoded in a thread at a time: 10 ms

_threads = trio.CapacityLimiter(2)


def coding_of(headers: Headers) -> str | None:
    """The content coding of a request's body, or None. Raises UnsupportedEncoding."""
    values = [value for name, value in headers if name == b"content-encoding"]
    if not values:
        return None
    try:
        return coding_in(values)
    except ValueError as error:
        raise UnsupportedEncoding(
            f"this gateway does not accept the content-encoding '{error}': send the body uncompressed, or with one of "
            + ", ".join(CODINGS)
        ) from error


class CompressedBody:
    """An ASGI `receive` for a compressed body: the same messages with decoded bytes.

    Its reader limits the decoded size; this limits the size that arrives.

    Args:
        receive: The server's.
        coding: The body's content coding.
        limit_bytes: Of the body as it arrives.
    """

    __slots__ = ("_arrived_bytes", "_coding", "_decoder", "_ended", "_limit_bytes", "_receive")

    def __init__(self, receive: Receive, coding: str, limit_bytes: int) -> None:
        self._receive = receive
        self._coding = coding
        self._decoder = ContentDecoder(coding)
        self._limit_bytes = limit_bytes
        self._arrived_bytes = 0
        self._ended = False

    async def receive(self) -> Message:
        """The next piece of the decoded body, which may be empty, or the disconnect.

        Raises:
            MalformedRequest: The body is not in its coding.
            BodyTooLarge: More has arrived than the limit allows.
        """
        decoder, data = self._decoder, b""
        if not decoder.has_more and not self._ended:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            data = message.get("body", b"")
            self._ended = not message.get("more_body", False)
            self._arrived_bytes += len(data)
            if self._arrived_bytes > self._limit_bytes:
                raise body_too_large(self._limit_bytes)
        try:
            if decoder.has_more:
                piece = await trio.to_thread.run_sync(decoder.decode, b"", THREAD_BYTES, limiter=_threads)
            else:
                piece = decoder.decode(data, INLINE_BYTES)
            is_last = self._ended and not decoder.has_more
            if is_last:
                decoder.finish()
        except MalformedContent as error:
            raise MalformedRequest(f"the request body is {error}") from error
        return {"type": "http.request", "body": piece, "more_body": not is_last}
