"""Directories and files of our own, owned by the user that the gateway runs as. Blocking."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["default_directory", "give_to_owner_of_directory", "make_directory"]


SYSTEM_DIRECTORY = Path("/var/lib/cortex")


def default_directory(models_path: Path) -> Path:
    """The state directory of a gateway with this `models.toml`: beside it, or /var/lib/cortex if that is under /etc.

    A service's user can usually not write under /etc.
    """
    return SYSTEM_DIRECTORY if models_path.is_relative_to("/etc") else models_path.parent


def make_directory(path: Path) -> None:
    """Create a directory and its parents, owned by the owner of the parent, unless it exists. Raises OSError."""
    if not path.is_dir():
        if path != path.parent:
            make_directory(path.parent)
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
