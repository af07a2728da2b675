"""Replacing files whole: nobody reads half of one, nobody's change is lost unseen. Blocking; the gateway uses threads.

Two programs that edit one `models.toml` (two shells, or a shell and a rollout) take turns by `locked`. Editors know
nothing of that lock, so `replace` also looks whether the file is still what the edit was made from.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "CannotSave",
    "ChangedUnderneath",
    "give_to_owner_of_directory",
    "locked",
    "make_directory",
    "replace",
    "write",
]

LOCK_DEADLINE_S = 10.0  # an edit takes milliseconds; who holds it for longer hangs, and is named by `fuser`
LOCK_LOOK_S = 0.02


class CannotSave(Exception):
    """The file could not be written; it is as it was. The text says why, for people."""


class ChangedUnderneath(CannotSave):
    """Somebody else wrote the file between its reading and its writing."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on editing `path`, which is on the directory of the file behind any symlinks: it needs no file.

    Raises:
        CannotSave: Somebody held it for `LOCK_DEADLINE_S`, or there is no such directory.
    """
    directory = Path(os.path.realpath(path)).parent
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CannotSave(f"{directory}: {error.strerror}") from error
    try:
        _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)  # and the lock with it


def _lock(descriptor: int, directory: Path) -> None:
    give_up_at = time.monotonic() + LOCK_DEADLINE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                raise CannotSave(f"another edit in {directory} has been under way for {LOCK_DEADLINE_S:g} s") from None
            time.sleep(LOCK_LOOK_S)
        except OSError:
            return  # a file system without locks: `replace` still sees a change, if not one in the very same moment
        else:
            return


def replace(path: Path, data: bytes, *, expected: bytes) -> None:
    """Make `data` the content of the file, in one step, on disk when this returns.

    Mode, owner and extended attributes stay as they are. A symlink stays one: what it leads to is replaced.

    Args:
        path: An existing file.
        data: All of it.
        expected: What it must still hold.

    Raises:
        ChangedUnderneath: It holds something else.
        CannotSave: Whatever else was in the way.
    """
    real = Path(os.path.realpath(path))
    try:
        status = real.stat()
        with _replacement(real, data, mode=status.st_mode & 0o7777) as new:
            _keep_owner(new, status)
            _keep_attributes(new, real)
            if real.read_bytes() != expected:
                raise ChangedUnderneath(f"{path} changed underneath; nothing was written")
            new.replace(real)
        _sync_directory(real.parent)
    except OSError as error:
        told = f"{path} cannot be replaced by a new file in {real.parent}: {error.strerror or error}"
        raise CannotSave(told) from error


def write(path: Path, data: bytes) -> None:
    """Make `data` the content of a file of our own beside `models.toml`, there already or not; as atomic as `replace`.

    Written by root, it belongs to whoever its directory belongs to: a gateway that runs as somebody else must be able
    to go on with it.

    Raises:
        OSError: It could not be written; what was there is as it was.
    """
    with _replacement(path, data, mode=0o644) as new:
        give_to_owner_of_directory(new)
        new.replace(path)
    _sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """A directory of our own beside `models.toml`, for whoever owns what it is in. Raises OSError."""
    if not path.is_dir():
        path.mkdir(mode=0o755, exist_ok=True)
        give_to_owner_of_directory(path)


@contextmanager
def _replacement(path: Path, data: bytes, *, mode: int) -> Iterator[Path]:
    """A file beside `path` with this content, on disk; gone at the end unless it was renamed."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        yield new
    finally:
        with suppress(FileNotFoundError):
            new.unlink()


def _keep_owner(new: Path, was: os.stat_result) -> None:
    status = new.stat()
    if (status.st_uid, status.st_gid) == (was.st_uid, was.st_gid):
        return
    try:
        os.chown(new, was.st_uid, was.st_gid)
        new.chmod(was.st_mode & 0o7777)  # chown takes set-id bits away
    except PermissionError as error:
        raise CannotSave(
            f"its owner (uid {was.st_uid}, gid {was.st_gid}) could not be kept: edit it as that user, or as root"
        ) from error


def _keep_attributes(new: Path, was: Path) -> None:
    """ACLs and labels, as far as this file system and this user can."""
    with suppress(OSError):
        for name in os.listxattr(was):
            with suppress(OSError):
                os.setxattr(new, name, os.getxattr(was, name))


def give_to_owner_of_directory(path: Path) -> None:
    """If we are root, and so may."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _sync_directory(path: Path) -> None:
    """So that the rename itself survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
