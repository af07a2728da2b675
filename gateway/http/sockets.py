"""Reads, writes and closes Trio streams with as few checkpoints as possible. No protocol, no deadlines.

Trio's `receive_some` and `send_all` run a checkpoint before and after a system call that succeeds at once, which costs
4 us per chunk on each side. These functions wait until a plain socket is ready, then read or write its descriptor. TLS
and in-memory streams use Trio's methods.
"""

from __future__ import annotations

import os
import select

import trio

__all__ = ["RECEIVE_BYTES", "close_now", "descriptor", "is_quiet", "read", "write_what_fits"]

RECEIVE_BYTES = 65536


def descriptor(stream: trio.abc.Stream) -> int | None:
    """Return the file descriptor of a plain TCP stream; None for a stream that must be used through its methods."""
    return stream.socket.fileno() if isinstance(stream, trio.SocketStream) else None


async def read(stream: trio.abc.Stream, fd: int | None) -> bytes:
    """Return the next bytes; `b""` at EOF or after a reset. Always a checkpoint. Cancelling this loses no bytes."""
    try:
        if fd is None:
            return bytes(await stream.receive_some(RECEIVE_BYTES))
        while True:
            await trio.lowlevel.wait_readable(fd)
            try:
                return os.read(fd, RECEIVE_BYTES)
            except BlockingIOError:
                continue  # the kernel may report a socket readable when it is not (select(2), BUGS)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


def write_what_fits(fd: int, data: bytes | memoryview) -> int:
    """Write without waiting; return how many bytes the socket took. Raises OSError if the peer has closed."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


def is_quiet(stream: trio.abc.Stream) -> bool:
    """Whether an idle connection is open and has nothing to read.

    A peer may close an idle connection at any time, whatever its keep-alive header says; and unexpected bytes must not
    be read as the next response. A stream without a socket cannot be polled and counts as quiet.
    """
    below = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if not isinstance(below, trio.SocketStream):
        return True
    poll = select.poll()
    poll.register(below.socket.fileno(), select.POLLIN)
    return not poll.poll(0)


def close_now(stream: trio.abc.AsyncResource) -> None:
    """Close at once, without a TLS shutdown. Sync, so that it cannot be cancelled.

    Supports sockets, TLS over sockets, and Trio's memory streams.
    """
    if isinstance(stream, trio.SSLStream):
        close_now(stream.transport_stream)
    elif isinstance(stream, trio.SocketStream):
        stream.socket.close()
    elif isinstance(stream, trio.StapledStream):
        close_now(stream.send_stream)
        close_now(stream.receive_stream)
    elif callable(close := getattr(stream, "close", None)):
        close()
