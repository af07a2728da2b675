"""Listening TCP sockets, and the addresses that they really have."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

from gateway.config.settings import Listen
from gateway.http.sockets import detect_dead_peer, set_latency_options

__all__ = [
    "STUCK_READER_MS",
    "Addresses",
    "CannotListen",
    "CannotStart",
    "address_of",
    "listener",
    "listening",
    "set_options",
]

BACKLOG = 2048
STUCK_READER_MS = 60_000


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a gateway listens, with the ports that the kernel chose for port 0; `is_tls`: the API has TLS."""

    api: Listen
    metrics: Listen
    is_tls: bool = False

    @property
    def url(self) -> str:
        """The base URL of the API."""
        return f"{'https' if self.is_tls else 'http'}://{self.api}"


class CannotStart(Exception):
    """The gateway cannot start as it is configured, as opposed to a crash. The text is for the operator."""


class CannotListen(CannotStart, OSError):
    """An operator's mistake in an address."""


@contextlib.asynccontextmanager
async def listening(listen: Listen) -> AsyncIterator[socket.socket]:
    """A listening TCP socket, closed on the way out.

    Raises:
        CannotListen: The address is in use, is not this host's, or cannot be resolved.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = await trio.socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            set_options(sock)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            hint = ""
            if error.errno == errno.EADDRINUSE:
                hint = (
                    "; if that is another gateway with the same state directory, `cortex serve --takeover` replaces it"
                )
            raise CannotListen(f"cannot listen on {listen}: {error.strerror or error}{hint}") from error
        except UnicodeError as error:  # from IDNA: a label that is empty or longer than 63 characters
            raise CannotListen(f"cannot listen on {listen}: '{listen.host}' is not a valid host name") from error
        yield sock


def set_options(sock: socket.socket) -> None:
    """Set what accepted sockets inherit. Sync; for a socket that another process has opened, too."""
    _drop_stuck_readers(sock)
    detect_dead_peer(sock.setsockopt)
    set_latency_options(sock.setsockopt)  # before it listens: what connects earlier than the server accepts has it too


def _drop_stuck_readers(sock: socket.socket) -> None:
    """Have the kernel end a connection whose peer acknowledges nothing for this long. Accepted sockets inherit it.

    The write deadline of our own server frees the task. This option frees the kernel's memory, and with Hypercorn it is
    the only limit.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_READER_MS)


def listener(sock: socket.socket) -> trio.SocketListener:
    """A Trio listener on a duplicate of the socket, which therefore still listens when the listener is closed."""
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))


def address_of(sock: socket.socket) -> Listen:
    """The address that the socket is bound to."""
    host, port = sock.getsockname()[:2]
    return Listen(host, port)
