"""Ask the upstream for token usage that the client did not ask for, and drop the usage chunk from its stream. No I/O.

An OpenAI stream ends with usage only if the request sets `stream_options.include_usage`, and most clients do not set
it. Where the engine knows the option (`ask_usage`), the gateway adds it to the request and drops the chunk that comes
of it: a client that did not ask may fail on a chunk without choices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from gateway import errors
from gateway.dialects.chat.assemble import CompletionAssembler
from gateway.dialects.chat_chunks import Chunk
from gateway.dialects.large_bodies.spliced_body import Edit
from gateway.http import sse

__all__ = ["UsageStripper", "asking_for_usage"]

HELD_LIMIT_BYTES = 16 * 1024  # of an unfinished event: a usage chunk has a few hundred bytes


# Asking ...............................................................................................................


def asking_for_usage(body: bytes) -> Edit | None:
    """The edit that makes a streaming request ask for usage.

    Args:
        body: A JSON object with at least one member, as `json_splice.locate` has checked.

    Returns:
        None if the client has set `include_usage` itself, or if `stream_options` is something the engine must judge.
    """
    try:
        text = bytes(_decoder.decode(body).stream_options)  # 18 us for 20 KB; a search for the key takes 20
        options = msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, RecursionError):
        return None
    if not text:
        start = body.index(b"{") + 1
        return Edit(start, start, b'"stream_options":{%b},' % _INCLUDE_USAGE)
    places = list(_KEY.finditer(body))
    if len(places) != 1:
        return None  # there more than once, or spelled in escapes
    start = places[0].end()
    if options is None:
        return Edit(start, start + len(text), b"{%b}" % _INCLUDE_USAGE)
    if isinstance(options, dict) and "include_usage" not in options:
        return Edit(start + 1, start + 1, _INCLUDE_USAGE + (b"," if options else b""))
    return None


class _Fields(msgspec.Struct):
    stream_options: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(_Fields)
_KEY = re.compile(rb'"stream_options"[ \t\r\n]*:[ \t\r\n]*')  # cannot match inside a string: quotes are escaped there
_INCLUDE_USAGE = b'"include_usage":true'


# Removing .............................................................................................................


class UsageStripper:
    """Drops the usage chunk from a stream. Every other byte passes as it came. A `dialects.Translation`."""

    __slots__ = ("_dropped_at_cr",)

    error: errors.GatewayError | None = None
    keepalive_bytes = sse.KEEP_ALIVE
    passes_text = True
    converts = False
    assembler = CompletionAssembler
    held_limit_bytes = HELD_LIMIT_BYTES

    def __init__(self) -> None:
        self._dropped_at_cr = False

    def feed(self, events: Sequence[sse.Event]) -> bytes:
        """The events without the usage chunk."""
        if len(events) == 1 and not self._dropped_at_cr and not _is_usage_chunk(events[0]):
            return events[0].raw
        kept: list[bytes] = []
        for event in events:
            if _is_usage_chunk(event):
                self._dropped_at_cr = event.raw.endswith(b"\r")
                continue
            if not (self._dropped_at_cr and event.raw == b"\n"):  # the LF of the CRLF that ended the dropped event
                kept.append(event.raw)
            self._dropped_at_cr = False
        return b"".join(kept)

    def finish(self) -> bytes:
        """Nothing: `feed` holds nothing back."""
        return b""

    def fail(self, error: errors.GatewayError) -> bytes:
        """The error as an event."""
        return sse.write(errors.envelope(error))

    def whole(self, body: bytes) -> bytes:
        """The same body: an answer that is not a stream always has usage."""
        return body

    def stream_of(self, body: bytes) -> bytes:
        """The same body."""
        return body


def _is_usage_chunk(event: sse.Event) -> bool:
    """Whether it is the chunk that `include_usage` adds: usage, and no choices."""
    data = event.data
    # OpenAI puts `"usage":null` on every other chunk of such a stream.
    if data is None or not event.is_whole or data.count(b'"usage"') == data.count(b'"usage":null'):
        return False
    try:
        chunk = _chunk_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return chunk.choices == [] and isinstance(chunk.usage, dict)


_chunk_decoder = msgspec.json.Decoder(Chunk)
