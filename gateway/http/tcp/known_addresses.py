"""Opens TCP connections to hosts, with one lookup of a name for many."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from math import inf
from typing import Any

import trio

from gateway.http.sockets import set_latency_options
from gateway.http.tcp.plain_stream import PlainStream

__all__ = ["KnownAddresses"]

KNOWN_S = 5.0  # a host that moves to another address is found there this much later, or after a failure


class KnownAddresses:
    """The addresses of hosts that have only one, for a few seconds.

    A pool may open hundreds of connections to one host in the same moment. For each of them `trio.open_tcp_stream`
    resolves the name, in a thread, and has tasks and scopes to try several addresses at a time.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}

    async def open_tcp_stream(self, host: str, port: int) -> PlainStream:
        """As `trio.open_tcp_stream`. Calls at the same time share one lookup of the name."""
        known = self._hosts.setdefault(host, _Host())
        if known.is_stale:
            async with known.lookup:
                if known.is_stale:
                    known.learn(await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        if known.address is None:
            stream = await trio.open_tcp_stream(host, port)
            return PlainStream(socket.socket(fileno=stream.socket.detach()))
        try:
            return await _connect(known.family, (known.address[0], port, *known.address[2:]))
        except OSError:
            known.known_at = -inf
            raise


class _Host:
    """What was looked up of one host."""

    __slots__ = ("address", "family", "known_at", "lookup")

    def __init__(self) -> None:
        self.lookup = trio.Lock()
        self.known_at = -inf
        self.family = socket.AF_INET
        self.address: tuple[Any, ...] | None = None  # None: the host has several

    @property
    def is_stale(self) -> bool:
        return self.known_at < trio.current_time() - KNOWN_S

    def learn(self, found: Sequence[tuple[socket.AddressFamily, Any, Any, Any, tuple[Any, ...]]]) -> None:
        self.known_at = trio.current_time()
        self.family, _, _, _, address = found[0]
        self.address = address if len(found) == 1 else None


async def _connect(family: socket.AddressFamily, address: tuple[Any, ...]) -> PlainStream:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        set_latency_options(sock.setsockopt)
        await _establish(sock, address)
    except BaseException:
        sock.close()
        raise
    return PlainStream(sock)


async def _establish(sock: socket.socket, address: tuple[Any, ...]) -> None:
    failure = sock.connect_ex(address)
    if failure == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        raise OSError(failure, os.strerror(failure))
