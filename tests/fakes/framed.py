"""Streams of bytes for what reads events: framed as the gateway frames them."""

from types import SimpleNamespace

from gateway.errors import UpstreamMalformedResponse
from gateway.http import sse
from gateway.proxy.upstream_stream import UpstreamStream
from gateway.telemetry.meter import StreamMeter

FRAMED_BODY = SimpleNamespace(framed=True)


class MeteredStream:
    """Chunks to `meter`, by the same path as in the relay."""

    def __init__(self, meter=None):
        self.meter = StreamMeter() if meter is None else meter
        self._stream = UpstreamStream(FRAMED_BODY, self.meter)

    def feed(self, chunk, now):
        self._stream.take(chunk, now)

    def finish(self, now):
        """Whether the stream is complete."""
        try:
            self._stream.end(now)
        except UpstreamMalformedResponse:
            return False
        return True


class TranslatedStream:
    """Chunks through a `Translation`."""

    def __init__(self, translation):
        self.translation = translation
        self.reader = sse.Reader()

    def feed(self, chunk):
        out = self.translation.feed(self.reader.feed(chunk))
        if self.reader.partial_bytes > self.translation.held_limit_bytes:
            out += self.reader.release_partial()
        return out

    def finish(self):
        last = self.reader.end()
        return self.translation.feed([] if last is None else [last]) + self.translation.finish()
