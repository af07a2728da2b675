"""Chat completions translated for a client of another dialect. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.dialects import upstream_errors
from gateway.dialects.chat.assemble import CompletionAssembler, stream_datas
from gateway.errors import GatewayError, UpstreamMalformedResponse
from gateway.http import sse

__all__ = ["ChatTranslation", "StreamMachine"]


class StreamMachine(Protocol):
    """A dialect's translator of chat streams: takes the data of events, returns the client's bytes. Never raises."""

    error: GatewayError | None

    def feed(self, data: bytes) -> bytes:
        """Take the data of one upstream event."""
        ...

    def finish(self) -> bytes:
        """The upstream body is complete."""
        ...

    def fail(self, error: GatewayError) -> bytes:
        """End with an error; nothing if the stream has ended."""
        ...


class ChatTranslation:
    """A `Translation` made of a dialect's machine for streams and its function for whole answers."""

    __slots__ = ("_machine", "_whole", "keepalive_bytes")

    passes_text = False
    converts = True
    assembler = CompletionAssembler
    held_limit_bytes = sse.EVENT_LIMIT_BYTES

    def __init__(
        self, machine: StreamMachine, whole: Callable[[bytes], bytes], *, keepalive_bytes: bytes = sse.KEEP_ALIVE
    ) -> None:
        self._machine = machine
        self._whole = whole
        self.keepalive_bytes = keepalive_bytes

    @property
    def error(self) -> GatewayError | None:
        """Why the stream failed, or None."""
        return self._machine.error

    def feed(self, events: Sequence[sse.Event]) -> bytes:
        """The client's events for these upstream events."""
        if len(events) == 1 and (data := events[0].data) is not None and events[0].type is None:
            return self._machine.feed(data)
        return b"".join([self._feed_one(event) for event in events])

    def _feed_one(self, event: sse.Event) -> bytes:
        if event.data is not None:
            if event.type == b"error":
                return self._machine.fail(upstream_errors.from_stream(upstream_errors.error_in_event(event.data)))
            return self._machine.feed(event.data)
        if event.is_whole:  # a comment
            return b""
        reason = f"the neuron sent an event of more than {sse.EVENT_LIMIT_BYTES} bytes"
        return self._machine.fail(UpstreamMalformedResponse(reason))

    def finish(self) -> bytes:
        """The client's last events."""
        return self._machine.finish()

    def fail(self, error: GatewayError) -> bytes:
        """The error in the client's dialect; nothing if the stream has ended."""
        return self._machine.fail(error)

    def whole(self, body: bytes) -> bytes:
        """The client's answer for a whole chat completion.

        Raises:
            GatewayError: It is not a chat completion, or reports an error.
        """
        return self._whole(body)

    def stream_of(self, body: bytes) -> bytes:
        """The client's stream for a whole chat completion. Raises GatewayError as `whole`."""
        out = b"".join([self._machine.feed(data) for data in stream_datas(body)]) + self._machine.finish()
        if self._machine.error is not None:
            raise self._machine.error
        return out
