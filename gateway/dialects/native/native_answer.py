"""An answer in the client's own dialect, of an engine. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from gateway.dialects import AnswerAssembler, upstream_errors
from gateway.dialects.loose_json import JsonObject
from gateway.dialects.translation.bounds import excess_of
from gateway.errors import GatewayError, UpstreamMalformedResponse
from gateway.http import sse

__all__ = ["NativeAnswer", "decode_answer", "decode_events"]


class NativeAnswer:
    """A `dialects.Translation` that changes nothing but the form of an answer.

    Args:
        assembler: Makes what puts a stream of this dialect together.
        stream_of: Writes the stream of a whole answer. Raises GatewayError if it is no answer.
        error_event: Writes an error event of the dialect.
    """

    __slots__ = ("_error_event", "assembler", "error", "stream_of")

    keepalive_bytes = sse.KEEP_ALIVE
    passes_text = True
    converts = True
    held_limit_bytes = 0

    def __init__(
        self,
        assembler: Callable[[], AnswerAssembler],
        stream_of: Callable[[bytes], bytes],
        error_event: Callable[[GatewayError], bytes],
    ) -> None:
        self.assembler = assembler
        self.stream_of = stream_of
        self._error_event = error_event
        self.error: GatewayError | None = None

    def feed(self, events: Sequence[sse.Event]) -> bytes:
        """The events as they came."""
        return events[0].raw if len(events) == 1 else b"".join([event.raw for event in events])

    def finish(self) -> bytes:
        """Nothing: `feed` holds nothing back."""
        return b""

    def fail(self, error: GatewayError) -> bytes:
        """The error as an event; nothing if the stream has ended in one."""
        if self.error is not None:
            return b""
        self.error = error
        return self._error_event(error)

    def whole(self, body: bytes) -> bytes:
        """The same body."""
        return body


def decode_events(events: Sequence[sse.Event]) -> Iterator[JsonObject]:
    """The data of a stream's events.

    Raises:
        UpstreamMalformedResponse: One is not a JSON object, or too large.
        GatewayError: The upstream reports an error in one.
    """
    for event in events:
        if event.data is None and not event.is_whole:
            raise UpstreamMalformedResponse(f"the neuron sent an event of more than {sse.EVENT_LIMIT_BYTES} bytes")
        if event.data and event.data != b"[DONE]":
            fields = _decode(event.data)
            if fields is None:
                raise UpstreamMalformedResponse("the neuron sent an event that is not a JSON object, or too large")
            if event.type == b"error":
                raise upstream_errors.from_stream(upstream_errors.error_in_event(event.data))
            if (reported := upstream_errors.error_in(fields)) is not None:
                raise upstream_errors.from_stream(reported)
            yield fields


def decode_answer(body: bytes, what: str, required: str) -> JsonObject:
    """A whole answer.

    Args:
        body: The neuron's.
        what: What it must be, for the error.
        required: A member that must be a list of objects.

    Raises:
        UpstreamMalformedResponse: It is none, or too large.
        GatewayError: The upstream reports an error in it.
    """
    fields = _decode(body)
    if fields is not None and (reported := upstream_errors.error_in(fields)) is not None:
        raise upstream_errors.from_stream(reported)
    parts = None if fields is None else fields.get(required)
    if fields is None or not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise UpstreamMalformedResponse(
            f"the neuron answered a streaming request with neither an event stream nor {what}"
        )
    return fields


def _decode(data: bytes) -> JsonObject | None:
    if excess_of(data) is not None:
        return None
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
