"""Keeps the bytes of an upload, to be read later and more than once: a little in memory, the rest in a file.

A form whose file precedes its `model` cannot be sent on until the file has passed; JavaScript SDKs write such forms.
Threads write and read the files, a few at a time. The files have no name, so the kernel removes them when their
descriptor closes, however the request or the process ends.
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
from gateway.proxy.body.memory import BodyReservation

__all__ = ["MEMORY_BYTES", "Spool", "SpoolStorage"]

MEMORY_BYTES = 256 * 1024  # of one spool; ten seconds of speech, or four reads from a socket
THREADS = 4  # more do not make a disk faster, and each holds a copy of MEMORY_BYTES
CLOSE_DEADLINE_S = 5.0  # freeing the blocks of a large file takes milliseconds; a failing disk may never finish
FULL_RETRY_S = 5

T = TypeVar("T")

log = structlog.get_logger("cortex.spool")


class SpoolStorage:
    """The disk space and the threads that all spools of the process share.

    Args:
        directory: Where files are created; None for the system's temporary directory.
        limit_bytes: Of all files together.
    """

    def __init__(self, directory: Path | None, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._threads = trio.CapacityLimiter(THREADS)
        self.on_disk_bytes = 0
        self.open_files = 0

    def open(self, reservation: BodyReservation) -> Spool:
        """Return an empty spool; leaving its `async with` block frees its disk space.

        `reservation` counts the bytes it keeps in memory; its owner frees it.
        """
        return Spool(self, reservation)

    def reserve(self, size: int) -> None:
        """Reserve disk space. Sync, so that two requests cannot reserve the same space.

        Raises:
            Overloaded: The limit would be exceeded; nothing is reserved.
        """
        if self.on_disk_bytes + size > self._limit_bytes:
            raise Overloaded(
                f"uploads that wait on disk fill the {self._limit_bytes / 1024**2:g} MiB this gateway allows for them "
                "(limits.spool_mb); try again later, or put the form's field `model` before its file: such a form "
                "needs no disk space",
                retry_after_s=FULL_RETRY_S,
            )
        self.on_disk_bytes += size

    def free(self, size: int) -> None:
        """Give reserved disk space back."""
        self.on_disk_bytes -= size

    async def in_thread(self, step: Callable[[], T], *, abandon: bool = False) -> T:
        """Run a blocking step in a thread. If cancelled, wait for the step to end, unless it may be abandoned."""
        return await trio.to_thread.run_sync(step, abandon_on_cancel=abandon, limiter=self._threads)

    def create_file(self) -> IO[bytes]:
        """Create a file without a name. Blocks."""
        return tempfile.TemporaryFile(dir=self._directory, prefix="cortex-upload-", buffering=0)


class Spool:
    """The bytes written so far, readable from any offset and more than once, also while more are written. One writer.

    If there is a file, it has all bytes but the last `MEMORY_BYTES` or fewer.
    """

    def __init__(self, storage: SpoolStorage, reservation: BodyReservation) -> None:
        self._storage = storage
        self._reservation = reservation
        self._file: IO[bytes] | None = None
        self._on_disk_bytes = 0
        self._reserved_bytes = 0
        self._recent = bytearray()  # not in the file yet

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._on_disk_bytes + len(self._recent)

    async def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
            Overloaded: The limit on memory, or on disk space, of all requests is reached.
            ServiceUnavailable: The file cannot be created or written.
        """
        self._reservation.add(max(len(self._recent) + len(data) - self._reservation.reserved_bytes, 0))
        self._recent += data
        if len(self._recent) > MEMORY_BYTES:
            await self._to_disk()

    async def read(self, offset: int) -> bytes:
        """Return bytes from `offset` on, at most `MEMORY_BYTES`; `b""` at the end of what was written.

        Raises:
            ServiceUnavailable: The file cannot be read.
        """
        file, on_disk_bytes = self._file, self._on_disk_bytes
        if file is None or offset >= on_disk_bytes:
            return bytes(self._recent[offset - on_disk_bytes :])
        return await self._on_file(lambda: os.pread(file.fileno(), min(MEMORY_BYTES, on_disk_bytes - offset), offset))

    def in_memory(self) -> bytes | None:
        """Return everything written, or None if some of it is on disk."""
        return bytes(self._recent) if self._file is None else None

    async def aclose(self) -> None:
        """Drop all bytes and close the file. Idempotent."""
        file, self._file = self._file, None
        self._recent.clear()
        self._storage.free(self._reserved_bytes)
        self._reserved_bytes = self._on_disk_bytes = 0
        if file is None:
            return
        self._storage.open_files -= 1
        with trio.move_on_after(CLOSE_DEADLINE_S, shield=True) as closing:
            await self._storage.in_thread(file.close, abandon=True)
        if closing.cancelled_caught:
            log.warning("spool_not_closed", waited_s=CLOSE_DEADLINE_S)  # the thread keeps trying

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _to_disk(self) -> None:
        data = bytes(self._recent)
        self._storage.reserve(len(data))
        self._reserved_bytes += len(data)
        if self._file is None:
            self._file = await self._on_file(self._storage.create_file)
            self._storage.open_files += 1
        file = self._file
        await self._on_file(lambda: _write_all(file.fileno(), data, self._on_disk_bytes))
        self._on_disk_bytes += len(data)
        del self._recent[: len(data)]

    async def _on_file(self, step: Callable[[], T]) -> T:
        try:
            return await self._storage.in_thread(step)
        except OSError as error:
            log.error("spool_failed", error=str(error))  # noqa: TRY400 - a full disk needs no traceback
            raise ServiceUnavailable(
                "this gateway cannot store the upload on disk while it waits (gateway.spool_dir); try again later",
                retry_after_s=FULL_RETRY_S,
            ) from error


def _write_all(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written
