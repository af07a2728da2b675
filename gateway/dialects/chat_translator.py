"""A chat completion on its way to a client of another dialect: bytes to events, for that dialect's machine. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.errors import GatewayError, UpstreamMalformedResponse
from gateway.http import sse

__all__ = ["FromChat", "Machine"]


class Machine(Protocol):
    """A dialect's stream translator: the data of events in, the client's bytes out. No method raises."""

    error: GatewayError | None

    def feed(self, data: bytes) -> bytes:
        """Take in the data of one upstream event."""
        ...

    def finish(self) -> bytes:
        """The upstream body has ended in good order."""
        ...

    def fail(self, error: GatewayError) -> bytes:
        """End in an error; nothing if the stream has ended."""
        ...


class FromChat:
    """A `Translation` made of a dialect's machine for streams and its function for whole answers."""

    __slots__ = ("_machine", "_reader", "_whole", "keep_alive")

    def __init__(
        self, machine: Machine, whole: Callable[[bytes], bytes], *, keep_alive: bytes = sse.KEEP_ALIVE
    ) -> None:
        self._reader = sse.Reader()
        self._machine = machine
        self._whole = whole
        self.keep_alive = keep_alive

    @property
    def error(self) -> GatewayError | None:
        """Why the stream failed, or None."""
        return self._machine.error

    def feed(self, chunk: bytes) -> bytes:
        """The client's events for a piece of the neuron's stream."""
        try:
            events = self._reader.feed(chunk)
        except sse.EventTooLong as error:
            return self._machine.fail(UpstreamMalformedResponse(f"the neuron sent {error}"))
        if len(events) == 1:
            return self._machine.feed(events[0].data)
        return b"".join([self._machine.feed(event.data) for event in events])

    def finish(self) -> bytes:
        """The last events. What the neuron sent without the blank line that ends an event counts too."""
        return self.feed(b"\n\n") + self._machine.finish()

    def fail(self, error: GatewayError) -> bytes:
        """The client's form of an error in a stream, unless that has ended."""
        return self._machine.fail(error)

    def whole(self, body: bytes) -> bytes:
        """The client's answer for a whole chat completion. Raises GatewayError if it is none."""
        return self._whole(body)
