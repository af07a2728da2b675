"""The demo's key with every verb. Each start of the demo prints a new secret of it. Blocking."""

from __future__ import annotations

from typing import Any

from gateway.access.keys import key_rows
from gateway.access.keys.key_refresh import FIRST_KEY
from gateway.access.store.database import Database
from gateway.aliases.files.catalogue_files import state_directory
from gateway.config.settings import Settings

__all__ = ["new_operator_secret"]


def new_operator_secret(settings: Settings) -> str:
    """A new secret for the key `operator`, which is created if the store has none. Raises StoreUnavailable."""
    database = Database(settings.store.url, state_directory(settings))
    try:
        database.upgrade()
        return database.write(_renew)
    finally:
        database.close()


def _renew(connection: Any) -> str:
    try:
        found = key_rows.find(connection, FIRST_KEY["name"])
    except key_rows.UnknownKey:
        return key_rows.create(connection, FIRST_KEY).secret
    return key_rows.rotate(connection, found.key.id, grace_s=0).secret
