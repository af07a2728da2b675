"""What clients are told of where a request's time went: `Server-Timing` on heads, a last comment in streams. No clock.

`Server-Timing` is on the head of every routed answer (https://www.w3.org/TR/server-timing/), with what is known by
then: the phases before the body, and the total so far. How long the body took can only be said at its end: a client
that sends `x-cortex-timing: 1` gets that as a comment, which every parser of server-sent events skips.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from gateway.asgi import Headers, Send
from gateway.proxy.client_response import ClientResponse
from gateway.telemetry.request_record import Record

__all__ = ["LastComment", "TimedAnswer", "server_timing", "summary", "wanted"]

EVENT_LIMIT_BYTES = (
    8 * 1024 * 1024
)  # of an event that is held to be looked at; a longer one passes, and no comment comes


def server_timing(record: Record, now: float) -> bytes | None:
    """The header's value; None if the request has not been routed yet. Durations in ms; takes 2 us.

    `idle` is the body's time, so it is not in here; what `total` has beyond the phases is the gateway's own.
    """
    phases = record.phases
    if phases is None:
        return None
    told = f"total;dur={(now - record.started_at) * 1000:.1f}"
    for name, took_s in phases.spent_s(now).items():
        if name != "idle":
            told += f", {name};dur={took_s * 1000:.1f}"
    return told.encode()


def wanted(headers: Headers) -> bool:
    """Whether the client asks for the comment."""
    return (b"x-cortex-timing", b"1") in headers


def summary(record: Record, now: float) -> bytes:
    """What the comment says, as JSON; durations in ms, `first_token_ms` null if there was none."""
    phases, meter = record.phases, record.meter
    first_at = None if meter is None else meter.first_at
    told = {
        "total_ms": _ms(now - record.started_at),
        "first_token_ms": None if first_at is None else _ms(first_at - record.started_at),
        "phases_ms": {} if phases is None else phases.spent_ms(now),
        "retries": record.retries,
    }
    return msgspec.json.encode(told)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


class LastComment:
    """Puts a comment before the event that ends a stream, in any of the dialects; bytes in, bytes out.

    Before it, because OpenAI's SDKs hang up at `[DONE]`. In a stream that has no such event, or fails, it comes last.
    Events are handed on when they are whole, as that is when a client's parser would dispatch them; so the comment
    cannot come to stand inside of one. No other byte is changed.
    """

    __slots__ = ("_held", "_tell")

    def __init__(self, tell: Callable[[], bytes]) -> None:
        self._tell: Callable[[], bytes] | None = tell
        self._held = bytearray()  # grows without being copied or looked at again: an event may be megabytes

    def feed(self, chunk: bytes) -> bytes:
        """What may be sent now."""
        if self._tell is None:
            return chunk
        seam = bytes(self._held[1 - _LONGEST_BLANK_LINE :])  # where a blank line may have begun
        whole = max(_end_of_last_event(seam + chunk) - len(seam), 0)
        if whole:
            self._held += chunk[:whole]
            told = self._annotated(self._take_held())
        else:
            told = b""
        self._held += chunk[whole:]
        if len(self._held) > EVENT_LIMIT_BYTES:
            self._tell = None
            return told + self._take_held()
        return told

    def _take_held(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held

    def finish(self, chunk: bytes = b"") -> bytes:
        """The same for the end of the stream."""
        sent = self.feed(chunk)
        held = self._take_held()
        if held and self._tell is not None:
            held = self._annotated(held)
        cut = b"\n\n" if held and self._tell is not None else b""
        return sent + held + cut + self._comment()

    def fail(self, event: bytes) -> bytes:
        """The same for a stream that ends in an error. What is held of an event that never became whole is left out."""
        self._held.clear()
        return self._comment() + event

    def _annotated(self, events: bytes) -> bytes:
        found = _TERMINATOR.search(events)
        if found is None:
            return events
        begins = _end_of_last_event(events[: found.start()])
        return events[:begins] + self._comment() + events[begins:]

    def _comment(self) -> bytes:
        tell, self._tell = self._tell, None
        return b"" if tell is None else b": cortex-timing %b\n\n" % tell()


_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\r\n|\r\r|\n\n")
_LONGEST_BLANK_LINE = 4
_TERMINATOR = re.compile(
    rb"(?:^|(?<=[\r\n]))"
    rb"(?:data: ?\[DONE\]|event: ?(?:message_stop|response\.(?:completed|incomplete|failed))(?=[\r\n]))"
)


def _end_of_last_event(data: bytes) -> int:
    """How much of it is whole events."""
    if data.endswith(b"\n\n"):
        return len(data)
    return max((match.end() for match in _BLANK_LINE.finditer(data)), default=0)


class TimedAnswer(ClientResponse):
    """An answer to a client that wants to know. What is no event stream it leaves alone."""

    __slots__ = ("_is_stream", "_note")

    def __init__(self, send: Send, tell: Callable[[], bytes]) -> None:
        super().__init__(send)
        self._note = LastComment(tell)
        self._is_stream = False

    async def start(self, status: int, headers: Headers) -> None:
        """As `ClientResponse.start`; it tells whether there is an event stream to come."""
        self._is_stream = any(
            name == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in headers
        )
        await super().start(status, headers)

    async def write(self, data: bytes) -> None:
        """As `ClientResponse.write`, but for what is held until its event is whole."""
        told = self._note.feed(data) if self._is_stream else data
        if told:
            await super().write(told)

    async def end(self, data: bytes = b"") -> None:
        """As `ClientResponse.end`, with the comment if none was needed before."""
        await super().end(self._note.finish(data) if self._is_stream else data)

    async def end_with_error(self, event: bytes) -> None:
        """As `ClientResponse.end_with_error`, the comment before the error: clients hang up at that, too."""
        await super().end_with_error(self._note.fail(event) if self._is_stream else event)
