"""How a request's time was spent, for its client: `Server-Timing` on the head, a comment at the end of a stream.

Every routed response has `Server-Timing` (https://www.w3.org/TR/server-timing/) with what is known when the head is
sent: the phases before the body, and the total so far. How long the body took is known at its end only: a client that
sends `x-cortex-timing: 1` gets that as a comment, which every parser of server-sent events skips.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from gateway.asgi import Headers, Send
from gateway.http import sse
from gateway.http.phase_deadlines import WAITING_FOR
from gateway.proxy.response.client_response import ClientResponse
from gateway.telemetry.request_record import RequestRecord

__all__ = ["LastComment", "TimedResponse", "server_timing", "summary", "timed_response", "wanted"]


def server_timing(record: RequestRecord, now: float) -> bytes | None:
    """The value of `Server-Timing`, in ms; None if the request has not been routed yet. Takes 2 us.

    `idle` is the time of the body, which has not begun. What `total` has beyond the phases is the gateway's own time.
    """
    phases = record.phases
    if phases is None:
        return None
    value = b"total;dur=%.1f" % ((now - record.started_at) * 1000)
    for name, took_s in phases.spent_s(now).items():
        if name != "idle":
            value += _METRICS[name] % (took_s * 1000)
    return value


_METRICS: dict[str, bytes] = {phase: b", %b;dur=%%.1f" % phase.encode() for phase in WAITING_FOR}


def wanted(headers: Headers) -> bool:
    """Whether the client asks for the comment."""
    return (b"x-cortex-timing", b"1") in headers


def timed_response(send: Send, record: RequestRecord) -> TimedResponse:
    """A response to a client that asks for the comment."""
    return TimedResponse(send, lambda: summary(record, trio.current_time()))


def summary(record: RequestRecord, now: float) -> bytes:
    """The JSON in the comment; durations in ms, `first_token_ms` null if there was no token."""
    phases, meter = record.phases, record.answer.meter
    first_at = None if meter is None else meter.first_at
    fields = {
        "total_ms": _ms(now - record.started_at),
        "first_token_ms": None if first_at is None else _ms(first_at - record.started_at),
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

    __slots__ = ("_make_text", "_reader")

    def __init__(self, make_text: Callable[[], bytes]) -> None:
        self._make_text: Callable[[], bytes] | None = make_text
        self._reader = sse.Reader()

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes that can be sent now."""
        return b"".join([self._annotated(event) for event in self._reader.feed(chunk)])

    def finish(self, chunk: bytes = b"") -> bytes:
        """Feed the last chunk and end the stream."""
        events = self.feed(chunk)
        if (last := self._reader.end()) is not None:
            events += self._annotated(last)
            events += b"\n\n" if self._make_text is not None else b""
        return events + self._comment()

    def fail(self, event: bytes) -> bytes:
        """End the stream with an error event. What is pending of an incomplete event is dropped."""
        self._reader = sse.Reader()
        return self._comment() + event

    def _annotated(self, event: sse.Event) -> bytes:
        if not event.is_whole:
            self._make_text = None  # an event over the limit is passed on in pieces: a comment could get into it
        if event.data == b"[DONE]" or event.type in _TERMINATORS:
            return self._comment() + event.raw
        return event.raw

    def _comment(self) -> bytes:
        make_text, self._make_text = self._make_text, None
        return b"" if make_text is None else b": cortex-timing %b\n\n" % make_text()


_TERMINATORS = frozenset({b"message_stop", b"response.completed", b"response.incomplete", b"response.failed"})


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
