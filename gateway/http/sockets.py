"""Reading, writing and closing Trio streams at the price of the system call. No protocol, no deadlines.

Trio's `receive_some` and `send_all` make a checkpoint before and after a system call that we know will succeed, which
costs 4 us a chunk on either side. Here a plain socket is waited for first and then read or written by its descriptor;
TLS and in-memory streams go the ordinary way.
"""

from __future__ import annotations

import os
import select

import trio

__all__ = ["RECEIVE_BYTES", "close_now", "descriptor", "is_quiet", "read", "write_what_fits"]

RECEIVE_BYTES = 65536


def descriptor(stream: trio.abc.Stream) -> int | None:
    """The file descriptor of a plain TCP stream; None for what must be read and written through its methods."""
    return stream.socket.fileno() if isinstance(stream, trio.SocketStream) else None


async def read(stream: trio.abc.Stream, fd: int | None) -> bytes:
    """Bytes as they come, `b""` at the end; a reset is an end too. Always a checkpoint; cancelled, it loses nothing."""
    try:
        if fd is None:
            return bytes(await stream.receive_some(RECEIVE_BYTES))
        while True:
            await trio.lowlevel.wait_readable(fd)
            try:
                return os.read(fd, RECEIVE_BYTES)
            except BlockingIOError:
                continue  # a wake-up without bytes: rare, and allowed (select(2), BUGS)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


def write_what_fits(fd: int, data: bytes | memoryview) -> int:
    """How many bytes the socket took without waiting. Raises OSError if the peer is gone."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


def is_quiet(stream: trio.abc.Stream) -> bool:
    """Whether a resting connection is as it should be: open, and nothing to read.

    EOF is the usual news (a `keep-alive` promises nothing); unasked bytes are as bad. A stream without a socket below
    it cannot be asked and counts as quiet.
    """
    below = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if not isinstance(below, trio.SocketStream):
        return True
    poll = select.poll()
    poll.register(below.socket.fileno(), select.POLLIN)
    return not poll.poll(0)


def close_now(stream: trio.abc.AsyncResource) -> None:
    """Close without a goodbye. Sync, so that no cancellation can come in between.

    Sockets, TLS over sockets, and Trio's memory streams can do that; nothing else is used here.
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
