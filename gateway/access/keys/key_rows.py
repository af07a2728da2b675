"""Keys in the store: each function is the work of one transaction. Blocking."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, exc, insert, select, update

from gateway.access.keys import secret as secrets_of_keys
from gateway.access.keys.key import Key
from gateway.access.keys.key_table import StoredKey
from gateway.access.limits.limit import Budget, Limits
from gateway.access.store.schema import counters, keys

__all__ = [
    "KeyConflict",
    "NewSecret",
    "UnknownKey",
    "create",
    "create_first",
    "edit",
    "find",
    "insert_known",
    "read_all",
    "read_if_changed",
    "revoke",
    "rotate",
]

_DEFAULTS: Mapping[str, Any] = {
    "may": ["*"],
    "verbs": ["infer"],
    "budgets": [],
    "observe": [],
    "weight": 100,
    "priority": "interactive",
    "end_streams": False,
}


class KeyConflict(Exception):
    """There is a key with this name or id already. The text is for operators."""


class UnknownKey(Exception):
    """There is no such key. The text is for operators."""


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A key and its secret, which is known now and never again."""

    stored: StoredKey
    secret: str = field(repr=False)


# Reading...


def read_all(connection: Connection) -> list[StoredKey]:
    """Every key, the oldest first; revoked ones too."""
    rows = connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id))
    return [_stored(row) for row in rows]


def read_if_changed(connection: Connection, version: int) -> tuple[int, list[StoredKey]] | None:
    """The version of the table and every key; None if it still has this version."""
    found: int = connection.execute(select(counters.c.value).where(counters.c.name == "keys")).scalar_one()
    return None if found == version else (found, read_all(connection))


def find(connection: Connection, name_or_id: str, *, revoked_too: bool = False) -> StoredKey:
    """The key with this id, else the one that is not revoked with this name. Raises UnknownKey.

    With `revoked_too`, else the one that was revoked last.
    """
    row = connection.execute(select(keys).where(keys.c.id == name_or_id)).one_or_none()
    if row is None:
        named = select(keys).where(keys.c.name == name_or_id)
        row = connection.execute(named.where(keys.c.revoked_at.is_(None))).one_or_none()
        if row is None and revoked_too:
            row = connection.execute(named.order_by(keys.c.revoked_at.desc()).limit(1)).one_or_none()
    if row is None:
        raise UnknownKey(f"there is no key with the name or id '{name_or_id}'; `cortex key list` lists them")
    return _stored(row)


# Changing...


def create(connection: Connection, columns: Mapping[str, Any]) -> NewSecret:
    """A new key with these columns, as `key_fields.parse_fields` returns them. Raises KeyConflict."""
    key_id = secrets_of_keys.new_id()
    secret = secrets_of_keys.new_secret(key_id)
    row = {**columns, "id": key_id, "secret_hash": secrets_of_keys.digest_of(secret)}
    return NewSecret(_insert(connection, row, f"there is a key with the name '{row['name']}' already"), secret)


def create_first(connection: Connection, columns: Mapping[str, Any], secret: str | None) -> NewSecret | None:
    """Create a key if the store has none that is not revoked; of several gateways that start, one does.

    `secret` is what the operator chose; None makes one. Returns None if there are keys.
    """
    _changed(connection)  # locks the counter: another gateway waits here, and then finds this key
    if connection.execute(select(keys.c.id).where(keys.c.revoked_at.is_(None)).limit(1)).first() is not None:
        return None
    if secret is None:
        return create(connection, columns)
    key_id, digest = secrets_of_keys.id_of(secret), secrets_of_keys.digest_of(secret)
    return NewSecret(insert_known(connection, {**columns, "id": key_id, "secret_hash": digest}), secret)


def insert_known(connection: Connection, columns: Mapping[str, Any]) -> StoredKey:
    """A key with an id and the hash of a secret that exist already: an import. Raises KeyConflict."""
    conflict = f"there is a key with the name '{columns['name']}' or the id {columns['id']} already"
    return _insert(connection, columns, conflict)


def _insert(connection: Connection, columns: Mapping[str, Any], conflict: str) -> StoredKey:
    row = {**_DEFAULTS, "created_at": time.time(), **columns}
    try:
        connection.execute(insert(keys).values(row))
    except exc.IntegrityError as error:
        raise KeyConflict(conflict) from error
    _changed(connection)
    return find(connection, row["id"])


def edit(connection: Connection, key_id: str, columns: Mapping[str, Any]) -> StoredKey:
    """Set these columns. Raises UnknownKey, KeyConflict."""
    if columns:
        try:
            connection.execute(update(keys).where(keys.c.id == key_id).values(**columns))
        except exc.IntegrityError as error:
            raise KeyConflict(f"there is a key with the name '{columns.get('name')}' already") from error
        _changed(connection)
    return find(connection, key_id)


def rotate(connection: Connection, key_id: str, *, grace_s: float) -> NewSecret:
    """A new secret for the key; the old one works for `grace_s` more seconds. Raises UnknownKey."""
    now, secret = time.time(), secrets_of_keys.new_secret(key_id)
    old = connection.execute(select(keys.c.secret_hash).where(keys.c.id == key_id)).scalar_one_or_none()
    columns = {
        "secret_hash": secrets_of_keys.digest_of(secret),
        "old_hash": old if grace_s > 0 else None,
        "old_until": now + grace_s if grace_s > 0 else None,
    }
    return NewSecret(edit(connection, key_id, columns), secret)


def revoke(connection: Connection, key_id: str, *, end_streams: bool) -> StoredKey:
    """The key's secret works no more; with `end_streams` its running requests end too. Raises UnknownKey."""
    before = find(connection, key_id).key.revoked_at
    columns: dict[str, Any] = {"revoked_at": time.time() if before is None else before}
    if end_streams:
        columns["end_streams"] = True
    return edit(connection, key_id, columns)


def _changed(connection: Connection) -> None:
    connection.execute(update(counters).where(counters.c.name == "keys").values(value=counters.c.value + 1))


def _stored(row: Row[Any]) -> StoredKey:
    key = Key(
        id=row.id,
        name=row.name,
        may=tuple(row.may),
        verbs=frozenset(row.verbs),
        limits=_limits(row),
        weight=row.weight,
        priority=row.priority,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
    return StoredKey(
        key,
        bytes.fromhex(row.secret_hash),
        None if row.old_hash is None else bytes.fromhex(row.old_hash),
        row.old_until or 0.0,
        end_streams=row.end_streams,
    )


def _limits(row: Row[Any]) -> Limits:
    budgets: Iterable[Mapping[str, Any]] = row.budgets
    return Limits(
        rpm=row.rpm,
        tpm=row.tpm,
        concurrency=row.concurrency,
        budgets=tuple(Budget(**budget) for budget in budgets),
        observe=frozenset(row.observe),
    )
