"""Replacing files atomically: readers see the old content or the new, and no edit is lost silently. Blocking."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gateway.files.state_directory import give_to_owner_of_directory

__all__ = ["CannotSave", "ChangedUnderneath", "create", "replace", "write"]


class CannotSave(Exception):
    """The file was not written and has its old content. The text says why, for operators."""


class ChangedUnderneath(CannotSave):
    """The file changed after the edit had read it."""


def replace(path: Path, data: bytes, *, expected: bytes) -> None:
    """Replace the content of an operator's file in one step; it is on disk when this returns.

    Mode, owner and extended attributes stay. A symlink stays a symlink: the file behind it is replaced.

    Args:
        path: An existing file.
        data: The whole new content.
        expected: The content that the edit started from.

    Raises:
        ChangedUnderneath: The file has other content than `expected`.
        CannotSave: The file could not be replaced for any other reason.
    """
    real = Path(os.path.realpath(path))
    try:
        status = real.stat()
        with _temporary_file(real, data, mode=status.st_mode & 0o7777) as new:
            _keep_owner(new, status)
            _keep_attributes(new, real)
            if real.read_bytes() != expected:
                raise ChangedUnderneath(f"{path} changed during the edit; nothing was written, try again")
            new.replace(real)
        _sync_directory(real.parent)
    except OSError as error:
        reason = error.strerror or error
        raise CannotSave(f"{path} cannot be replaced by a new file in {real.parent}: {reason}") from error


def create(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Create an operator's file that does not exist; it is on disk when this returns.

    A symlink stays a symlink: the file behind it is created. The file belongs to the owner of its directory.

    Raises:
        ChangedUnderneath: The file exists.
        CannotSave: The file could not be created for any other reason.
    """
    real = Path(os.path.realpath(path))
    try:
        with _temporary_file(real, data, mode=mode) as new:
            give_to_owner_of_directory(new)
            if real.exists():
                raise ChangedUnderneath(f"{path} was created meanwhile; nothing was written, try again")
            new.replace(real)
        _sync_directory(real.parent)
    except OSError as error:
        raise CannotSave(f"{path} cannot be created in {real.parent}: {error.strerror or error}") from error


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file of our own beside `models.toml`, new or not, as atomically as `replace`.

    Root writes it for the owner of its directory.

    Raises:
        OSError: The file was not written; an existing one has its old content.
    """
    with _temporary_file(path, data, mode=mode) as new:
        give_to_owner_of_directory(new)
        new.replace(path)
    _sync_directory(path.parent)


@contextmanager
def _temporary_file(path: Path, data: bytes, *, mode: int) -> Iterator[Path]:
    """A file with this content beside `path`, synced to disk; deleted at the end unless it was renamed."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - Path.open takes no descriptor
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        yield new
    finally:
        with suppress(FileNotFoundError):
            new.unlink()


def _keep_owner(new: Path, old: os.stat_result) -> None:
    status = new.stat()
    if (status.st_uid, status.st_gid) == (old.st_uid, old.st_gid):
        return
    try:
        os.chown(new, old.st_uid, old.st_gid)
        new.chmod(old.st_mode & 0o7777)  # chown clears set-id bits
    except PermissionError as error:
        raise CannotSave(
            f"its owner (uid {old.st_uid}, gid {old.st_gid}) cannot be kept: edit it as that user, or as root"
        ) from error


def _keep_attributes(new: Path, old: Path) -> None:
    """Copy ACLs and security labels, as far as this file system and this user can."""
    with suppress(OSError):
        for name in os.listxattr(old):
            with suppress(OSError):
                os.setxattr(new, name, os.getxattr(old, name))


def _sync_directory(path: Path) -> None:
    """Make the rename itself survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
