"""The audit trail's file: a JSON object per line, each with the hash of the one before; append, read, verify. Blocking.

What goes into it and when is `auditor.py`'s part.

    models.audit.jsonl              the lines since the last rotation
    models.audit.jsonl.000000412    those up to number 412, and so on back; the chain goes through all of them

A line's last two keys are `previous`, the hash of the line before, and `hash`, that of its own bytes up to there. So a
changed line is known by itself, and a missing one by its successor. Nobody holds a key to this: it shows accidents and
careless hands, and whoever noted the last hash elsewhere can tell that the rest was not rewritten.
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

from gateway.files import atomic

__all__ = ["GENESIS", "Broken", "Line", "Trail", "Verdict"]

GENESIS = "0" * 64  # what the first line of all says of the one before
_HASH_KEY = b',"hash":"'
_WINDOW_BYTES = 64 * 1024  # where the end of the last line but one is looked for first


@dataclass(frozen=True, slots=True)
class Line:
    """One line that was read: where it stands, and what it says."""

    path: Path
    number: int
    said: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """Where the chain breaks first."""

    path: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found.

    Args:
        lines: How many are in order.
        first, last: Their sequence numbers; 0 if there are none.
        head: The hash of the last of them.
        broken: Where it breaks, or None.
        torn_bytes: How much of an unfinished last line there is: a crash in the middle of writing. Not a break: the
            next line to be written takes its place.
    """

    lines: int = 0
    first: int = 0
    last: int = 0
    head: str = GENESIS
    broken: Broken | None = None
    torn_bytes: int = 0


class Trail:
    """The files of one audit trail. Several processes may append: each line is written under a lock.

    Args:
        path: Of the file that grows.
        rotate_bytes: It is put aside once it is this long.
        kept: How many of those put aside are kept; 0 for all.
    """

    def __init__(self, path: Path, *, rotate_bytes: int, kept: int) -> None:
        self.path = path
        self._rotate_bytes = rotate_bytes
        self._kept = kept

    # Writing...

    def append(self, said: dict[str, Any]) -> dict[str, Any]:
        """Write one line, on disk when this returns; returns it with `seq`, `previous` and `hash`.

        A last line that a crash left unfinished gives way, and the new one says how long it was in `torn_bytes`.

        Raises:
            OSError: It could not be written. Nothing of it is there, or its beginning, which counts as torn.
        """
        with self._opened() as file:
            torn_bytes = _drop_torn_line(file)
            last = next(self.newest_first(), None)
            body = {"seq": 1 if last is None else last.said["seq"] + 1} | said
            if torn_bytes:
                body["torn_bytes"] = torn_bytes
            body["previous"] = GENESIS if last is None else last.said["hash"]
            line, digest = _sealed(body)
            _write_all(file, line)
            os.fsync(file)
            if os.fstat(file).st_size >= self._rotate_bytes:
                self._rotate(body["seq"])
        return body | {"hash": digest}

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The growing file, locked, and still the growing file once the lock is held."""
        while True:
            file = self._open()
            try:
                with suppress(OSError):  # a file system without locks: then only one process may write here
                    fcntl.flock(file, fcntl.LOCK_EX)  # held for one line, by whoever holds it
                if self._is_current(file):  # else it was put aside while we waited
                    yield file
                    return
            finally:
                os.close(file)

    def _open(self) -> int:
        is_new = not self.path.exists()
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if is_new:
            atomic.give_to_owner_of_directory(self.path)
        return file

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(file))
        except FileNotFoundError:
            return False

    def _rotate(self, last_seq: int) -> None:
        self.path.rename(self.path.with_name(f"{self.path.name}.{last_seq:09d}"))
        if self._kept:
            for path in self._put_aside()[: -self._kept]:
                path.unlink(missing_ok=True)

    # Reading...

    def _put_aside(self) -> list[Path]:
        """Oldest first."""
        prefix = f"{self.path.name}."
        found = {path.name.removeprefix(prefix): path for path in self.path.parent.glob(f"{glob.escape(prefix)}*")}
        numbered = {int(suffix): path for suffix, path in found.items() if suffix.isdecimal()}  # not somebody's .bak
        return [numbered[number] for number in sorted(numbered)]

    def _files(self) -> list[Path]:
        return [*self._put_aside(), *([self.path] if self.path.exists() else [])]

    def newest_first(self) -> Iterator[Line]:
        """Every line that is as it was written, from the last back. Raises OSError."""
        for path in reversed(self._files()):
            try:
                lines = list(_backwards(path))
            except FileNotFoundError:  # put aside, or dropped, since it was listed
                continue
            for number, line in lines:
                said = _unsealed(line)
                if said is not None:
                    yield Line(path, number, said)

    def verify(self) -> Verdict:
        """Whether every line is as it was written, and none is missing. Raises OSError.

        The oldest line that is kept may have had a predecessor; that it says so is taken on trust. A file that is put
        aside meanwhile by whoever writes is no line missing: what was read is read again.
        """
        while True:
            files = self._files()
            try:
                verdict = self._verify(files)
            except FileNotFoundError:
                if self._files() == files:
                    raise
                continue
            if self._files() == files:
                return verdict

    def _verify(self, files: list[Path]) -> Verdict:
        sound = Verdict()
        for path in files:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    said = _unsealed(line.removesuffix(b"\n"))
                    if said is None and path == self.path and not line.endswith(b"\n"):
                        return replace(sound, torn_bytes=len(line))
                    reason = _why_broken(said, sound)
                    if said is None or reason is not None:
                        return replace(sound, broken=Broken(path, number, reason or ""))
                    sound = Verdict(sound.lines + 1, sound.first or said["seq"], said["seq"], said["hash"])
        return sound


def _why_broken(said: dict[str, Any] | None, before: Verdict) -> str | None:
    if said is None:
        return "is not as it was written: its hash is another"
    if not before.lines or (said["seq"] == before.last + 1 and said["previous"] == before.head):
        return None
    if said["seq"] > before.last + 1:
        return f"is number {said['seq']}, and number {before.last + 1} is missing before it"
    return f"is number {said['seq']} and does not follow from number {before.last} before it"


# Lines...


def _sealed(body: dict[str, Any]) -> tuple[bytes, str]:
    """The line, its end included, and its hash."""
    encoded = msgspec.json.encode(body)
    digest = hashlib.sha256(encoded).hexdigest()
    return encoded[:-1] + _HASH_KEY + digest.encode() + b'"}\n', digest


def _unsealed(line: bytes) -> dict[str, Any] | None:
    """What the line says, if it is as it was written."""
    before, key, after = line.rpartition(_HASH_KEY)
    digest = hashlib.sha256(before + b"}").hexdigest()
    if not key or after != digest.encode() + b'"}':
        return None
    try:
        said = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return said if isinstance(said, dict) and isinstance(said.get("seq"), int) and "previous" in said else None


def _drop_torn_line(file: int) -> int:
    """How many bytes stood after the last end of a line; a whole line that lacks only its end is given that."""
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
    window = _WINDOW_BYTES
    while True:
        tail = os.pread(file, window, max(0, size - window))
        if b"\n" in tail or window >= size:
            return tail.rpartition(b"\n")[2]
        window *= 4


def _backwards(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from the last to the first. The file is at most a rotation long."""
    lines = path.read_bytes().splitlines()
    for number in range(len(lines), 0, -1):
        yield number, lines[number - 1]


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
