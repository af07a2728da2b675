"""The conversation in which a new gateway process takes the sockets of a running one, over a Unix socket.

    running                                        new
    listens on takeover.sock                       connects, before it reads any state file
      Hello: which addresses it has          -->
                                                   builds its gateway, polls the neurons
                                             <--     Take
    ends its writers of state files
      Handed: state; the sockets themselves  -->
                                                   starts its writers, accepts connections
                                             <--     Serving
      Over: the takeover is complete         -->
    drains                                         listens on takeover.sock

Each message is one line of JSON. Only processes of the same user, or root, may take part. Until `Serving` the running
process accepts connections, and if the new one fails before that, it starts its writers again and goes on.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio

from gateway.fleet.learnt import LearntModel

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "IS_SUPPORTED",
    "Handed",
    "HandedState",
    "Hello",
    "Over",
    "Serving",
    "Take",
    "TakeoverChannel",
    "TakeoverFailed",
    "address_in",
    "takeover_path",
]

FILE_NAME = "takeover.sock"
LINE_LIMIT_BYTES = 16 * 1024**2  # of one message; what was learnt about 10,000 models is 2 MB
RECEIVE_BYTES = 65536
MAX_SOCKETS = 2
ROOT = 0
IS_SUPPORTED = hasattr(socket, "SO_PEERCRED")  # Linux: who is behind a Unix socket
MAX_PATH_BYTES = 107  # sun_path without its terminating zero, unix(7)

_Message = TypeVar("_Message", bound=msgspec.Struct)


class TakeoverFailed(Exception):
    """The takeover cannot go on. The text says why; the running process serves as before."""


class Hello(msgspec.Struct, frozen=True):
    """The running process. `api` and `metrics` are the addresses of its sockets, host:port."""

    pid: int
    version: str
    api: str
    metrics: str


class Take(msgspec.Struct, frozen=True):
    """The new process is ready, and `wanted` names the sockets it needs: "api", "metrics"."""

    pid: int
    wanted: list[str]


class HandedState(msgspec.Struct, frozen=True):
    """What only the running process knows.

    Attributes:
        generation: Of the catalogue in force.
        digest: Of its file; None if there is none.
        targets_in_force: Of each alias that still has its old targets, because its new ones are not warm: these, as
            model and weight.
        models: What was learnt about models on neurons.
    """

    generation: int
    digest: str | None
    targets_in_force: dict[str, list[tuple[str, float]]] = {}
    models: list[LearntModel] = []


class Handed(msgspec.Struct, frozen=True):
    """The state. The sockets that `sockets` names come with this message, in that order.

    `managed` says that a service manager has the sockets too, and passes them to the process that it starts next.
    """

    sockets: list[str]
    state: HandedState
    managed: bool = False


class Serving(msgspec.Struct, frozen=True):
    """The new process accepts connections."""


class Over(msgspec.Struct, frozen=True):
    """The running process leaves everything to the new one, and drains."""


def takeover_path(state_dir: Path) -> Path:
    """The Unix socket of the gateway with this state directory."""
    return state_dir / FILE_NAME


@contextmanager
def address_in(path: Path) -> Iterator[str]:
    """The path as an address for `bind` and `connect`, also if it is longer than a Unix address may be."""
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class TakeoverChannel:
    """One side's end of the conversation. Its creator closes it.

    Raises:
        TakeoverFailed: From every method: the other side has another user, has ended, or sends something else.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock
        self._received = bytearray()
        self._fds: list[int] = []

    def check_user(self) -> int:
        """Check that the other side's user may take part; returns its process id."""
        size = struct.calcsize("3i")  # struct ucred of unix(7): pid, uid, gid
        pid, uid, _ = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if uid not in {os.geteuid(), ROOT}:
            raise TakeoverFailed(f"process {pid} belongs to user {uid}, not to {os.geteuid()}")
        return int(pid)

    async def send(self, message: msgspec.Struct, sockets: Sequence[socket.socket] = ()) -> None:
        """Send one message, with these sockets."""
        data = memoryview(msgspec.json.encode(message) + b"\n")
        rights = struct.pack(f"{len(sockets)}i", *(sock.fileno() for sock in sockets))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if sockets else []
        try:
            sent = await self._socket.sendmsg([data], ancillary)
            while sent < len(data):
                sent += await self._socket.send(data[sent:])
        except OSError as error:
            raise TakeoverFailed(f"the other process has ended: {error.strerror}") from error

    async def receive(self, kind: type[_Message]) -> _Message:
        """The next message. `take_sockets` returns the sockets that came with it."""
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > LINE_LIMIT_BYTES:
                raise TakeoverFailed("the other process sends too much")
            await self._receive_more()
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            return msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError as error:
            raise TakeoverFailed(f"the other process speaks another version of this protocol: {error}") from error

    async def _receive_more(self) -> None:
        try:
            data, ancillary, _, _ = await self._socket.recvmsg(RECEIVE_BYTES, socket.CMSG_SPACE(MAX_SOCKETS * 4))
        except OSError as error:
            raise TakeoverFailed(f"the other process has ended: {error.strerror}") from error
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._fds += struct.unpack(f"{len(rights) // 4}i", rights[: len(rights) // 4 * 4])
        if not data:
            raise TakeoverFailed("the other process has closed the connection")
        self._received += data

    def take_sockets(self) -> list[socket.socket]:
        """The sockets received so far, which are the caller's to close."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.set_inheritable(fd, False)
        return [socket.socket(fileno=fd) for fd in fds]

    def close(self) -> None:
        """Close the connection, and the sockets that were not taken. Sync."""
        self._socket.close()
        for sock in self.take_sockets():
            sock.close()
