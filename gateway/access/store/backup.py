"""A copy of a SQLite database that is in use, by SQLite's own backup API. Blocking."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from gateway.access.store.database import BUSY_TIMEOUT_S, Database, StoreUnavailable

__all__ = ["BackupRefused", "backup_to"]


class BackupRefused(Exception):
    """There can be no backup like this. The text is for operators."""


def backup_to(database: Database, file: Path) -> int:
    """Copy the database to a new file, readable by its owner only; returns its size in bytes.

    Raises:
        BackupRefused: The file exists or cannot be written, or the database is not SQLite.
        StoreUnavailable: The database cannot be read, or is damaged; there is no file then.
    """
    if database.path is None:
        raise BackupRefused(f"{database.name} is not SQLite: use pg_dump")
    if not database.path.exists():
        raise StoreUnavailable(f"{database.path}: there is no such database")
    try:
        file.touch(mode=0o600, exist_ok=False)
    except FileExistsError as error:
        raise BackupRefused(f"{file} exists: name a new file") from error
    except OSError as error:
        raise BackupRefused(f"{file}: {error.strerror or error}") from error
    source = f"file:{quote(os.fsencode(database.path))}?mode=ro"
    try:
        with (
            closing(sqlite3.connect(source, uri=True, timeout=BUSY_TIMEOUT_S)) as read,
            closing(sqlite3.connect(file)) as written,
        ):
            read.backup(written)
            (fault,) = written.execute("PRAGMA quick_check(1)").fetchone()  # pages of a damaged database copy well
            if fault != "ok":
                raise sqlite3.DatabaseError("database disk image is malformed")
    except sqlite3.Error as error:
        file.unlink()
        raise StoreUnavailable(f"{database.path}: {error}") from error
    return file.stat().st_size
