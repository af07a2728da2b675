"""The file that takes the ledger's rows while the store is gone for long, or at the end of the process.

One file per process, in the state directory, locked as long as its process lives. So a gateway knows the files of those
that have ended, and writes their rows to the store. Blocking.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import structlog

from gateway.access.ledger.entry import LedgerEntry, LedgerRow
from gateway.files.state_directory import give_to_owner_of_directory, make_directory

__all__ = ["SpoolFile", "abandoned_spools"]

_PATTERN = "usage-*.spool"
READ_BYTES = 1024 * 1024  # of the file at a time: about 2,500 rows

log = structlog.get_logger("cortex.ledger")

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(LedgerEntry)


class SpoolFile:
    """Rows that wait on disk, one JSON object per line, oldest first. The file exists while there are any.

    Args:
        path: Its path.
        descriptor: The file, opened and locked; None for one that does not exist yet.
    """

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        self._descriptor = descriptor
        self._read_to = 0
        self.size = 0 if descriptor is None else os.fstat(descriptor).st_size

    @classmethod
    def of_this_process(cls, directory: Path) -> SpoolFile:
        """The file for new rows of this process."""
        return cls(directory / f"usage-{secrets.token_hex(6)}.spool")

    @property
    def is_empty(self) -> bool:
        """Whether every row was taken."""
        return self._read_to >= self.size

    def append(self, entries: Sequence[LedgerRow]) -> None:
        """Add rows; they are on disk when this returns. Raises OSError, and then the file has none of them."""
        if self._descriptor is None:
            self._descriptor = self._create()
        data = b"".join(_encoder.encode(entry.entry()) + b"\n" for entry in entries)
        try:
            _write_all(self._descriptor, data, self.size)
            os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(data)

    def _create(self) -> int:
        make_directory(self.path.parent)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            give_to_owner_of_directory(self.path)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def next_rows(self) -> tuple[list[LedgerRow], int]:
        """The next rows, and where they end, for `taken`. A line that is no row is skipped and logged: the process
        was killed while it wrote it. Raises OSError.
        """
        if self._descriptor is None:
            return [], self._read_to
        data = os.pread(self._descriptor, READ_BYTES, self._read_to)
        end = data.rfind(b"\n") + 1
        if not end or self._read_to + len(data) >= self.size:
            end = len(data)  # the last line, whole or not
        return list(self._rows_in(data[:end])), self._read_to + end

    def _rows_in(self, data: bytes) -> Iterator[LedgerRow]:
        for line in data.splitlines():
            try:
                yield _decoder.decode(line).row()
            except msgspec.DecodeError:
                log.warning("spool_line_skipped", path=str(self.path), bytes=len(line))

    def taken(self, end: int) -> None:
        """The rows up to here are in the store. After the last one the file is removed. Raises OSError."""
        self._read_to = end
        if self.is_empty:
            self.remove()

    def remove(self) -> None:
        """Delete the file, with any rows in it."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Leave the file, with its rows, to the next gateway."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self.size = self._read_to = 0


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def abandoned_spools(directory: Path) -> list[SpoolFile]:
    """The files of processes that have ended, locked for this one."""
    found: list[SpoolFile] = []
    for path in sorted(directory.glob(_PATTERN)):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another gateway has just removed it, or it is another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        if os.fstat(descriptor).st_nlink == 0:  # removed between the two calls
            os.close(descriptor)
            continue
        spool = SpoolFile(path, descriptor)
        if spool.is_empty:
            spool.remove()
        else:
            found.append(spool)
    return found
