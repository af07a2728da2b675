"""How a request's time was spent, for its client: `Server-Timing` on the head, a comment at the end of a stream.

Every routed response has `Server-Timing` (https://www.w3.org/TR/server-timing/) with what is known when the head is
sent: the phases before the body, and the total so far. How long the body took is known at its end only: a client that
sends `x-cortex-timing: 1` gets that as a comment, which every parser of server-sent events skips.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
import trio

from gateway.asgi import Headers, Send
from gateway.proxy.client_response import ClientResponse
from gateway.telemetry.request_record import RequestRecord

__all__ = ["LastComment", "TimedResponse", "server_timing", "summary", "timed_response", "wanted"]

EVENT_LIMIT_BYTES = 8 * 1024 * 1024  # a longer event is passed on unread, and the stream gets no comment


def server_timing(record: RequestRecord, now: float) -> bytes | None:
    """The value of `Server-Timing`, in ms; None if the request has not been routed yet. Takes 2 us.

    `idle` is the time of the body, which has not begun. What `total` has beyond the phases is the gateway's own time.
    """
    phases = record.timings.phases
    if phases is None:
        return None
    value = f"total;dur={(now - record.timings.started_at) * 1000:.1f}"
    for name, took_s in phases.spent_s(now).items():
        if name != "idle":
            value += f", {name};dur={took_s * 1000:.1f}"
    return value.encode()


def wanted(headers: Headers) -> bool:
    """Whether the client asks for the comment."""
    return (b"x-cortex-timing", b"1") in headers


def timed_response(send: Send, record: RequestRecord) -> TimedResponse:
    """A response to a client that asks for the comment."""
    return TimedResponse(send, lambda: summary(record, trio.current_time()))


def summary(record: RequestRecord, now: float) -> bytes:
    """The JSON in the comment; durations in ms, `first_token_ms` null if there was no token."""
    phases, meter = record.timings.phases, record.answer.meter
    first_at = None if meter is None else meter.first_at
    fields = {
        "total_ms": _ms(now - record.timings.started_at),
        "first_token_ms": None if first_at is None else _ms(first_at - record.timings.started_at),
        "phases_ms": {} if phases is None else phases.spent_ms(now),
        "retries": record.routing.retries,
    }
    return msgspec.json.encode(fields)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


class LastComment:
    """Puts a comment before the event that ends a stream, in any dialect; bytes in, bytes out.

    It is before that event because OpenAI's SDKs disconnect at `[DONE]`. In a stream without such an event, or one that
    fails, it comes last. Only whole events are passed on, since a client's parser dispatches whole events; so the
    comment never stands inside one. No other byte is changed.
    """

    __slots__ = ("_make_text", "_pending")

    def __init__(self, make_text: Callable[[], bytes]) -> None:
        self._make_text: Callable[[], bytes] | None = make_text
        self._pending = bytearray()  # an event may be megabytes: appending neither copies it nor looks at it again

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes that can be sent now."""
        if self._make_text is None:
            return chunk
        seam = bytes(self._pending[1 - _LONGEST_BLANK_LINE :])  # a blank line may have begun here
        whole = max(_end_of_last_event(seam + chunk) - len(seam), 0)
        if whole:
            self._pending += chunk[:whole]
            events = self._annotated(self._take_pending())
        else:
            events = b""
        self._pending += chunk[whole:]
        if len(self._pending) > EVENT_LIMIT_BYTES:
            self._make_text = None
            return events + self._take_pending()
        return events

    def _take_pending(self) -> bytes:
        pending = bytes(self._pending)
        self._pending.clear()
        return pending

    def finish(self, chunk: bytes = b"") -> bytes:
        """Feed the last chunk and end the stream."""
        events = self.feed(chunk)
        rest = self._take_pending()
        if rest and self._make_text is not None:
            rest = self._annotated(rest)
        blank_line = b"\n\n" if rest and self._make_text is not None else b""
        return events + rest + blank_line + self._comment()

    def fail(self, event: bytes) -> bytes:
        """End the stream with an error event. What is pending of an incomplete event is dropped."""
        self._pending.clear()
        return self._comment() + event

    def _annotated(self, events: bytes) -> bytes:
        found = _TERMINATOR.search(events)
        if found is None:
            return events
        begins = _end_of_last_event(events[: found.start()])
        return events[:begins] + self._comment() + events[begins:]

    def _comment(self) -> bytes:
        make_text, self._make_text = self._make_text, None
        return b"" if make_text is None else b": cortex-timing %b\n\n" % make_text()


_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\r\n|\r\r|\n\n")
_LONGEST_BLANK_LINE = 4
_TERMINATOR = re.compile(
    rb"(?:^|(?<=[\r\n]))"
    rb"(?:data: ?\[DONE\]|event: ?(?:message_stop|response\.(?:completed|incomplete|failed))(?=[\r\n]))"
)


def _end_of_last_event(data: bytes) -> int:
    """The length of the whole events in `data`."""
    if data.endswith(b"\n\n"):
        return len(data)
    return max((match.end() for match in _BLANK_LINE.finditer(data)), default=0)


class TimedResponse(ClientResponse):
    """A response with the comment, if it is an event stream."""

    __slots__ = ("_comment", "_is_stream")

    def __init__(self, send: Send, make_text: Callable[[], bytes]) -> None:
        super().__init__(send)
        self._comment = LastComment(make_text)
        self._is_stream = False

    async def start(self, status: int, headers: Headers) -> None:
        """As `ClientResponse.start`; the headers say whether an event stream follows."""
        self._is_stream = any(
            name == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in headers
        )
        await super().start(status, headers)

    async def write(self, data: bytes) -> None:
        """As `ClientResponse.write`, but an incomplete event waits for its end."""
        events = self._comment.feed(data) if self._is_stream else data
        if events:
            await super().write(events)

    async def end(self, data: bytes = b"") -> None:
        """As `ClientResponse.end`, with the comment if the stream had no terminator."""
        await super().end(self._comment.finish(data) if self._is_stream else data)

    async def end_with_error(self, event: bytes) -> None:
        """As `ClientResponse.end_with_error`; the comment comes first, since clients disconnect at an error, too."""
        await super().end_with_error(self._comment.fail(event) if self._is_stream else event)
