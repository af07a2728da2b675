"""A blocking function in a thread, with a deadline: a file system that hangs must not stop the task that asks it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import trio

__all__ = ["DeadlineThread", "StillRunning"]

_T = TypeVar("_T")


class StillRunning(Exception):
    """The function has not returned. Its thread goes on alone; its result is dropped."""


class DeadlineThread:
    """Runs one function at a time. While one that was given up is still running, further calls fail at once.

    So a hanging file system takes one thread, not one more at each attempt.
    """

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._given_up: threading.Event | None = None  # set once the function that was given up has returned
        self._threads = trio.CapacityLimiter(4)  # not Trio's own: a hanging thread must not take one that others need

    async def run(self, function: Callable[[], _T]) -> _T:
        """The function's result. Raises StillRunning, and what the function raises."""
        if self._given_up is not None and not self._given_up.is_set():
            raise StillRunning
        returned = threading.Event()

        def run() -> _T:
            try:
                return function()
            finally:
                returned.set()

        with trio.move_on_after(self.deadline_s):
            # Abandoned when cancelled: the process must be able to end while the file system hangs.
            return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._threads)
        self._given_up = returned
        raise StillRunning
