"""A TCP connection as a Trio stream. A `trio.SocketStream` costs 40 us more per connection.

Most of its bytes do not pass through its methods: `sockets` reads and writes its descriptor.
"""

from __future__ import annotations

import os
import socket

import trio

__all__ = ["PlainStream"]

RECEIVE_BYTES = 65536


class PlainStream(trio.abc.HalfCloseableStream):
    """One connection. One task may receive while another one sends.

    Args:
        sock: A connected socket, which the stream closes. It blocks no more.

    Attributes:
        socket: The same.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As in `trio.abc.ReceiveStream`. Cancelling this loses no bytes."""
        while True:
            await trio.lowlevel.wait_readable(self._fd())
            try:
                return os.read(self._fd(), max_bytes or RECEIVE_BYTES)
            except BlockingIOError:
                continue  # the kernel may report a socket readable when it is not (select(2), BUGS)
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As in `trio.abc.SendStream`. If this is cancelled, part of `data` may be sent."""
        rest = memoryview(data)
        await trio.lowlevel.checkpoint()
        while rest:
            rest = rest[await self.send_some(rest) :]

    async def send_some(self, data: bytes | memoryview) -> int:
        """Send what the socket takes, when it takes any; return how much that was. Cancelling this sends nothing.

        Raises:
            BrokenResourceError, ClosedResourceError: As in `trio.abc.SendStream`.
        """
        while True:
            try:
                return os.write(self._fd(), data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._fd())
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        """As in `trio.abc.SendStream`."""
        await trio.lowlevel.wait_writable(self._fd())

    async def send_eof(self) -> None:
        """As in `trio.abc.HalfCloseableStream`."""
        await trio.lowlevel.checkpoint()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def aclose(self) -> None:
        """Close the connection."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close the connection. Sync; a task that waits for it gets `trio.ClosedResourceError`."""
        fd = self.socket.fileno()
        if fd != -1:
            trio.lowlevel.notify_closing(fd)
            self.socket.close()

    def _fd(self) -> int:
        fd = self.socket.fileno()
        if fd == -1:
            raise trio.ClosedResourceError("this connection is closed")
        return fd
