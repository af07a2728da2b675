"""What `models.toml` said before: whole files, kept under their hashes, and who is about to bring which. Blocking.

In which order they were in force is the audit trail's to say (`audit.py`): it names files by the same hashes.

    models.history/<sha256>.toml    the file's bytes
    models.history/<sha256>.json    an announcement: somebody is about to make this the file, and says who they are
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.files import atomic

__all__ = ["Announcement", "History", "digest_of"]

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever puts a file in place says so first, since the file itself cannot.

    Args:
        who: A person or a part of cortex, as the audit trail will say it.
        command: What they did, as they would say it again.
        before: The hash of the file that it replaces.
        at: Unix seconds.
    """

    who: str
    command: str
    before: str
    at: float


def digest_of(data: bytes) -> str:
    """What a file is known by: the SHA-256 of its bytes, in hex, as `Catalogue.digest` has it."""
    return hashlib.sha256(data).hexdigest()


class History:
    """A directory of earlier files, bounded: beyond `files` of them or `total_bytes` the longest unused go."""

    def __init__(self, folder: Path, *, files: int, total_bytes: int) -> None:
        self.folder = folder
        self._files = files
        self._total_bytes = total_bytes

    def keep(self, data: bytes) -> str:
        """Keep this file, as the one used last; returns its hash. Raises OSError."""
        digest = digest_of(data)
        path = self._path(digest, "toml")
        atomic.make_directory(self.folder)
        if path.exists() and path.read_bytes() == data:
            os.utime(path)
        else:
            atomic.write(path, data)
        self._prune(path)
        return digest

    def get(self, digest: str) -> bytes | None:
        """The file of that hash; None if it is not kept, or is not what it was."""
        if _DIGEST.match(digest) is None:
            return None
        try:
            data = self._path(digest, "toml").read_bytes()
        except OSError:
            return None
        return data if digest_of(data) == digest else None

    def announce(self, digest: str, announcement: Announcement) -> None:
        """Say who is about to make this file the one in force. Raises OSError."""
        atomic.make_directory(self.folder)
        atomic.write(self._path(digest, "json"), msgspec.json.encode(announcement))

    def announced(self, digest: str) -> Announcement | None:
        """Who announced this file, if it was not taken up yet."""
        try:
            return msgspec.json.decode(self._path(digest, "json").read_bytes(), type=Announcement)
        except (OSError, msgspec.DecodeError):
            return None

    def taken_up(self, digest: str) -> None:
        """The announcement is in the audit trail: the next one to bring the same file is somebody else."""
        with suppress(OSError):
            self._path(digest, "json").unlink()

    def _path(self, digest: str, suffix: str) -> Path:
        return self.folder / f"{digest}.{suffix}"

    def _prune(self, newest: Path) -> None:
        room = self._total_bytes - newest.stat().st_size
        for position, path in enumerate(self._by_last_use(newest), start=2):
            with suppress(FileNotFoundError):  # another process is pruning too
                room -= path.stat().st_size
                if position > self._files or room < 0:
                    path.unlink()
                    path.with_suffix(".json").unlink()

    def _by_last_use(self, newest: Path) -> list[Path]:
        """The others, last used first."""
        used: list[tuple[int, Path]] = []
        for path in self.folder.glob("*.toml"):
            with suppress(FileNotFoundError):
                used.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(used, reverse=True) if path != newest]
