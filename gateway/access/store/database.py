"""One SQLite or PostgreSQL database: transactions, and its errors in words. Blocking.

Gateways use it through `store.py`, which adds the worker thread; the command line uses it directly.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, exc
from sqlalchemy.engine import URL, make_url

from gateway.access.store import migrate
from gateway.access.store.schema import SCHEMA_VERSION
from gateway.files.state_directory import give_to_owner_of_directory, make_directory

__all__ = ["RESTORE_HINT", "Database", "InvalidStoreUrl", "StoreUnavailable", "sqlite_of"]

BUSY_TIMEOUT_S = 5  # how long SQLite waits for another process that writes
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10_000  # of PostgreSQL; ours take milliseconds

RESTORE_HINT = (
    "stop the gateways that use it, move the file and its -wal and -shm away, and put a copy there that"
    " `cortex store backup` made; without one, `cortex key import` restores the keys of an export"
)
"""What to do about a file that SQLite cannot read."""

_Result = TypeVar("_Result")


class StoreUnavailable(Exception):
    """The database cannot be used now. The text says why, for operators."""


class InvalidStoreUrl(ValueError):
    """The URL names no database that cortex can use. The text is for operators and has no password."""


class Database:
    """A database, connected when it is first used. One thread at a time may use it.

    Args:
        url: `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        directory: Where a relative PATH of SQLite begins.

    Attributes:
        name: The URL without its password; for SQLite, the file.
        path: The file of SQLite; None for PostgreSQL.
        error: Why the last use failed; None after a success.

    Raises:
        InvalidStoreUrl: The URL is not one of these.
    """

    def __init__(self, url: str, directory: Path) -> None:
        try:
            self._url = make_url(url)
        except exc.ArgumentError as error:
            raise InvalidStoreUrl("must be sqlite:///PATH or postgresql://…") from error
        except ValueError as error:  # SQLAlchemy's own, from int()
            raise InvalidStoreUrl("its port must be a number") from error
        backend = self._url.get_backend_name()
        self.path: Path | None = None
        if backend == "sqlite":
            self.path = directory / _sqlite_file(self._url)
        elif backend not in {"postgresql", "postgres"}:
            raise InvalidStoreUrl(f"cortex stores in sqlite or postgresql, not in {backend}")
        else:
            _check_postgresql(self._url)
        self.name = str(self.path or self._url.render_as_string(hide_password=True))
        self.error: str | None = None
        self._engine: Engine | None = None
        self._inode = 0

    def write(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in a transaction that may change the database, and commit. An exception of `work` rolls back.

        Raises:
            StoreUnavailable: The database cannot be used.
            sqlalchemy.exc.IntegrityError: `work` violates a constraint.
        """
        return self._run(work, "BEGIN IMMEDIATE")

    def read(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in a transaction that only reads; writers do not wait for it. Raises StoreUnavailable."""
        return self._run(work, "BEGIN")

    def upgrade(self) -> bool:
        """Create the database, or migrate its tables to this release. Returns whether there was anything to do.

        Raises:
            StoreUnavailable, migrate.SchemaUnknown: By their names.
        """
        if self.path is not None and not self.path.exists():
            self._create(self.path)
        return self.write(migrate.upgrade)

    def version(self) -> str | None:
        """The schema version of the database; None if it has no tables of ours. Raises StoreUnavailable."""
        return self.read(migrate.version_of)

    def faults(self) -> list[str]:
        """What SQLite finds damaged in its file; PostgreSQL checks itself. Raises StoreUnavailable."""
        if self.path is None:
            return []
        found = self.read(lambda connection: connection.exec_driver_sql("PRAGMA quick_check(10)").scalars().all())
        return [] if found == ["ok"] else list(found)

    def why_unusable(self) -> str | None:
        """Why this user cannot use or create the database, as far as that shows without connecting; None if so."""
        if self.path is None:
            return None if find_spec("psycopg") else "needs psycopg, which is not installed: install cortex[postgresql]"
        nearest = next(path for path in (self.path, *self.path.parents) if os.access(path, os.F_OK))
        if nearest == self.path and nearest.is_dir():
            return f"{self.path} is a directory"
        if nearest != self.path and not nearest.is_dir():
            return f"{self.path} cannot be created: {nearest} is not a directory"
        needed = (self.path, self.path.parent) if nearest == self.path else (nearest,)  # SQLite writes files beside it
        denied = next((path for path in needed if not os.access(path, os.W_OK)), None)
        return None if denied is None else f"{self.path} cannot be written by this user, who may not write {denied}"

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def _run(self, work: Callable[[Connection], _Result], begin: str) -> _Result:
        try:
            engine = self._connected()
            with engine.connect().execution_options(cortex_begin=begin) as connection, connection.begin():
                result = work(connection)
        except StoreUnavailable as error:
            self.error = str(error)
            raise
        except exc.IntegrityError:
            raise
        except (exc.DBAPIError, exc.TimeoutError, ModuleNotFoundError, sqlite3.Error) as error:
            self.close()
            self.error = f"{self.name}: {_reason(error)}"
            raise StoreUnavailable(self.error) from error
        self.error = None
        return result

    def _connected(self) -> Engine:
        """The engine. A file that was replaced is opened again; SQLite would go on with the one that was removed."""
        if self.path is not None:
            try:
                inode = self.path.stat().st_ino
            except OSError as error:
                self.close()
                raise StoreUnavailable(f"{self.path}: {error.strerror or error}") from error
            if inode != self._inode:
                self.close()
                self._inode = inode
        if self._engine is None:
            self._engine = _sqlite(self.path) if self.path is not None else _postgresql(self._url)
        return self._engine

    def _create(self, path: Path) -> None:
        """An empty file, readable by its owner only, which belongs to the owner of the state directory."""
        try:
            make_directory(path.parent)
            path.touch(mode=0o600)
            give_to_owner_of_directory(path)
        except OSError as error:
            self.error = f"{path} cannot be created: {error.strerror or error}"
            raise StoreUnavailable(self.error) from error


def _sqlite(path: Path) -> Engine:
    """WAL lets gateways and commands read while another process writes (https://www.sqlite.org/wal.html)."""
    # Never create: an empty file in place of a lost one would hide the loss.
    uri = f"file:{quote(os.fsencode(path))}?mode=rw"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        # The statement journal of a large batch would go into /var/tmp: more writes than the rows themselves, and an
        # error where a container may only write to its volume.
        connection.execute("PRAGMA temp_store = MEMORY")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # The module's own BEGIN comes too late for a transaction that reads before it writes.
        sqlite_of(connection).execute(connection.get_execution_options().get("cortex_begin", "BEGIN"))

    return engine


def sqlite_of(connection: Connection) -> sqlite3.Connection:
    """The driver's connection to SQLite, for what many requests wait for: SQLAlchemy adds 40 us to each statement.

    Its errors are those of `sqlite3`, which `Database` takes as well.
    """
    return cast("sqlite3.Connection", connection.connection.driver_connection)


def _sqlite_file(url: URL) -> str:
    """The file of a URL. Raises InvalidStoreUrl."""
    file = url.database
    if not file or url.host or "\0" in file:
        raise InvalidStoreUrl("sqlite needs a file: sqlite:///cortex.db or sqlite:////srv/cortex.db")
    if file == ":memory:":
        raise InvalidStoreUrl("a store in memory is gone with its process; name a file: sqlite:///cortex.db")
    if url.drivername != "sqlite" or url.query:
        raise InvalidStoreUrl("sqlite takes neither a driver nor parameters: sqlite:///cortex.db")
    return file


def _check_postgresql(url: URL) -> None:
    """Raises InvalidStoreUrl."""
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise InvalidStoreUrl("cortex uses the driver psycopg: write postgresql://…")
    if url.port is not None and not 0 < url.port < 65_536:
        raise InvalidStoreUrl("its port must be 1 to 65535")


def _postgresql(url: URL) -> Engine:
    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
        "tcp_user_timeout": STATEMENT_TIMEOUT_MS,  # else a server that vanished keeps the thread for minutes
        "application_name": "cortex",
    }
    given = {name: value for name, value in defaults.items() if name not in url.query}
    return create_engine(
        url.set(drivername="postgresql+psycopg"), connect_args=given, pool_size=1, max_overflow=0, pool_pre_ping=True
    )


def _reason(error: Exception) -> str:
    """The first line of what the driver says."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}: install cortex[postgresql]"
    cause = error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    if "malformed" in lines[0] or "not a database" in lines[0]:
        return f"{lines[0]}; {RESTORE_HINT}"
    missing = "no such table" in lines[0] or "does not exist" in lines[0]
    hint = f"; `cortex store upgrade` creates the tables of version {SCHEMA_VERSION}" if missing else ""
    return lines[0] + hint
