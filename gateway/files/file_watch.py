"""Noticing that a file may have changed, by file system events. What changed, and whether it matters, is not here."""

from __future__ import annotations

import os
from pathlib import Path

import structlog
import trio

from gateway.files.config_file import printable
from gateway.files.deadline_thread import DeadlineThread, StillRunning
from gateway.files.directory_events import DirectoryEvents

__all__ = ["FileWatch"]

LOOK_WITHIN_S = 10.0  # for the directories that a path leads to; a file system that hangs is waited for no longer

_log = structlog.get_logger("cortex.watcher")


class FileWatch:
    """Waits for events in the directories of a file, however the file is replaced.

    It watches directories, because editors replace files and a ConfigMap update replaces a symlink beside them: a watch
    on the file itself would end with the old file. It watches two directories if the file is a symlink to another
    directory. Every event counts, whatever its file name: the caller compares the content, which is cheap.

    Without events (inotify instances exhausted, a network file system) it logs that once, and its waits just time out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looking = DeadlineThread(LOOK_WITHIN_S)
        self._watched: dict[str, tuple[int, int]] = {}
        self._events: DirectoryEvents | None = None
        self._warned = False

    async def refresh(self) -> None:
        """Watch the directories that the path leads to now, if they differ from those watched already."""
        try:
            directories = await self._looking.run(lambda: _directories_of(self._path))
        except StillRunning:  # the file system hangs, which reading the file will report
            return
        if directories == self._watched and (self._events is not None or not directories):
            return
        self.close()
        self._watched = directories
        if not directories:
            return
        try:
            self._events = DirectoryEvents(directories)
        except OSError as error:
            self._warn_once(error)

    async def wait_for_event(self, at_most_s: float) -> bool:
        """True after an event; False after `at_most_s` without one, or if events are not available."""
        with trio.move_on_after(at_most_s):
            if self._events is None:
                await trio.sleep_forever()
            else:
                await self._events.wait()
                return True
        return False

    def close(self) -> None:
        """Stop watching; `refresh` starts again."""
        if self._events is not None:
            self._events.close()
        self._events = None

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            path = printable(self._path)
            _log.warning("catalogue_events_unavailable", path=path, reason=str(error), fallback="polling")


def _directories_of(path: Path) -> dict[str, tuple[int, int]]:
    """The directories of the path and of the file behind it, each with its device and inode numbers."""
    directories = {}
    for directory in (path.parent, Path(os.path.realpath(path)).parent):
        try:
            status = directory.stat()
        except OSError:
            continue
        directories[str(directory)] = (status.st_dev, status.st_ino)
    return directories
