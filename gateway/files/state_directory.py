"""Directories and files of our own beside `models.toml`, owned by the user that the gateway runs as. Blocking."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["default_directory", "give_to_owner_of_directory", "make_directory"]


def default_directory(models_path: Path) -> Path:
    """The state directory of a gateway with this `models.toml`: beside it, or /var/lib/cortex if that is under /etc.

    A service's user can usually not write under /etc.
    """
    return Path("/var/lib/cortex") if models_path.is_relative_to("/etc") else models_path.parent


def make_directory(path: Path) -> None:
    """Create a directory, owned by the owner of its parent, unless it exists. Raises OSError."""
    if not path.is_dir():
        path.mkdir(mode=0o755, exist_ok=True)
        give_to_owner_of_directory(path)


def give_to_owner_of_directory(path: Path) -> None:
    """Give a new file or directory to the owner of its parent, if this process is root. Raises OSError.

    An operator may run `sudo cortex alias set`. The gateway, which runs as another user, must still be able to write
    the file afterwards.
    """
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
