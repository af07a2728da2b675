"""Usage that we ask for on our own account: the request for it, and its removal from what the client gets. No I/O.

A stream of OpenAI's ends with usage only if `stream_options.include_usage` says so, and most clients do not say it.
Where the neuron knows the option (`ask_usage`) we do, by splicing, and take the chunk that comes of it out again: a
client that did not ask may break on one without choices (lessons.md). Every other byte passes as it came.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from gateway import errors
from gateway.http import sse

__all__ = ["Edit", "UsageStripper", "asking_for_usage", "edited"]

HELD_LIMIT_BYTES = 16 * 1024  # of an event whose end has not come: a usage chunk has a few hundred bytes


# Asking ...............................................................................................................


class Edit(NamedTuple):
    """What to put in the place of the bytes from `start` to `end` of a body."""

    start: int
    end: int
    text: bytes


def edited(body: bytes, *edits: Edit) -> bytes:
    """The body with these edits made, which do not overlap; every other byte stays."""
    pieces: list[bytes] = []
    at = 0
    for start, end, text in sorted(edits):
        pieces += (body[at:start], text)
        at = end
    return b"".join((*pieces, body[at:]))


def asking_for_usage(body: bytes) -> Edit | None:
    """What makes a stream's request ask for usage.

    Args:
        body: A JSON object that is not empty, as `rewrite.locate` has found.

    Returns:
        None if the client has decided about `include_usage` itself, or says something about `stream_options` that is
        for the engine to judge.
    """
    try:
        said = bytes(_decoder.decode(body).stream_options)  # 18 us for 20 KB; a search for the key's bytes takes 20
        options = msgspec.json.decode(said) if said else {}
    except (msgspec.DecodeError, RecursionError):
        return None
    if not said:
        inside = body.index(b"{") + 1
        return Edit(inside, inside, b'"stream_options":{%b},' % _WISH)
    places = list(_KEY.finditer(body))
    if len(places) != 1:
        return None  # there more than once, or spelled in escapes
    start = places[0].end()
    if options is None:
        return Edit(start, start + len(said), b"{%b}" % _WISH)
    if isinstance(options, dict) and "include_usage" not in options:
        return Edit(start + 1, start + 1, _WISH + (b"," if options else b""))
    return None


class _Fields(msgspec.Struct):
    stream_options: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(_Fields)
_KEY = re.compile(rb'"stream_options"[ \t\r\n]*:[ \t\r\n]*')  # never part of a string: quotes in one are escaped
_WISH = b'"include_usage":true'


# Removing .............................................................................................................


class _Chunk(msgspec.Struct):
    choices: object = None
    usage: object = None


_chunk_decoder = msgspec.json.Decoder(_Chunk)
# Two line ends in a row, CRLF being one. Atomic: the CR of a CRLF must not be taken for a line end of its own.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LONGEST_BLANK_LINE = 4
_ENDS = (b"\n\n", b"\r\n\r\n")


class UsageStripper:
    """Takes a stream's usage chunk out, however the network has cut it. A `dialects.Translation`.

    A chunk that ends with an event and has no usage passes untouched. What has come of an event that may turn out to be
    the usage chunk waits for its end; nobody can use half an event.
    """

    __slots__ = ("_held", "_pending_lf", "_tail")

    def __init__(self) -> None:
        self._held = b""
        self._tail = b""  # of an event that is too long to be ours, and passes as it comes; empty between events
        self._pending_lf: bytes | None = None  # an event ended in a CR: what becomes of the LF, should one follow

    error: errors.GatewayError | None = None
    keep_alive = sse.KEEP_ALIVE

    def feed(self, chunk: bytes) -> bytes:
        """The chunk without what we asked for."""
        if self._pending_lf is not None:
            return self._end_crlf(chunk)
        if not self._held and not self._tail and chunk.endswith(_ENDS) and not _says_usage(chunk):
            return chunk
        return self._pass_long_event(chunk) if self._tail else self._take_apart(chunk)

    def finish(self) -> bytes:
        """What was held; an engine may save the blank line behind its last event."""
        held, self._held = self._held, b""
        return b"" if _is_ours(held) else held

    def fail(self, error: errors.GatewayError) -> bytes:
        """The error as an event; half an event that is held is of no use to anybody."""
        return sse.write(errors.envelope(error))

    def whole(self, body: bytes) -> bytes:
        """An answer that is no stream has its usage by right."""
        return body

    def _end_crlf(self, chunk: bytes) -> bytes:
        """An LF behind an event that ended in a CR is still that event's, and passes or does not as it did."""
        lf, self._pending_lf = self._pending_lf or b"", None
        if not chunk.startswith(b"\n"):
            return self._take_apart(chunk)
        return lf + self._take_apart(chunk[1:])

    def _take_apart(self, chunk: bytes) -> bytes:
        text = self._held + chunk
        kept: list[bytes] = []
        start = 0
        is_ours = False
        for blank_line in _BLANK_LINE.finditer(text):
            event = text[start : blank_line.end()]
            start = blank_line.end()
            is_ours = _is_ours(event)
            if not is_ours:
                kept.append(event)
        self._held = text[start:]
        if start and not self._held and text.endswith(b"\r"):
            self._pending_lf = b"" if is_ours else b"\n"
        if len(self._held) > HELD_LIMIT_BYTES:
            kept.append(self._held)
            self._tail, self._held = self._held[1 - _LONGEST_BLANK_LINE :], b""
        return b"".join(kept)

    def _pass_long_event(self, chunk: bytes) -> bytes:
        text = self._tail + chunk
        end = _BLANK_LINE.search(text)
        if end is None:
            self._tail = text[1 - _LONGEST_BLANK_LINE :]
            return chunk
        passed = end.end() - len(self._tail)
        self._tail = b""
        if passed == len(chunk) and chunk.endswith(b"\r"):
            self._pending_lf = b"\n"
        return chunk[:passed] + self._take_apart(chunk[passed:])


def _is_ours(event: bytes) -> bool:
    """Whether it is the chunk that `include_usage` adds: usage, and no choices."""
    if not _says_usage(event):
        return False
    found = sse.Reader().feed(event + b"\n\n")
    if len(found) != 1:
        return False
    try:
        chunk = _chunk_decoder.decode(found[0].data)
    except (msgspec.DecodeError, RecursionError):
        return False
    return chunk.choices == [] and isinstance(chunk.usage, dict)


def _says_usage(data: bytes) -> bool:
    """Whether a `usage` is there that is not null; OpenAI puts a null one on every other chunk of such a stream."""
    return data.count(b'"usage"') > data.count(b'"usage":null')
