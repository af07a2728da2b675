"""Server-sent events: a reader from bytes to events, and a writer. No I/O.

Format: WHATWG HTML section 9.2 (https://html.spec.whatwg.org/multipage/server-sent-events.html). A line ends in CR, LF
or CRLF. A blank line ends an event. The `data` lines of one event are joined with LF. A line that begins with a colon
is a comment. A byte order mark at the start of the stream is skipped. The network may split a stream anywhere, also
inside a CRLF or a UTF-8 sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["EVENT_LIMIT_BYTES", "KEEP_ALIVE", "Event", "Reader", "ends_an_event", "with_comment", "write"]

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment. Parsers skip it; idle timers of proxies and clients start anew."""

EVENT_LIMIT_BYTES = 8 * 1024 * 1024  # a base64 image in one delta has a few MiB; the limit protects our memory

# Two line ends in a row. Atomic groups, so that a CRLF is never read as two line ends.
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_EVENT_END_SUFFIXES = (b"\n\n", b"\r\r", b"\n\r", b"\n\r\n", b"\r\r\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CR = 0x0D  # Python finds a number in bytes three times as fast as a byte


class Event(NamedTuple):
    """Everything from the end of one event to the end of the next.

    Attributes:
        data: The joined `data` lines. None if there is none (only comments, `id` or `retry`), or if the event is longer
            than the reader's limit.
        type: The `event` field; None if there is none.
        raw: The exact bytes, comments and blank line included. Over a whole stream the `raw` of all events, and what
            `release_partial` returned, add up to the bytes that were fed.
        is_whole: False if `raw` is only a part of the event: it is over the limit, or the reader released its
            beginning before.
    """

    data: bytes | None
    type: bytes | None = None
    raw: bytes = b""
    is_whole: bool = True


class Reader:
    """Incremental reader of one stream. Each byte is searched once, whatever the size of an event.

    An event is returned with the chunk that completes its blank line. A CR completes it at once; if the next chunk
    begins with the LF of that CRLF, the LF is returned as an event without data.

    An unfinished event longer than `limit_bytes` is returned in pieces with `data` None and `is_whole` False.
    """

    __slots__ = (
        "_last_byte",
        "_limit_bytes",
        "_overlong",
        "_pieces",
        "_released_pieces",
        "_skippable",
        "between_events",
        "partial_bytes",
    )

    def __init__(self, limit_bytes: int = EVENT_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._skippable = _BYTE_ORDER_MARK  # at the start; an LF after a chunk that ends in the CR of a blank line
        self._pieces: list[bytes] = []  # of the unfinished event; joined once, at its end
        self._released_pieces = 0
        self._last_byte = b""
        self._overlong = False
        self.between_events = True
        """Whether no byte of an unfinished event was fed."""
        self.partial_bytes = 0
        """How many bytes of the unfinished event are waiting for its end, released ones included."""

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes, in order."""
        if (
            self.between_events
            and not self._skippable
            and chunk.endswith(b"\n\n")
            and chunk.find(b"\n\n") == len(chunk) - 2
            and _CR not in chunk
        ):
            return [_parse(chunk)]  # one whole event, as most engines send them
        events = []
        start = 0
        if self._skippable == b"\n" and chunk:
            self._skippable = b""
            if chunk.startswith(b"\n"):
                events.append(Event(None, None, b"\n"))
                start = 1
        for end in self._event_ends(chunk):
            events.append(self._complete(chunk[start:end]))
            start = end
        if start < len(chunk):
            rest = chunk[start:]
            if self._skippable == b"\n":
                self._skippable = b""
            self.between_events = False
            self._last_byte = rest[-1:]
            self._pieces.append(rest)
            self.partial_bytes += len(rest)
            if self._overlong or self.partial_bytes > self._limit_bytes:
                self._overlong = True
                events.append(Event(None, None, self.release_partial(), is_whole=False))
                self._pieces.clear()
                self._released_pieces = self.partial_bytes = 0
        return events

    def release_partial(self) -> bytes:
        """The bytes of the unfinished event that were not released yet. Its `raw` will be without them."""
        released = b"".join(self._pieces[self._released_pieces :])
        self._released_pieces = len(self._pieces)
        return released

    def peek(self) -> Event | None:
        """The unfinished event as if its blank line had come; None if there is none, or it is over the limit."""
        if not self._pieces or self._overlong:
            return None
        return _parse(b"".join(self._pieces).removeprefix(self._skippable))

    def end(self) -> Event | None:
        """The stream has ended: the last event, if its blank line is missing. Some engines omit it.

        `is_whole` is False if the event is over the limit.
        """
        return None if self.between_events else self._complete(b"")

    def _event_ends(self, chunk: bytes) -> Iterator[int]:
        """The positions in `chunk` after each blank line."""
        # A blank line across two chunks needs no more than the last byte of the first one: that is a line end or not.
        text = self._last_byte + chunk if self._last_byte else chunk
        offset = len(self._last_byte)
        if _CR in text:
            for match in _EVENT_END.finditer(text):
                yield match.end() - offset
            return
        end = text.find(b"\n\n")  # ten times faster than the pattern
        while end >= 0:
            end += 2
            yield end - offset
            end = text.find(b"\n\n", end)

    def _complete(self, piece: bytes) -> Event:
        """The event that ends with `piece`."""
        is_whole = not (self._overlong or self._released_pieces)
        self._pieces.append(piece)
        block = b"".join(self._pieces)
        event = _parse(block.removeprefix(self._skippable))
        if self._overlong:
            event = Event(None, None, piece, is_whole=False)
        elif is_whole:
            event = event._replace(raw=block)
        else:
            event = event._replace(raw=self.release_partial(), is_whole=False)
        self._pieces.clear()
        self._released_pieces = self.partial_bytes = 0
        self._last_byte = b""
        self._skippable = b"\n" if block.endswith(b"\r") else b""
        self._overlong = False
        self.between_events = True
        return event


def _parse(block: bytes) -> Event:
    """The fields of one event, `raw` being the block."""
    if (
        block.startswith(b"data: ")
        and block.endswith(b"\n\n")
        and block.find(b"\n") == len(block) - 2
        and _CR not in block
    ):
        return Event(block[6:-2], None, block)  # nearly every event there is
    data: list[bytes] = []
    type_: bytes | None = None
    for line in block.splitlines():  # of bytes: at CR, LF and CRLF
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif name == b"event":
            type_ = value.removeprefix(b" ")
    return Event(b"\n".join(data) if data else None, type_, block)


def write(data: bytes, type_: bytes | None = None) -> bytes:
    """One event with one line of data, which JSON always fits in."""
    return b"data: %b\n\n" % data if type_ is None else b"event: %b\ndata: %b\n\n" % (type_, data)


def with_comment(keep_alive: bytes, text: str) -> bytes:
    """A keep-alive that says something: the comment in its place, or before it if it is an event.

    Args:
        keep_alive: `KEEP_ALIVE`, or an event such as a ping.
        text: The comment. Line ends in it become spaces, so that it cannot become anything else.
    """
    comment = b": " + " ".join(text.split()).encode("utf-8", "replace") + b"\n"
    return comment + (b"\n" if keep_alive == KEEP_ALIVE else keep_alive)


def ends_an_event(tail: bytes) -> bool:
    """Whether a stream that ends in `tail` (three bytes are enough) is between two events."""
    return tail.endswith(_EVENT_END_SUFFIXES)
