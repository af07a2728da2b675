"""Moves the state files that an earlier version kept beside `models.toml` to the state directory. Blocking."""

from __future__ import annotations

import glob
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

import structlog

from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.files.state_directory import make_directory

__all__ = ["move_state_once"]

_How: TypeAlias = Literal["moved", "copied"]

log = structlog.get_logger("cortex.state")


def move_state_once(files: CatalogueFiles) -> None:
    """Move what is beside `models.toml` and not yet in the state directory; log each move.

    A file that cannot be removed from its old place is copied. A failure is logged: the gateway serves without the
    earlier files, and `/health` reports a state directory that cannot be written.
    """
    old_directory = files.models_path.parent
    if files.state_dir == old_directory:
        return
    for new in (files.audit_log.path, files.history.folder, files.rollouts_path):
        if new.parent != files.state_dir or os.path.lexists(new):
            continue  # the operator set another path, or it was moved already
        for old in _with_suffixes(old_directory / new.name):
            _move_and_log(old, files.state_dir / old.name)


def _with_suffixes(path: Path) -> list[Path]:
    """The file and, of an audit log, its rotated files and its head."""
    suffixed = path.parent.glob(f"{glob.escape(path.name)}.*")
    try:
        return [old for old in (path, *sorted(suffixed)) if old.exists()]
    except OSError:
        return []


def _move_and_log(old: Path, new: Path) -> None:
    try:
        make_directory(new.parent)
        how = _move(old, new)
    except (OSError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        log.warning("state_not_moved", old=str(old), new=str(new), reason=reason)
    else:
        log.info("state_moved", old=str(old), new=str(new), how=how)


def _move(old: Path, new: Path) -> _How:
    try:
        old.rename(new)
    except OSError:  # another file system, or no permission to change the old directory
        partial = new.with_name(f".{new.name}.partial")
        if old.is_dir():
            shutil.copytree(old, partial, dirs_exist_ok=True)
        else:
            shutil.copy2(old, partial)
        partial.rename(new)
        with suppress(OSError):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return "copied" if old.exists() else "moved"
