"""Sees clients leave, in one task for all connections, so that no request needs a task or a read for that."""

from __future__ import annotations

import select
from collections.abc import Callable

import trio

__all__ = ["HangUps"]


class HangUps:
    """Watches connections for peers that close their side or reset, in one task for all of them.

    It reads nothing, so it sees a hang-up even behind unread bytes.

    Attributes:
        running: Whether `watch` can be called; False where the system has no epoll.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Callable[[], None]] = {}
        self.running = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Call the callbacks, until cancelled."""
        if not hasattr(select, "epoll"):
            task_status.started()
            return
        with select.epoll() as epoll:
            self._epoll, self.running = epoll, True
            task_status.started()
            try:
                while True:
                    await trio.lowlevel.wait_readable(epoll.fileno())
                    for fd, _ in epoll.poll(0):
                        if fd in self._watched:
                            hung_up = self._watched[fd]
                            self.forget(fd)  # it stays hung up: epoll would report it again and again
                            hung_up()
            finally:
                self._epoll, self.running = None, False
                self._watched.clear()

    def watch(self, fd: int, hung_up: Callable[[], None]) -> None:
        """Call `hung_up` once, when the peer of `fd` has hung up. Call `forget` before closing `fd`."""
        if self._epoll is not None:
            self._watched[fd] = hung_up
            self._epoll.register(fd, select.EPOLLRDHUP)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`, if it is watched."""
        if self._watched.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)
