"""Bytes of a request kept to be read again: a little in memory, more in a file. What they mean is `upload.py`'s.

A form whose file comes before its `model` cannot be sent on until the file has passed, and JavaScript's SDKs write it
so. Files are written and read in threads, a few at a time, and have no name: the kernel removes one with its
descriptor, whatever becomes of the request or of the process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

import structlog
import trio

from gateway.errors import Overloaded, ServiceUnavailable
from gateway.proxy.body_memory import BodyReservation

__all__ = ["MEMORY_BYTES", "Spool", "SpoolStorage"]

MEMORY_BYTES = 256 * 1024  # of one spool; a voice note of ten seconds, or four reads from a socket
THREADS = 4  # a disk is not faster with more, and each holds a piece of MEMORY_BYTES
CLOSE_DEADLINE_S = 5.0  # freeing the blocks of a large file takes milliseconds; a sick disk may take for ever
FULL_RETRY_S = 5

T = TypeVar("T")

log = structlog.get_logger("cortex.spool")


class SpoolStorage:
    """All of a gateway's, and what they may take together.

    Args:
        directory: Where the files are made; None for the system's temporary directory.
        limit_bytes: Of all files at a time.
    """

    def __init__(self, directory: Path | None, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._threads = trio.CapacityLimiter(THREADS)
        self.on_disk_bytes = 0
        self.open_files = 0

    def open(self, reservation: BodyReservation) -> Spool:
        """An empty one, as an async context manager; its file is made when there is something to put into it.

        `reservation` counts the bytes in memory; its owner frees it.
        """
        return Spool(self, reservation)

    def reserve(self, size: int) -> None:
        """Take room on the disk, or raise Overloaded. Sync, so that two requests cannot take the same."""
        if self.on_disk_bytes + size > self._limit_bytes:
            raise Overloaded(
                f"uploads that wait for their model fill the {self._limit_bytes / 1024**2:g} MiB this gateway has for "
                "them; a form that names its `model` before its file needs none",
                retry_after_s=FULL_RETRY_S,
            )
        self.on_disk_bytes += size

    def give_back(self, size: int) -> None:
        """The room is free again."""
        self.on_disk_bytes -= size

    async def in_thread(self, step: Callable[[], T], *, abandon: bool = False) -> T:
        """Do something with a file. Cancelled, it waits for that to end, unless it may `abandon` the thread to it."""
        return await trio.to_thread.run_sync(step, abandon_on_cancel=abandon, limiter=self._threads)

    def make_file(self) -> IO[bytes]:
        """A file without a name. Blocks."""
        return tempfile.TemporaryFile(dir=self._directory, prefix="cortex-upload-", buffering=0)


class Spool:
    """The bytes written so far, to be read from any place, again and again. One writer; readers may read meanwhile.

    All but the last `MEMORY_BYTES` at most are in the file, if there is one.
    """

    def __init__(self, spools: SpoolStorage, reservation: BodyReservation) -> None:
        self._spools = spools
        self._reservation = reservation
        self._file: IO[bytes] | None = None
        self._on_disk = 0
        self._reserved = 0
        self._recent = bytearray()

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._on_disk + len(self._recent)

    async def write(self, data: bytes) -> None:
        """Append.

        Raises:
            Overloaded: All of them together take the memory, or the disk, that they may.
            ServiceUnavailable: The disk is full, or worse.
        """
        self._reservation.add(max(len(self._recent) + len(data) - self._reservation.reserved_bytes, 0))
        self._recent += data
        if len(self._recent) > MEMORY_BYTES:
            await self._to_disk()

    async def read(self, at: int) -> bytes:
        """Some of the bytes from `at` on, as many as is convenient; `b""` if that is the end of what was written.

        Raises:
            ServiceUnavailable: The disk.
        """
        file, until = self._file, self._on_disk
        if file is None or at >= until:
            return bytes(self._recent[at - until :])
        return await self._on_file(lambda: os.pread(file.fileno(), min(MEMORY_BYTES, until - at), at))

    def in_memory(self) -> bytes | None:
        """All that was written, unless some of it is on disk."""
        return bytes(self._recent) if self._file is None else None

    async def aclose(self) -> None:
        """Forget everything, and the file with it. Idempotent."""
        file, self._file = self._file, None
        self._recent.clear()
        self._spools.give_back(self._reserved)
        self._reserved = self._on_disk = 0
        if file is None:
            return
        self._spools.open_files -= 1
        with trio.move_on_after(CLOSE_DEADLINE_S, shield=True) as patience:
            await self._spools.in_thread(file.close, abandon=True)
        if patience.cancelled_caught:
            log.warning("spool_not_closed", waited_s=CLOSE_DEADLINE_S)  # the thread goes on at it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _to_disk(self) -> None:
        data = bytes(self._recent)
        self._spools.reserve(len(data))
        self._reserved += len(data)
        if self._file is None:
            self._file = await self._on_file(self._spools.make_file)
            self._spools.open_files += 1
        file = self._file
        await self._on_file(lambda: _write_all(file.fileno(), data, self._on_disk))
        self._on_disk += len(data)
        del self._recent[: len(data)]

    async def _on_file(self, step: Callable[[], T]) -> T:
        try:
            return await self._spools.in_thread(step)
        except OSError as error:
            log.error("spool_failed", error=str(error))  # noqa: TRY400 - a full disk needs no traceback
            raise ServiceUnavailable(
                "this gateway has nowhere to keep the upload until its `model` is known", retry_after_s=FULL_RETRY_S
            ) from error


def _write_all(fd: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, at)
        rest, at = rest[written:], at + written
