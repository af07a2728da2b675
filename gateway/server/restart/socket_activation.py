"""Listening sockets that a service manager hands over at the start, as `sd_listen_fds(3)` describes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

from gateway.config.settings import GatewaySettings
from gateway.server.listen import CannotListen, address_of

__all__ = ["NO_SOCKETS", "ListeningSockets", "inherited_sockets"]

FIRST_FD = 3  # SD_LISTEN_FDS_START
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class ListeningSockets:
    """The sockets of the two ports that another process has opened; None for a port that this process must open.

    Another process has them too, so closing them here refuses no connection.
    """

    api: socket.socket | None = None
    metrics: socket.socket | None = None

    def close(self) -> None:
        """Close what is there."""
        for sock in (self.api, self.metrics):
            if sock is not None:
                sock.close()


NO_SOCKETS = ListeningSockets()


def inherited_sockets(environ: MutableMapping[str, str], settings: GatewaySettings) -> ListeningSockets:
    """The sockets that the service manager has passed, and none if it has not.

    Takes the variables out of `environ`, so that no child process believes that the sockets are its own. A socket is
    known by its name, `api` or `metrics` (`FileDescriptorName=` of the socket unit), else by the configured port.

    Raises:
        CannotListen: A socket is neither, or is not a listening TCP socket.
    """
    pid, count, names = (environ.pop(name, "") for name in VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return NO_SOCKETS
    named = names.split(":") if names else []
    found: dict[str, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        for number in range(int(count)):
            sock = stack.enter_context(_open(FIRST_FD + number))
            _check_listening(sock)
            port = _port_of(named[number] if number < len(named) else "", sock, settings)
            if port in found:
                raise CannotListen(f"the service manager has passed two sockets for the port `{port}`")
            found[port] = sock
        stack.pop_all()
    return ListeningSockets(found.get("api"), found.get("metrics"))


def _open(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    except OSError as error:
        raise CannotListen(f"file descriptor {fd} of the service manager is no socket: {error.strerror}") from error


def _check_listening(sock: socket.socket) -> None:
    is_tcp = sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM
    if not is_tcp or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise CannotListen(f"file descriptor {sock.fileno()} of the service manager is not a listening TCP socket")
    sock.setblocking(False)


def _port_of(name: str, sock: socket.socket, settings: GatewaySettings) -> str:
    if name in {"api", "metrics"}:
        return name
    address = address_of(sock)
    for port, listen in (("api", settings.listen), ("metrics", settings.metrics_listen)):
        if address.port == listen.port:
            return port
    raise CannotListen(
        f"the service manager has passed a socket on {address}, which is neither gateway.listen nor"
        " gateway.metrics_listen: set FileDescriptorName=api or FileDescriptorName=metrics in its socket unit"
    )
