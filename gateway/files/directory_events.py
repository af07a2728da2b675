"""What changes in directories, as Linux reports it: inotify(7). Trio waits for its descriptor, so there is no thread.

Writing to a file is no event, only closing it afterwards is. So files that stay open in a directory that is watched, as
the store's are by default, wake nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from contextlib import suppress

import trio

__all__ = ["DirectoryEvents"]

# <sys/inotify.h>
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x08, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _ONLYDIR = 0x400, 0x800, 0x0100_0000
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR

SETTLE_S = 0.01  # most saves cause several events
_READ_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryEvents:
    """Events in some directories, not in those below them. Close it.

    Args:
        directories: Their paths.

    Raises:
        OSError: A directory cannot be watched; ENOSYS where the system has no inotify.
    """

    def __init__(self, directories: Iterable[str]) -> None:
        if not hasattr(_libc, "inotify_init1"):
            raise OSError(errno.ENOSYS, "this system has no inotify")
        paths = {directory: os.fsencode(directory) for directory in directories}
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            for directory, path in paths.items():
                _checked(_libc.inotify_add_watch(self._descriptor, path, _MASK), directory)
        except OSError:
            self.close()
            raise

    async def wait(self) -> None:
        """Return after the next event, and take those that follow at once. If cancelled, no event is lost."""
        await trio.lowlevel.wait_readable(self._descriptor)
        await trio.sleep(SETTLE_S)
        with suppress(BlockingIOError):  # nothing is left to read
            while os.read(self._descriptor, _READ_BYTES):
                continue

    def close(self) -> None:
        """Stop watching. No task may wait."""
        os.close(self._descriptor)


def _checked(result: int, directory: str | None = None) -> int:
    """The result of a call. Raises OSError if it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), directory)
    return result
