"""The background tasks that only one process may run: those that write the state files or change the fleet by plan."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

__all__ = ["StateWriters"]


class StateWriters:
    """Runs the tasks, and can end them for another process, and start them again if that process fails.

    Args:
        start: Starts all of them in a nursery, and returns when they have started.
    """

    def __init__(self, start: Callable[[trio.Nursery], Awaitable[None]]) -> None:
        self._start = start
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._resume = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks. Started when they have started. A crash of one of them passes."""
        status: trio.TaskStatus[None] | None = task_status
        while True:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await self._start(nursery)
                    if status is not None:
                        status.started()
                        status = None
                    await trio.sleep_forever()
            self._ended.set()
            await self._resume.wait()
            self._scope, self._ended, self._resume = trio.CancelScope(), trio.Event(), trio.Event()

    async def end(self) -> None:
        """End the tasks, and wait until each has written what it has to write."""
        self._scope.cancel()
        await self._ended.wait()

    def resume(self) -> None:
        """Start the tasks again after `end`."""
        self._resume.set()
