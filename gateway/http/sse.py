"""Server-sent events, bytes in and events out: an incremental reader and the few things we write. No I/O.

The format is WHATWG HTML section 9.2 (https://html.spec.whatwg.org/multipage/server-sent-events.html): lines end in
CR, LF or CRLF, `data` lines of one event are joined with LF, a line that begins with a colon is a comment, a leading
BOM is skipped. A reader may get its bytes cut anywhere, also inside a CRLF or a UTF-8 sequence.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["KEEP_ALIVE", "Event", "EventTooLong", "Reader", "ends_an_event", "write"]

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: parsers skip it, idle timers of proxies and clients see bytes."""

EVENT_LIMIT_BYTES = 8 * 1024 * 1024  # a base64 image in one delta is a few MiB; beyond that somebody is filling memory

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BLANK_LINES = (b"\n\n", b"\r\r", b"\n\r", b"\n\r\n", b"\r\r\n")


class Event(NamedTuple):
    """One dispatched event; `type` is None where the stream did not name one (the default is `message`)."""

    data: bytes
    type: bytes | None = None


class EventTooLong(ValueError):
    """One event outgrew the limit."""


class Reader:
    """Feed it bytes as they come; it returns the events they complete.

    An event is dispatched at the blank line that ends it. What has come of an unfinished event stays inside;
    `pending` tells whether there is any. Comments, `id` and `retry` are read and dropped.
    """

    __slots__ = ("_ahead", "_begun", "_data", "_held", "_limit_bytes", "_partial", "_type")

    def __init__(self, limit_bytes: int = EVENT_LIMIT_BYTES) -> None:
        self._ahead = b""  # of a line end or a byte order mark, perhaps: it waits for the byte that tells
        self._partial = bytearray()  # of a line; grows without being copied or looked at again: it may be megabytes
        self._data: list[bytes] = []
        self._held = 0
        self._type: bytes | None = None
        self._begun = False
        self._limit_bytes = limit_bytes

    @property
    def pending(self) -> bool:
        """Whether bytes of an event that has not been dispatched are held."""
        return bool(self._ahead or self._partial or self._data or self._type)

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes, in order.

        Raises:
            EventTooLong: An unfinished event holds more than the limit.
        """
        events: list[Event] = []
        for line in self._lines(chunk):
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        if len(self._partial) + self._held > self._limit_bytes:
            raise EventTooLong(f"an event of more than {self._limit_bytes} bytes")
        return events

    def _lines(self, chunk: bytes) -> list[bytes]:
        text = self._ahead + chunk
        if not self._begun:
            if len(text) < len(_BOM) and _BOM.startswith(text):
                self._ahead = text
                return []
            self._begun = True
            text = text.removeprefix(_BOM)
        # A CR at the very end may be half of a CRLF, and one line end must stay one.
        self._ahead = b"\r" if text.endswith(b"\r") else b""
        lines = _LINE_END.split(text[:-1] if self._ahead else text)
        rest = lines.pop()
        if lines and self._partial:
            self._partial += lines[0]
            lines[0] = bytes(self._partial)
            self._partial.clear()
        self._partial += rest
        return lines

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._held += len(value)
        elif name == b"event":
            self._type = value

    def _dispatch(self) -> Event | None:
        data, type_ = self._data, self._type
        self._data, self._type, self._held = [], None, 0
        return Event(b"\n".join(data), type_) if data else None


_BOM = b"\xef\xbb\xbf"


def write(data: bytes, type_: bytes | None = None) -> bytes:
    """One event with one line of data. JSON has no raw line ends, so one line is all we ever need."""
    return b"data: %b\n\n" % data if type_ is None else b"event: %b\ndata: %b\n\n" % (type_, data)


def ends_an_event(tail: bytes) -> bool:
    """Whether bytes that end in `tail` (three are enough) leave the stream between two events."""
    return tail.endswith(_BLANK_LINES)
