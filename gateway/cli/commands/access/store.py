"""`cortex store`: the database of keys and usage."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from gateway.access.store.backup import BackupRefused, backup_to
from gateway.access.store.database import RESTORE_HINT, StoreUnavailable
from gateway.access.store.migrate import SchemaUnknown
from gateway.access.store.schema import SCHEMA_VERSION
from gateway.cli.connection import Connection
from gateway.cli.options import config_option
from gateway.cli.terminal import print_error

__all__ = ["store"]

REFUSED, UNAVAILABLE = 1, 2  # exit codes


@click.group()
def store() -> None:
    """Check, migrate or back up the database of keys and usage.

    It is the one that [store] url of cortex.toml names.
    """


@store.command()
@config_option
def upgrade(config: Path | None) -> None:
    """Create the tables, or migrate those of an earlier release. `cortex serve` does the same at its start."""
    database = Connection(config).database()
    try:
        changed = database.upgrade()
    except StoreUnavailable as error:
        _fail(str(error), UNAVAILABLE)
    except SchemaUnknown as error:
        _fail(str(error), REFUSED)
    done = "migrated to" if changed else "already has"
    click.echo(f"{database.name}: {done} schema version {SCHEMA_VERSION}")


@store.command()
@config_option
def check(config: Path | None) -> None:
    """Check that the database can be used and has the tables of this release.

    Exit code 0 if so, 1 if it needs `cortex store upgrade` or a newer release, 2 if it cannot be used.
    """
    database = Connection(config).database()
    try:
        version = database.version()
        faults = database.faults()
    except StoreUnavailable as error:
        _fail(str(error), UNAVAILABLE)
    if version != SCHEMA_VERSION:
        _fail(
            f"{database.name}: has {'no tables' if version is None else f'schema version {version}'}, and this release "
            f"needs {SCHEMA_VERSION}; `cortex store upgrade` migrates earlier versions",
            REFUSED,
        )
    if faults:
        _fail(f"{database.name}: is damaged: {'; '.join(faults)}; {RESTORE_HINT}", REFUSED)
    click.echo(f"{database.name}: ok, schema version {version}")


@store.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@config_option
def backup(file: Path, config: Path | None) -> None:
    """Copy a SQLite database to FILE while gateways use it. PostgreSQL has pg_dump for that."""
    database = Connection(config).database()
    try:
        size = backup_to(database, file)
    except StoreUnavailable as error:
        _fail(str(error), UNAVAILABLE)
    except BackupRefused as error:
        _fail(str(error), REFUSED)
    click.echo(f"{file}: {size:,} bytes")


def _fail(text: str, code: int) -> NoReturn:
    print_error(f"error: {text}")
    sys.exit(code)
