"""The audit log's files: one JSON object per line, each with the hash of the line before. Blocking.

`auditor.py` decides what is written and when; here are append, read and verify.

    models.audit.jsonl              the lines since the last rotation
    models.audit.jsonl.000000412    earlier lines up to number 412, and so on; the hash chain spans all files

The last two keys of a line are `previous`, the hash of the line before, and `hash`, the SHA-256 of the line's own bytes
before that key, closed with a brace. A changed line fails its own hash, and a missing line breaks the chain at the next
one. There is no secret key: the chain detects accidents and careless edits. To detect a rewrite of the whole log, note
the last hash somewhere else.
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

from gateway.files.state_directory import give_to_owner_of_directory

__all__ = ["GENESIS", "AuditLine", "AuditLog", "ChainBreak", "Verification"]

GENESIS = "0" * 64  # `previous` of the very first line
_HASH_KEY = b',"hash":"'
_TAIL_BYTES = 64 * 1024  # how much of the file's end is read first to find the last newline


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One intact line: its file, its line number there, and its fields."""

    path: Path
    number: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChainBreak:
    """The first line that does not fit into the chain."""

    path: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.reason}"


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

    def append(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Append one line and sync it to disk; returns its fields with `seq`, `previous` and `hash`.

        An unfinished last line is replaced; the new line records its length as `torn_bytes`.

        Raises:
            OSError: The line was not written, or only its beginning, which counts as unfinished.
        """
        with self._opened() as file:
            torn_bytes = _drop_torn_line(file)
            last = next(self.newest_first(), None)
            body = {"seq": 1 if last is None else last.fields["seq"] + 1} | fields
            if torn_bytes:
                body["torn_bytes"] = torn_bytes
            body["previous"] = GENESIS if last is None else last.fields["hash"]
            line, digest = _sealed(body)
            _write_all(file, line)
            os.fsync(file)
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

    def verify(self) -> Verification:
        """Check that every line is intact and none is missing. Raises OSError.

        The predecessor of the oldest line may have been rotated away, so that line's `previous` is not checked.
        Verifying takes no lock: if a writer rotates meanwhile, the files are read again.
        """
        while True:
            files = self._files()
            try:
                verification = self._verify(files)
            except FileNotFoundError:
                if self._files() == files:
                    raise
                continue
            if self._files() == files:
                return verification

    def _verify(self, files: list[Path]) -> Verification:
        intact = Verification()
        for path in files:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    fields = _unsealed(line.removesuffix(b"\n"))
                    if fields is None and path == self.path and not line.endswith(b"\n"):
                        return replace(intact, torn_bytes=len(line))
                    reason = _why_broken(fields, intact)
                    if fields is None or reason is not None:
                        return replace(intact, broken=ChainBreak(path, number, reason or ""))
                    intact = Verification(
                        intact.lines + 1, intact.first or fields["seq"], fields["seq"], fields["hash"]
                    )
        return intact


def _why_broken(fields: dict[str, Any] | None, before: Verification) -> str | None:
    if fields is None:
        return "was changed: its hash does not match its content"
    seq, expected_seq = fields["seq"], before.last + 1
    if not before.lines or (seq == expected_seq and fields["previous"] == before.head):
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
