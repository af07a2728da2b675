"""The running process's side of a takeover: it hands its sockets and its state to a new process that asks for them."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog
import trio

from gateway.files.state_directory import make_directory
from gateway.server.listen import address_of
from gateway.server.restart.service_manager import ServiceManager
from gateway.server.restart.state_writers import StateWriters
from gateway.server.restart.takeover_messages import (
    IS_SUPPORTED,
    Handed,
    HandedState,
    Hello,
    Over,
    Serving,
    Take,
    TakeoverChannel,
    TakeoverFailed,
    address_in,
    takeover_path,
)

__all__ = ["TakeoverListener"]

# From the handover of the sockets until the new process accepts: it starts its writers meanwhile, which takes
# milliseconds unless a disk hangs. State files have no writer for so long.
SERVING_DEADLINE_S = 30.0

log = structlog.get_logger("cortex.takeover")


class TakeoverListener:
    """Listens on the takeover socket of one gateway.

    Args:
        state_dir: Where the socket is.
        sockets: The listening sockets by port, "api" and "metrics".
        writers: The tasks to end before a new process starts its own.
        state: Returns what the new process gets; called once the writers have ended.
        manager: Learns which process is the main one.
        version: Of this program.
        replaces: This process has itself taken over, so the socket that is there is that of its predecessor.
        managed: A service manager has the sockets too.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        sockets: Mapping[str, socket.socket],
        writers: StateWriters,
        state: Callable[[], HandedState],
        manager: ServiceManager,
        version: str,
        replaces: bool,
        managed: bool,
    ) -> None:
        self.path = takeover_path(state_dir)
        self._sockets = sockets
        self._writers = writers
        self._state = state
        self._manager = manager
        self._version = version
        self._replaces = replaces
        self._managed = managed
        self._talking = trio.Lock()
        self._taken = trio.Event()

    async def wait_until_taken(self) -> None:
        """Return once another process serves in this one's place."""
        await self._taken.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until a takeover is complete, or cancelled. Started when listening.

        Without a socket, because the state directory cannot be written, the gateway serves, and a warning says so.
        """
        if not IS_SUPPORTED:
            task_status.started()
            return
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                await trio.to_thread.run_sync(_bind, sock.fileno(), self.path, self._replaces)
                sock.listen()
            except OSError as error:
                log.warning("takeover_unavailable", path=str(self.path), reason=error.strerror or str(error))
                task_status.started()
                return
            task_status.started()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._accept, sock, nursery)
                    await self._taken.wait()
                    nursery.cancel_scope.cancel()
            finally:
                if not self._taken.is_set():  # else the next process has replaced it, or is about to
                    with suppress(OSError):
                        self.path.unlink()

    async def _accept(self, sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            connection, _ = await sock.accept()
            nursery.start_soon(self._serve, TakeoverChannel(connection))

    async def _serve(self, channel: TakeoverChannel) -> None:
        try:
            pid = channel.check_user()
            api, metrics = (str(address_of(self._sockets[port])) for port in ("api", "metrics"))
            await channel.send(Hello(os.getpid(), self._version, api, metrics))
            take = await channel.receive(Take)
            async with self._talking:
                await self._hand_over(channel, take, pid)
        except TakeoverFailed as error:
            log.warning("takeover_failed", reason=str(error), consequence="this process goes on")
        finally:
            channel.close()

    async def _hand_over(self, channel: TakeoverChannel, take: Take, pid: int) -> None:
        """Leave the writers, the sockets and then everything to the new process. If it fails, go on as before."""
        if self._taken.is_set():
            raise TakeoverFailed("another process has taken over meanwhile")
        sockets = [self._sockets[port] for port in take.wanted if port in self._sockets]
        try:
            await self._writers.end()
            await channel.send(Handed(take.wanted, self._state(), self._managed), sockets)
            with trio.fail_after(SERVING_DEADLINE_S):
                await channel.receive(Serving)
        except trio.TooSlowError:
            self._writers.resume()
            raise TakeoverFailed(f"process {pid} did not serve within {SERVING_DEADLINE_S:g} s") from None
        except BaseException:
            self._writers.resume()
            raise
        # Before the new process tells the service manager anything: the manager listens to the main process only.
        self._manager.main_process(pid)
        self._taken.set()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):  # `run` ends now; the peer waits for this
            await channel.send(Over())
        log.info("handed_over", pid=pid, sockets=take.wanted)


def _bind(fd: int, path: Path, replaces: bool) -> None:
    """Bind a Unix socket to the path, for this user only, in the place of one that no process listens on. Blocking.

    The name appears with its final permissions: the socket is bound under another name and then renamed.
    """
    make_directory(path.parent)
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise FileExistsError(errno.EEXIST, "is not a socket; remove it")
    if not replaces and _is_listening(path):
        raise FileExistsError(errno.EEXIST, "another gateway with this state directory is running")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        partial.unlink()
    with socket.socket(fileno=os.dup(fd)) as sock, address_in(partial) as address:
        sock.bind(address)
    try:
        partial.chmod(0o600)
        partial.rename(path)
    except OSError:
        partial.unlink()
        raise


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, address_in(path) as address:
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:  # its backlog is full
            return True
        except OSError:
            return False
    return True
