"""What an engine prints: the last part in memory, all of it in a rotated file. Bounded in both places.

One `EngineOutput` belongs to one model and outlives its engine's restarts, so that the reason of a crash can be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import trio

__all__ = ["EngineOutput", "FollowedOutput"]

KEPT_BYTES = 256 * 1024
FILE_BYTES = 8 * 1024 * 1024
"""Size at which the file is rotated; one older file is kept beside it."""


class EngineOutput:
    """The output of one model's engine.

    Args:
        path: The log file; its folder must exist. None keeps output in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._file_bytes = 0
        self._tail = bytearray()
        self._end = 0
        self._run_begins = 0
        self._grown = trio.Event()
        self.file_error: str | None = None
        """Why output does not reach the file, or None. Output stays readable from memory then."""

    def begin_run(self, title: str) -> None:
        """Mark the start of an engine process; `tail` reads from here."""
        self._run_begins = self._end
        self.feed(f"--- {title}\n".encode())

    def close_run(self) -> None:
        """Close the file until the next run."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def feed(self, data: bytes) -> None:
        """Add output. Writes to the file synchronously: engines print little, and the page cache takes it."""
        self._tail += data
        self._end += len(data)
        if len(self._tail) > 2 * KEPT_BYTES:
            del self._tail[:-KEPT_BYTES]
        grown, self._grown = self._grown, trio.Event()
        grown.set()
        self._write(data)

    def _write(self, data: bytes) -> None:
        if self._path is None:
            return
        try:
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
                self._file_bytes = self._path.stat().st_size
            if self._file_bytes + len(data) > FILE_BYTES:
                self._file.close()
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                self._file = self._path.open("ab", buffering=0)
                self._file_bytes = 0
            self._file.write(data)
        except OSError as error:
            self.file_error = f"cannot write {self._path}: {error.strerror}"
        else:
            self._file_bytes += len(data)
            self.file_error = None

    def tail(self, limit_bytes: int = KEPT_BYTES) -> bytes:
        """The last output of the current or last run, at most `limit_bytes`."""
        run = self._end - self._run_begins
        kept = min(limit_bytes, run, len(self._tail))
        return bytes(self._tail[len(self._tail) - kept :])

    def recent(self, limit_bytes: int = KEPT_BYTES) -> bytes:
        """The last output over all runs, at most `limit_bytes`."""
        return bytes(self._tail[-limit_bytes:]) if limit_bytes else b""

    def follow(self, limit_bytes: int) -> FollowedOutput:
        """The last `limit_bytes`, then new output as it comes, without end."""
        return FollowedOutput(self, self._end - min(limit_bytes, len(self._tail)))

    async def after(self, position: int) -> tuple[bytes, int]:
        """Wait for output after a position, counted in bytes from the first; return it and the position behind it.

        A slow reader skips what has been dropped meanwhile.
        """
        while self._end <= position:
            await self._grown.wait()
        missed = min(self._end - position, len(self._tail))
        return bytes(self._tail[len(self._tail) - missed :]), self._end


class FollowedOutput:
    """An async iterator over output as it comes; see `EngineOutput.follow`."""

    def __init__(self, output: EngineOutput, position: int) -> None:
        self._output = output
        self._position = position

    def __aiter__(self) -> FollowedOutput:
        return self

    async def __anext__(self) -> bytes:
        data, self._position = await self._output.after(self._position)
        return data
