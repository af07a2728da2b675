"""An upstream's event stream: framed once here, then metered and recorded; the relay writes what comes out."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http import sse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.response_parser import UpstreamResponse
from gateway.proxy.shadow.transcript import Transcript
from gateway.telemetry.meter import StreamMeter

__all__ = ["UpstreamStream"]

PREAMBLE_LIMIT_BYTES = 64 * 1024  # a role chunk has 200 bytes; what is longer is not only a preamble


class UpstreamStream:
    """One stream, read chunk by chunk.

    Args:
        upstream: The response whose body is the stream.
        meter: Meters the stream.
        transcript: Records the stream for a comparison with a shadow.
        frames_all: Whether `events` must be there for every chunk. Otherwise chunks of plain text deltas are not
            framed.
        first: The beginning of the body, if that was read already.
    """

    __slots__ = ("_first", "_reader", "_received_at", "_skims", "_transcript", "_upstream", "events", "meter")

    def __init__(
        self,
        upstream: UpstreamResponse,
        meter: StreamMeter,
        transcript: Transcript | None = None,
        *,
        frames_all: bool = False,
        first: bytes = b"",
    ) -> None:
        self._first = first
        self._upstream = upstream
        self.meter = meter
        self._transcript = transcript
        self._skims = transcript is None and not frames_all
        self._reader = sse.Reader()
        self._received_at = 0.0
        self.events: Sequence[sse.Event] | None = ()
        """The events that were completed by what the last `read_preamble`, `receive` or `end` read.

        None if that was a chunk of whole plain text deltas.
        """

    async def read_preamble(self, phases: PhaseDeadlines) -> bytes:
        """Read up to and including the chunk with the first generated delta; everything if there is none.

        Nothing of it was sent to the client yet, so another upstream can take over if this one fails here. The phase
        stays `first_byte`: a long prefill is not an idle stream. `phases` learns that the neuron sends something.

        Raises:
            UpstreamConnectionError, UpstreamMalformedResponse: The upstream broke off.
        """
        preamble = b""
        events: list[sse.Event] = []
        while chunk := await self.receive():
            phases.received_at = self._received_at
            preamble += chunk
            events += self.events or ()
            if not self.meter.preamble or len(preamble) > PREAMBLE_LIMIT_BYTES:
                break
        if self._upstream.complete and self.meter.preamble:
            self.end(trio.current_time())
            events += self.events or ()
        self.events = events
        return preamble

    async def receive(self) -> bytes:
        """The next chunk; `b""` at the end of the body.

        Raises:
            UpstreamConnectionError, UpstreamMalformedResponse: The upstream broke off before its terminator.
        """
        try:
            if self._first:
                chunk, self._first = self._first, b""
            else:
                chunk = await self._upstream.receive()
        except UpstreamConnectionError:
            if not (self.meter.done or self._ends_in_terminator()):
                raise
            chunk = b""  # the answer is complete: an error after the terminator is of no use to the client
        now = self._received_at = trio.current_time()
        self.take(chunk, now)
        return chunk

    def _ends_in_terminator(self) -> bool:
        """Whether nothing but the end of the terminator's event is missing."""
        last = self._reader.peek()
        return last is not None and self.meter.end(last, trio.current_time()) and self.meter.done

    def take(self, chunk: bytes, now: float) -> None:
        """Frame, meter and record a chunk that arrived at `now`."""
        reader = self._reader
        if self._skims and reader.between_events and self.meter.skim(chunk, now):
            self.events = None
            return
        self.events = events = reader.feed(chunk)
        self.meter.read(events, now)
        if self._transcript is not None:
            self._transcript.read(events, now)

    def end(self, now: float) -> None:
        """The body has ended at `now`: check whether the answer has.

        Not every engine sends `[DONE]` (transformers serve does not), so the end of a body with a length or chunks is
        the end of the answer. Otherwise the connection may have ended in a crash: then something in the stream must
        have said that it is complete.

        Raises:
            UpstreamConnectionError, UpstreamMalformedResponse: The answer is incomplete.
        """
        last = self._reader.end()
        self.events = () if last is None else (last,)
        if not self.meter.end(last, now):
            raise UpstreamMalformedResponse("the neuron's stream ended in the middle of an event")
        if self._transcript is not None:
            self._transcript.read(self.events, now)
        if not self._upstream.framed and not (self.meter.done or self.meter.finished):
            raise UpstreamConnectionError("the neuron's stream broke off without an end")

    def release_partial(self, limit_bytes: int) -> bytes:
        """The bytes of an unfinished event that is longer than the limit, as far as they were not released yet."""
        return b"" if self._reader.partial_bytes <= limit_bytes else self._reader.release_partial()
