"""Brings the tables of a database up to this release with Alembic. Blocking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from gateway.access.store.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

__all__ = ["SchemaUnknown", "scripts", "upgrade", "version_of"]

_ADVISORY_LOCK = 0x636F72746578  # "cortex": one number for all gateways on a PostgreSQL database


class SchemaUnknown(Exception):
    """The tables are of a release that this one does not know. The text is for operators."""


def version_of(connection: Connection) -> str | None:
    """The schema version of the database; None if it has none of our tables."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def upgrade(connection: Connection, *, to: str = "head") -> bool:
    """Run the migrations that are missing, up to a revision; returns whether there were any.

    The caller's transaction is the lock: BEGIN IMMEDIATE in SQLite; PostgreSQL needs an advisory lock besides. Gateways
    that start at the same time wait for each other here.

    Raises:
        SchemaUnknown: A newer release has migrated the database.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
    version = version_of(connection)
    if version == SCHEMA_VERSION:
        return False
    # Alembic takes 170 ms to import, and most starts need no migration.
    from alembic import command  # noqa: PLC0415

    known = {script.revision for script in scripts().walk_revisions()}
    if version is not None and version not in known:
        raise SchemaUnknown(
            f"the store has schema version {version}, and this release of cortex knows none after {SCHEMA_VERSION}: "
            "run the newer release, or use another store"
        )
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, to)
    return True


def scripts() -> ScriptDirectory:
    """The migrations that this release has."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - as above

    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config
