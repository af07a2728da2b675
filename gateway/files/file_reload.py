"""`FileReload`: reads a file whenever it may have changed, and hands what it found to the owner of the file's content.

reload (SIGHUP), write (admin API) ----------+
+--> examine (in a thread) --> apply: synchronous
watch (file event, slow poll), if different -+
"""

from __future__ import annotations

import errno
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import trio

from catalogue.toml.faults import Fault
from gateway.files.config_file import fault_in
from gateway.files.deadline_thread import DeadlineThread, StillRunning
from gateway.files.file_watch import FileWatch

__all__ = ["FILE_ACTOR", "FileReload", "Found"]

POLL_S = 2.0
# Some editors truncate a file before they write it, or delete it before they put it back. A fault that was found after
# an event is rejected only once it has lasted this long, so that a save does not raise an alarm.
HALF_WRITTEN_S = 0.25
WRITTEN_WITHIN_S = 20.0
READ_WITHIN_S = 10.0  # a local file takes less than a millisecond, a slow network file system seconds
FILE_ACTOR = "file"  # the actor of a change that came by an edit of the file, not through the gateway

_Content = TypeVar("_Content")
_Outcome = TypeVar("_Outcome")
_Saved = TypeVar("_Saved")
Found: TypeAlias = _Content | tuple[Fault, ...] | None
"""What the file contains: a new content, or its faults, or None if it is the file that is in force."""


class FileReload(Generic[_Content, _Outcome]):
    """Reads one file again and again. Of two concurrent reads the later one is applied last.

    Args:
        path: The file.
        examine: Reads and parses it. Runs in a thread.
        apply: Gets what `examine` found, and the actor who caused the read. Synchronous.
        last_error: Returns the faults for which the file is not in force; None if it is.
        poll_s: How often the file is read without an event.
    """

    def __init__(
        self,
        path: Path,
        examine: Callable[[], Found[_Content]],
        apply: Callable[[Found[_Content], str], _Outcome],
        *,
        last_error: Callable[[], tuple[Fault, ...] | None],
        poll_s: float = POLL_S,
    ) -> None:
        self._path = path
        self._examine = examine
        self._apply = apply
        self._last_error = last_error
        self._poll_s = poll_s
        # Reading waits for a thread: of two concurrent reloads, the one with the older bytes could finish last.
        self._lock = trio.Lock()
        self._reading = DeadlineThread(READ_WITHIN_S)

    async def reload(self, actor: str) -> _Outcome:
        """Read the file now and apply it. Each caller gets the result of a read that began after its call."""
        async with self._lock:
            return self._apply(await self._examine_in_thread(), actor)

    async def write(self, save: Callable[[], Awaitable[_Saved]], actor: str) -> tuple[_Saved, _Outcome]:
        """Let `save` write the file, then read and apply it. No other read comes in between.

        So the outcome is that of this write, and the change has this actor.

        Args:
            save: Writes the file, in a thread that may be abandoned. May raise.
            actor: Of the write.

        Returns:
            What `save` returned, and what `apply` did.

        Raises:
            TimeoutError: The file system has not answered in time. The file may still be written, and is then applied.
        """
        async with self._lock:
            with trio.move_on_after(WRITTEN_WITHIN_S):
                saved = await save()
                return saved, self._apply(await self._examine_in_thread(), actor)
        words = f"no result of the write within {WRITTEN_WITHIN_S:g} s; check the file system, and read the file again"
        raise TimeoutError(errno.ETIMEDOUT, words, str(self._path))

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Apply the file whenever its content changes. Runs until cancelled, and then ends within a second.

        Started once it notices changes and has read the file once.
        """
        file_watch = FileWatch(self._path)
        try:
            await file_watch.refresh()
            faulty_since = await self._reload_if_different(math.inf)
            task_status.started()
            while True:
                is_event = await file_watch.wait_for_event(self._poll_s if faulty_since == math.inf else HALF_WRITTEN_S)
                await file_watch.refresh()
                faulty_since = await self._reload_if_different(faulty_since, reject_at_once=not is_event)
        finally:
            file_watch.close()

    async def _reload_if_different(self, faulty_since: float, *, reject_at_once: bool = True) -> float:
        """Apply the file if it differs from the last read; but reject a fault only once it has lasted.

        Returns:
            Since when (trio time) the file has had a fault that was not yet rejected; infinity if it has none.
        """
        async with self._lock:
            found = await self._examine_in_thread()
            if not self._is_different(found):
                return math.inf
            if isinstance(found, tuple) and not reject_at_once:
                faulty_since = min(faulty_since, trio.current_time())
                if trio.current_time() - faulty_since < HALF_WRITTEN_S:
                    return faulty_since
            self._apply(found, FILE_ACTOR)
            return math.inf

    def _is_different(self, found: Found[_Content]) -> bool:
        last_error = self._last_error()
        return last_error is not None if found is None else found != last_error

    async def _examine_in_thread(self) -> Found[_Content]:
        try:
            return await self._reading.run(self._examine)
        except StillRunning:
            hint = "check the file system; the file is read again once this read has ended"
            return (fault_in(self._path, f"cannot be read: no result within {self._reading.deadline_s:g} s", hint),)
