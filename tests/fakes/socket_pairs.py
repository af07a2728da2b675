"""The gateway of `in_memory` with socket pairs in place of memory streams, so that the pump carries its streams.

What is sent into a socket pair can be read at once. So the autojump clock works, and times are exact.
"""

from __future__ import annotations

import socket

import structlog
import trio
from fakes.in_memory import InMemoryGateway

from gateway.http.epoll.pump import Pump
from gateway.http.server import HttpServer, ServerLimits
from gateway.http.tcp.plain_stream import PlainStream

__all__ = ["SocketPairGateway"]


class SocketPairGateway(InMemoryGateway):
    """As the other, with sockets; `close` them at the end. `pump` is one that runs, or None.

    Attributes:
        neuron_sides: The neuron's end of each connection that the gateway has opened, in order.
    """

    def __init__(self, nursery: trio.Nursery, pump: Pump | None, **more: object) -> None:
        super().__init__(nursery, {"neuron": None}, **more)
        self.server = HttpServer(self.inference, limits=ServerLimits(), log=structlog.get_logger(), pump=pump)
        self.neuron_sides: list[PlainStream] = []
        self._client_sides: list[socket.socket] = []

    async def _connect(self, origin: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, theirs = socket.socketpair()
        self.neuron_sides.append(_stream(theirs))
        return _stream(ours)

    def connect(self) -> socket.socket:
        """A client's end of a new connection to the gateway; it does not block."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._client_sides.append(ours)
        self.nursery.start_soon(self.server.serve_stream, _stream(theirs))
        return ours

    def close(self) -> None:
        """Close every socket."""
        for stream in self.neuron_sides:
            stream.close()
        for client in self._client_sides:
            client.close()
        self.upstream.close()


def _stream(end: socket.socket) -> PlainStream:
    return PlainStream(end)
