"""Earlier contents of `models.toml`: whole files named by their hash, and who wrote each. Blocking.

The audit log has the order in which they were in force; it names files by the same hashes.

    models.history/<sha256>.toml    the file's bytes
    models.history/<sha256>.json    an announcement: who is about to put this file in place, and with which command
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.files import atomic_write
from gateway.files.state_directory import make_directory

__all__ = ["Announcement", "FileHistory", "digest_of"]

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """Who is about to put a file in place. Written before the file, since `models.toml` cannot name its author.

    Args:
        who: A person or a part of cortex; the audit log's `who`.
        command: The command that would do it again; the audit log's `command`.
        before: The hash of the file that is replaced.
        at: Unix seconds.
    """

    who: str
    command: str
    before: str
    at: float


def digest_of(data: bytes) -> str:
    """The SHA-256 of a file's bytes, in hex, as in `Catalogue.digest`."""
    return hashlib.sha256(data).hexdigest()


class FileHistory:
    """A directory of earlier files, bounded: beyond `files` of them or `total_bytes`, the least recently used go.

    `mode` is that of a kept file.
    """

    def __init__(self, folder: Path, *, files: int, total_bytes: int, mode: int = 0o644) -> None:
        self.folder = folder
        self._mode = mode
        self._files = files
        self._total_bytes = total_bytes

    def keep(self, data: bytes) -> str:
        """Store this file as the most recently used one; returns its hash. Raises OSError."""
        digest = digest_of(data)
        path = self._path(digest, "toml")
        make_directory(self.folder)
        if path.exists() and path.read_bytes() == data:
            os.utime(path)
        else:
            atomic_write.write(path, data, mode=self._mode)
        self._prune(path)
        return digest

    def get(self, digest: str) -> bytes | None:
        """The file with that hash; None if it is not stored, cannot be read, or no longer matches its hash."""
        if _DIGEST.match(digest) is None:  # it may come from a command line
            return None
        try:
            data = self._path(digest, "toml").read_bytes()
        except OSError:
            return None
        return data if digest_of(data) == digest else None

    def announce(self, digest: str, announcement: Announcement) -> None:
        """Record who is about to put this file in place. Raises OSError."""
        make_directory(self.folder)
        atomic_write.write(self._path(digest, "json"), msgspec.json.encode(announcement))

    def announcement_of(self, digest: str) -> Announcement | None:
        """The announcement of this file, until it is removed."""
        try:
            return msgspec.json.decode(self._path(digest, "json").read_bytes(), type=Announcement)
        except (OSError, msgspec.DecodeError):
            return None

    def newest_announcement(self) -> tuple[str, Announcement] | None:
        """The hash and the announcement of the file that was announced last, if the audit log does not have it yet."""
        paths = self.folder.glob("*.json") if self.folder.is_dir() else ()
        found = [(path.stem, announcement) for path in paths if (announcement := self.announcement_of(path.stem))]
        return max(found, key=lambda entry: entry[1].at, default=None)

    def remove_announcement(self, digest: str) -> None:
        """Forget who announced this file: it is in the audit log now, or the edit failed.

        Otherwise a later edit that brings the same file would be attributed to the wrong person.
        """
        with suppress(OSError):
            self._path(digest, "json").unlink()

    def _path(self, digest: str, suffix: str) -> Path:
        return self.folder / f"{digest}.{suffix}"

    def _prune(self, newest: Path) -> None:
        bytes_left = self._total_bytes - newest.stat().st_size
        for position, path in enumerate(self._by_last_use(newest), start=2):
            with suppress(FileNotFoundError):  # another process may prune at the same time
                bytes_left -= path.stat().st_size
                if position > self._files or bytes_left < 0:
                    path.unlink()
                    path.with_suffix(".json").unlink()

    def _by_last_use(self, newest: Path) -> list[Path]:
        """All files but `newest`, most recently used first."""
        used: list[tuple[int, Path]] = []
        for path in self.folder.glob("*.toml"):
            with suppress(FileNotFoundError):
                used.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(used, reverse=True) if path != newest]
