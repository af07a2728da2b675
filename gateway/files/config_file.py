"""Reading a file that an operator edits while the gateway runs: `models.toml`, and that of the neurons. Blocking."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from catalogue.toml.faults import Fault, FaultyFile

__all__ = ["FILE_LIMIT_BYTES", "fault_in", "is_absent", "printable", "read_config_file"]

FILE_LIMIT_BYTES = 4 * 1024 * 1024  # a thousand models take 100 KB; a larger file is some other file


def read_config_file(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        FaultyFile: The file cannot be read, is no regular file, or is too large; it has one fault that says which.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening some devices does something
            raise FaultyFile((fault_in(path, "is not a regular file"),))
        # Not blocking, in case a pipe has replaced the file since: opening it would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123 - no path
            data = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        hint = "the user that cortex runs as must be able to read it" if isinstance(error, PermissionError) else None
        raise FaultyFile((fault_in(path, f"cannot be read: {reason}", hint),)) from error
    if len(data) > FILE_LIMIT_BYTES:
        message = f"is larger than {FILE_LIMIT_BYTES // 1024**2} MiB"
        raise FaultyFile((fault_in(path, message, "a thousand models take 100 KB: check that it is the right file"),))
    return data


def is_absent(path: Path) -> bool:
    """Whether there is no such file; false if that cannot be determined."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def fault_in(path: Path, message: str, hint: str | None = None) -> Fault:
    """A fault of the whole file."""
    return Fault(printable(path), None, None, message, hint)


def printable(path: Path) -> str:
    """The path for logs and JSON: its bytes need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")
