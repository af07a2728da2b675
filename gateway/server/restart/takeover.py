"""The new process's side of a takeover: `cortex serve --takeover`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import trio

from catalogue.toml.addresses import Listen
from gateway.config.settings import GatewaySettings
from gateway.server.restart.socket_activation import ListeningSockets
from gateway.server.restart.takeover_messages import (
    IS_SUPPORTED,
    Handed,
    Hello,
    Over,
    Serving,
    Take,
    TakeoverChannel,
    TakeoverFailed,
    address_in,
    takeover_path,
)

__all__ = ["Predecessor", "connect_to_predecessor"]

ANSWER_DEADLINE_S = 60.0  # for the running process to end its writers; it takes milliseconds unless a disk hangs

log = structlog.get_logger("cortex.takeover")


def connect_to_predecessor(state_dir: Path) -> Predecessor | None:
    """Connect to the running gateway with this state directory; None if there is none. Blocking.

    Raises:
        TakeoverFailed: There is something else.
    """
    if not IS_SUPPORTED:
        raise TakeoverFailed("this system does not tell which user is behind a Unix socket")
    path = takeover_path(state_dir)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address_in(path) as address:
            sock.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise TakeoverFailed(f"cannot connect to {path}: {error.strerror}") from error
    return Predecessor(sock)


class Predecessor:
    """The running process, of which this one takes sockets and state. `close` ends the conversation at any time.

    Every method raises TakeoverFailed if the running process has ended, does not answer, or refuses.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._channel: TakeoverChannel | None = None
        self._hello = Hello(0, "", "", "")

    @property
    def api(self) -> Listen:
        """The address of the API, once `find_wanted` has returned."""
        host, _, port = self._hello.api.rpartition(":")
        return Listen(host.strip("[]"), int(port))

    async def find_wanted(self, settings: GatewaySettings) -> list[str]:
        """The ports whose sockets to take: "api", and "metrics" unless it has another address now."""
        self._socket.setblocking(False)
        self._channel = TakeoverChannel(trio.socket.from_stdlib_socket(self._socket))
        self._channel.check_user()
        with _answer_deadline():
            hello = self._hello = await self._channel.receive(Hello)
        if not await _is_same(settings.listen, hello.api):
            raise TakeoverFailed(
                f"process {hello.pid} listens on {hello.api}, and gateway.listen is {settings.listen}:"
                " stop it first, or give each gateway a state directory of its own"
            )
        return ["api", *(["metrics"] if await _is_same(settings.metrics_listen, hello.metrics) else [])]

    async def take(self, wanted: list[str]) -> tuple[ListeningSockets, Handed]:
        """Have the running process end its writers, and take sockets and state."""
        channel = self._open_channel()
        with _answer_deadline():
            await channel.send(Take(os.getpid(), wanted))
            handed = await channel.receive(Handed)
        sockets = channel.take_sockets()
        if handed.sockets != wanted or len(sockets) != len(wanted):
            for sock in sockets:
                sock.close()
            raise TakeoverFailed(f"process {self._hello.pid} did not hand over the sockets")
        for sock in sockets:
            sock.setblocking(False)
        named = dict(zip(wanted, sockets, strict=True))
        return ListeningSockets(named.get("api"), named.get("metrics")), handed

    async def confirm(self) -> None:
        """Tell the running process that this one accepts connections; from then on this one is the gateway."""
        channel = self._open_channel()
        with _answer_deadline():
            await channel.send(Serving())
            await channel.receive(Over)
        log.info("taken_over", pid=self._hello.pid, version=self._hello.version)

    def _open_channel(self) -> TakeoverChannel:
        if self._channel is None:
            raise RuntimeError("find_wanted was not called")
        return self._channel

    def close(self) -> None:
        """End the conversation. Before `confirm` has returned, the running process goes on."""
        if self._channel is not None:
            self._channel.close()
        self._socket.close()


@contextmanager
def _answer_deadline() -> Iterator[None]:
    try:
        with trio.fail_after(ANSWER_DEADLINE_S):
            yield
    except trio.TooSlowError:
        raise TakeoverFailed(f"the running process did not answer within {ANSWER_DEADLINE_S:g} s") from None


async def _is_same(listen: Listen, address: str) -> bool:
    """Whether a configured address means this bound one. Port 0 means whatever port the running process has."""
    host, _, port = address.rpartition(":")
    if listen.port not in {0, int(port)}:
        return False
    try:
        found = await trio.socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return found[0][4][0] == host.strip("[]")
