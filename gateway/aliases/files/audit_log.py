"""The audit log's files: one JSON object per line, each with the hash of the line before. Blocking.

`auditor.py` decides what is written and when; here are append, read and verify.

    models.audit.jsonl              the lines since the last rotation
    models.audit.jsonl.000000412    earlier lines up to number 412, and so on; the hash chain spans all files
    models.audit.jsonl.head         number and hash of the last line, so that a log cut at its end is noticed

The last two keys of a line are `previous`, the hash of the line before, and `hash`, the SHA-256 of the line's own bytes
before that key, closed with a brace. A changed line fails its own hash, and a missing line breaks the chain at the next
one. Lines missing at the end break no chain: the head file tells of them, and the gateway, which knows the last line
that it wrote. The next line goes on after the missing ones, so that the gap stays visible. There is no secret key: all
this detects accidents and careless edits. To detect a rewrite of the whole log, note the last hash somewhere else.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from gateway.files import atomic_write
from gateway.files.state_directory import give_to_owner_of_directory, make_directory

__all__ = ["GENESIS", "AuditHead", "AuditLine", "AuditLog", "ChainBreak", "Verification"]

GENESIS = "0" * 64  # `previous` of the very first line
_HASH_KEY = b',"hash":"'
_TAIL_BYTES = 64 * 1024  # how much of the file's end is read first to find the last newline


class AuditHead(msgspec.Struct, frozen=True, order=True):
    """The number and the hash of a line that is known to have been written."""

    seq: int = 0
    hash: str = GENESIS


_NO_LINE = AuditHead()


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One intact line: its file, its line number there, and its fields."""

    path: Path
    number: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChainBreak:
    """The first line that does not fit into the chain. `number` is None if lines are missing at the end."""

    path: Path
    number: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.number is None else f"{self.path}:{self.number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `AuditLog.verify`.

    Args:
        lines: How many lines are intact, up to the first break.
        first, last: Their sequence numbers; 0 if there are none.
        head: The hash of the last of them.
        broken: The first break, or None.
        torn_bytes: Length of an unfinished last line, left by a crash during a write. It is not a break: the next
            append replaces it.
    """

    lines: int = 0
    first: int = 0
    last: int = 0
    head: str = GENESIS
    broken: ChainBreak | None = None
    torn_bytes: int = 0


class AuditLog:
    """The files of one audit log. Several processes may append: each append takes a lock.

    Args:
        path: The file that lines are appended to.
        rotate_bytes: The file is rotated once it has this size.
        rotated_files: How many rotated files are kept; 0 keeps all.
    """

    def __init__(self, path: Path, *, rotate_bytes: int, rotated_files: int) -> None:
        self.path = path
        self._rotate_bytes = rotate_bytes
        self._rotated_files_kept = rotated_files

    # Writing...

    def append(self, fields: dict[str, Any], *, known: AuditHead = _NO_LINE) -> dict[str, Any]:
        """Append one line and sync it to disk; returns its fields with `seq`, `previous` and `hash`.

        An unfinished last line is replaced; the new line records its length as `torn_bytes`. If lines are missing at
        the end, the new line follows the last one that is known to have been written, not the last one that is left.

        Args:
            fields: The line without those three keys.
            known: The last line that the caller knows of.

        Raises:
            OSError: The line was not written, or only its beginning, which counts as unfinished.
        """
        with self._opened() as file:
            torn_bytes = _drop_torn_line(file)
            last = max(self._last_line(), self._read_head(), known, key=lambda head: head.seq)
            body = {"seq": last.seq + 1} | fields
            if torn_bytes:
                body["torn_bytes"] = torn_bytes
            body["previous"] = last.hash
            line, digest = _sealed(body)
            _write_all(file, line)
            os.fsync(file)
            self._write_head(AuditHead(body["seq"], digest))
            if os.fstat(file).st_size >= self._rotate_bytes:
                self._rotate(body["seq"])
        return body | {"hash": digest}

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The current file, locked. Opened again if another process rotated it before the lock was acquired."""
        while True:
            file = self._open()
            try:
                with suppress(OSError):  # a file system without locks: then only one process may append
                    fcntl.flock(file, fcntl.LOCK_EX)
                if self._is_current(file):
                    yield file
                    return
            finally:
                os.close(file)

    def _open(self) -> int:
        is_new = not self.path.exists()
        if is_new:
            make_directory(self.path.parent)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if is_new:
            give_to_owner_of_directory(self.path)
        return file

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(file))
        except FileNotFoundError:
            return False

    def _rotate(self, last_seq: int) -> None:
        self.path.rename(self.path.with_name(f"{self.path.name}.{last_seq:09d}"))
        if self._rotated_files_kept:
            for path in self._rotated()[: -self._rotated_files_kept]:
                path.unlink(missing_ok=True)

    @property
    def head_path(self) -> Path:
        """The file that has the number and the hash of the last line."""
        return self.path.with_name(f"{self.path.name}.head")

    def _write_head(self, head: AuditHead) -> None:
        with suppress(OSError):  # the line itself is written; an older head is only a weaker proof
            atomic_write.write(self.head_path, msgspec.json.encode(head) + b"\n")

    def _read_head(self) -> AuditHead:
        try:
            return msgspec.json.decode(self.head_path.read_bytes(), type=AuditHead)
        except (OSError, msgspec.DecodeError):
            return _NO_LINE

    def _last_line(self) -> AuditHead:
        last = next(self.newest_first(), None)
        return _NO_LINE if last is None else AuditHead(last.fields["seq"], last.fields["hash"])

    # Reading...

    def _rotated(self) -> list[Path]:
        """The rotated files, oldest first. Other suffixes, such as an operator's .bak, are ignored."""
        prefix = f"{self.path.name}."
        found = {path.name.removeprefix(prefix): path for path in self.path.parent.glob(f"{glob.escape(prefix)}*")}
        numbered = {int(suffix): path for suffix, path in found.items() if suffix.isdecimal()}
        return [numbered[number] for number in sorted(numbered)]

    def _files(self) -> list[Path]:
        return [*self._rotated(), *([self.path] if self.path.exists() else [])]

    def newest_first(self) -> Iterator[AuditLine]:
        """Every intact line, newest first. Raises OSError."""
        for path in reversed(self._files()):
            try:
                lines = path.read_bytes().splitlines()  # at most one rotation long
            except FileNotFoundError:  # rotated or deleted since it was listed
                continue
            for number in range(len(lines), 0, -1):
                fields = _unsealed(lines[number - 1])
                if fields is not None:
                    yield AuditLine(path, number, fields)

    def verify(self, *, known: AuditHead = _NO_LINE) -> Verification:
        """Check that every line is intact and none is missing. Raises OSError.

        The predecessor of the oldest line may have been rotated away, so that line's `previous` is not checked.
        Verifying takes no lock: if a writer rotates meanwhile, the files are read again.

        Args:
            known: A line that is known to have been written, for example from a running gateway.
        """
        while True:
            files, head = self._files(), max(self._read_head(), known, key=lambda head: head.seq)
            try:
                verification = self._with_end_checked(self._verify(files), head)
            except FileNotFoundError:
                if self._files() == files:
                    raise
                continue
            if self._files() == files:
                return verification

    def _with_end_checked(self, found: Verification, head: AuditHead) -> Verification:
        """The result, broken if lines up to `head` are missing at the end, or lines before the first file."""
        if found.broken is not None or found.last > head.seq:
            return found
        if found.last < head.seq:
            reason = f"the log ends with number {found.last}, and number {head.seq} was written after it"
        elif found.head != head.hash:
            reason = f"number {found.last} is not the line that was written under this number"
        else:
            return found
        return replace(found, broken=ChainBreak(self.path, None, f"{reason}: the log was cut, emptied or replaced"))

    def _verify(self, files: list[Path]) -> Verification:
        intact = Verification()
        has_rotated = files[:1] != [self.path]
        for path in files:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    fields = _unsealed(line.removesuffix(b"\n"))
                    if fields is None and path == self.path and not line.endswith(b"\n"):
                        return replace(intact, torn_bytes=len(line))
                    reason = _why_broken(fields, intact, may_begin_late=has_rotated)
                    if fields is None or reason is not None:
                        return replace(intact, broken=ChainBreak(path, number, reason or ""))
                    intact = Verification(
                        intact.lines + 1, intact.first or fields["seq"], fields["seq"], fields["hash"]
                    )
        return intact


def _why_broken(fields: dict[str, Any] | None, before: Verification, *, may_begin_late: bool) -> str | None:
    """`may_begin_late`: old rotated files may have been deleted; a newer rotated file is left then."""
    if fields is None:
        return "was changed: its hash does not match its content"
    seq, expected_seq = fields["seq"], before.last + 1
    if not before.lines and (may_begin_late or seq == 1):
        return None
    if before.lines and (seq == expected_seq and fields["previous"] == before.head):
        return None
    if seq > expected_seq:
        return f"is number {seq}, and number {expected_seq} is missing before it"
    return f"is number {seq} and does not follow number {before.last}, the line before it"


# Lines...


def _sealed(body: dict[str, Any]) -> tuple[bytes, str]:
    """The line with its newline, and its hash."""
    encoded = msgspec.json.encode(body)
    digest = hashlib.sha256(encoded).hexdigest()
    return encoded[:-1] + _HASH_KEY + digest.encode() + b'"}\n', digest


def _unsealed(line: bytes) -> dict[str, Any] | None:
    """The line's fields; None if its hash does not match or it is not a line of an audit log."""
    before, key, after = line.rpartition(_HASH_KEY)
    digest = hashlib.sha256(before + b"}").hexdigest()
    if not key or after != digest.encode() + b'"}':
        return None
    try:
        fields = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    is_line = isinstance(fields, dict) and isinstance(fields.get("seq"), int) and "previous" in fields
    return fields if is_line else None


def _drop_torn_line(file: int) -> int:
    """Truncate an unfinished last line and return its length in bytes; a line that lacks only its newline gets it."""
    size = os.fstat(file).st_size
    torn = _after_last_newline(file, size)
    if not torn:
        return 0
    if _unsealed(torn) is not None:
        _write_all(file, b"\n")
        return 0
    os.ftruncate(file, size - len(torn))
    return len(torn)


def _after_last_newline(file: int, size: int) -> bytes:
    tail_bytes = _TAIL_BYTES
    while True:
        tail = os.pread(file, tail_bytes, max(0, size - tail_bytes))
        if b"\n" in tail or tail_bytes >= size:
            return tail.rpartition(b"\n")[2]
        tail_bytes *= 4


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
