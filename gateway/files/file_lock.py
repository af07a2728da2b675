"""The lock that programs of cortex take before they edit a file: two shells, or a shell and a rollout. Blocking.

Editors do not take this lock, so `atomic_write.replace` also checks that the file still has the content that the edit
started from.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.files.atomic_write import CannotSave

__all__ = ["locked"]

LOCK_DEADLINE_S = 10.0  # an edit takes milliseconds; `fuser DIRECTORY` names a process that holds the lock for longer
LOCK_RETRY_S = 0.02


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on editing `path`.

    The lock is on the directory of the file behind any symlinks, so the file need not exist, and every name of the
    file leads to the same lock.

    Raises:
        CannotSave: Another process held the lock for `LOCK_DEADLINE_S`, or the directory does not exist.
    """
    directory = Path(os.path.realpath(path)).parent
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CannotSave(f"{directory}: {error.strerror}") from error
    try:
        _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)  # releases the lock


def _lock(descriptor: int, directory: Path) -> None:
    deadline = time.monotonic() + LOCK_DEADLINE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise CannotSave(
                    f"another process has held the edit lock on {directory} for {LOCK_DEADLINE_S:g} s;"
                    f" `fuser {directory}` names it"
                ) from None
            time.sleep(LOCK_RETRY_S)
        except OSError:
            return  # this file system has no locks; `replace` still detects nearly every concurrent edit
        else:
            return
