"""Reads, writes and closes Trio streams with as few checkpoints as possible; says why a connection failed. No protocol.

Trio's `receive_some` and `send_all` run a checkpoint before and after a system call that succeeds at once, which costs
4 us per chunk on each side. These functions wait until a plain socket is ready, then read or write its descriptor. TLS
and in-memory streams are used through their methods.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections.abc import Callable, Iterator

import trio

from gateway.http.server_tls.tls_stream import TlsStream
from gateway.http.tcp.plain_stream import PlainStream

__all__ = [
    "RECEIVE_BYTES",
    "TCP_KEEPALIVE_OPTIONS",
    "addresses",
    "close_now",
    "connect_error_reason",
    "descriptor",
    "detect_dead_peer",
    "has_hung_up",
    "is_quiet",
    "poll_for_input",
    "read",
    "read_at_once",
    "read_if_any",
    "set_latency_options",
    "transport",
    "write_what_fits",
]

RECEIVE_BYTES = 65536
NOT_SENT_BYTES = 16384  # as Trio sets it: more would only wait in the kernel

# A waiting connection is silent for minutes. Firewalls and NATs forget silent ones after 60 s (home routers) to 350 s
# (AWS); a dead peer is noticed after 30 s + 6 * 10 s.
TCP_KEEPALIVE_OPTIONS: tuple[tuple[int, int, int], ...] = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))
        if hasattr(socket, name)  # not every system has all three
    ),
)


def descriptor(stream: trio.abc.Stream) -> int | None:
    """Return the file descriptor of a plain TCP stream; None for a stream that must be used through its methods."""
    return stream.socket.fileno() if type(stream) is PlainStream else None


def transport(stream: trio.abc.Stream) -> socket.socket | None:
    """The socket of a stream, with or without TLS; None for an in-memory stream."""
    if type(stream) is PlainStream:
        return stream.socket
    below = stream.transport_stream if isinstance(stream, trio.SSLStream | TlsStream) else None
    return below.socket if isinstance(below, PlainStream) else None


def addresses(sock: socket.socket) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
    """Host and port of the peer and of this side; None for both if the peer has gone."""
    try:
        return sock.getpeername()[:2], sock.getsockname()[:2]
    except OSError:
        return None, None  # the first read notices


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


async def read_if_any(stream: trio.abc.Stream, fd: int | None) -> bytes | None:
    """As `read`; None if there was nothing, so that the caller can look what has happened before it waits again."""
    if fd is None:
        return await read(stream, None)
    try:
        await trio.lowlevel.wait_readable(fd)
        return os.read(fd, RECEIVE_BYTES)
    except BlockingIOError:
        return None
    except (OSError, trio.ClosedResourceError):
        return b""


def read_at_once(fd: int) -> bytes | None:
    """As `read`, for bytes that have arrived already; None without any."""
    try:
        return os.read(fd, RECEIVE_BYTES)
    except BlockingIOError:
        return None
    except OSError:
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
    if isinstance(stream, TlsStream) and stream.has_buffered:
        return False
    poll = poll_for_input(stream)
    return poll is None or not poll.poll(0)


def poll_for_input(stream: trio.abc.Stream) -> select.poll | None:
    """What `is_quiet` polls, for a caller that asks often. None for a stream without a socket."""
    below = transport(stream)
    if below is None:
        return None
    poll = select.poll()
    poll.register(below, select.POLLIN)
    return poll


def has_hung_up(fd: int) -> bool:
    """Whether the peer has closed its side or reset the connection, although there may be unread bytes before that."""
    poll = select.poll()
    poll.register(fd, _HUNG_UP)
    return any(happened & _HUNG_UP for _, happened in poll.poll(0))


_HUNG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR  # POLLRDHUP is Linux's


def detect_dead_peer(set_option: Callable[[int, int, int], None]) -> None:
    """Turn on TCP keep-alive with a socket's `setsockopt`; sockets accepted from a listener inherit it."""
    for option in TCP_KEEPALIVE_OPTIONS:
        set_option(*option)


def set_latency_options(set_option: Callable[[int, int, int], None]) -> None:
    """Have small messages sent at once, with a socket's `setsockopt`; sockets accepted from a listener inherit it."""
    set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        set_option(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)


def close_now(stream: trio.abc.AsyncResource) -> None:
    """Close at once, without waiting for the peer. Sync, so that it cannot be cancelled.

    Supports sockets, TLS over sockets, and Trio's memory streams.
    """
    if type(stream) is PlainStream:
        stream.close()
    elif isinstance(stream, TlsStream):
        stream.close_now()
    elif isinstance(stream, trio.SSLStream):
        close_now(stream.transport_stream)
    elif isinstance(stream, trio.StapledStream):
        close_now(stream.send_stream)
        close_now(stream.receive_stream)
    elif callable(close := getattr(stream, "close", None)):
        close()


def connect_error_reason(error: BaseException) -> str:
    """Why a connection could not be opened, such as "connection refused": without addresses, as clients read it too.

    It is the first failure in the error's chain of causes that says what happened.

    Trio puts one failure per address that it tried into a group; httpx and Trio wrap TLS errors in others without text.
    """
    reasons: list[str] = []
    for failure in _causes(error):
        if isinstance(failure, BaseExceptionGroup):
            reasons = [connect_error_reason(one) for one in failure.exceptions]
            break
        if (reason := _reason(failure)) is not None:
            reasons = [reason]
            break
    return "; ".join(dict.fromkeys(reasons)) or str(error) or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What caused the error, the first cause first; a wrapper says less than what it wraps."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return reversed(chain)


def _reason(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS failed: certificate verify failed: {error.verify_message or error.reason}"
    if isinstance(error, ssl.SSLError):
        is_end = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        return "TLS failed: " + ("the connection was closed" if is_end else _words(error.reason))
    if isinstance(error, socket.gaierror):
        return "its host name does not resolve"
    if isinstance(error, UnicodeError):
        return "its host name is not valid"
    if isinstance(error, OSError) and error.errno is not None:
        text = os.strerror(error.errno)
        return text[:1].lower() + text[1:]
    return None


def _words(reason: str | None) -> str:
    """OpenSSL's name of an error, such as WRONG_VERSION_NUMBER, in words."""
    return (reason or "protocol error").lower().replace("_", " ")
