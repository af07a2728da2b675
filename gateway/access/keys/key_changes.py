"""What operators do to keys, in JSON: the same for the admin API and for the command line on the store. Blocking.

Each method is the work of one transaction. A key never grants what it lacks: it can neither give another key more than
it has itself, nor change, take over or revoke one that has more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from gateway.access.keys import key_rows, scope
from gateway.access.keys.key import Key
from gateway.access.keys.key_fields import LONGEST_LIFE_S, InvalidKey, as_json, duration_s, parse_fields
from gateway.access.keys.key_rows import KeyConflict, NewSecret, UnknownKey
from gateway.access.keys.key_table import StoredKey

__all__ = ["IMPORTED_FIELDS", "KeyChanges", "NotGrantable"]

_ID = re.compile(r"[0-9A-Za-z]{1,32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_READ_ONLY = frozenset({"state", "old_secret_until", "revoked_at"})  # an export has them
IMPORTED_FIELDS = frozenset({"id", "secret_sha256", "created_at"})


class NotGrantable(Exception):
    """The key of the operator lacks what the change needs. `field` is `verbs` or `may`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """Changes by one operator.

    Args:
        grantor: The operator's key; None for an operator who has the store itself, and so may do everything.
        currency: `[ledger] currency`.
    """

    grantor: Key | None = None
    currency: str = "USD"

    def list(self, connection: Connection, *, with_hashes: bool = False) -> list[dict[str, Any]]:
        """Every key, the oldest first. With hashes, what `create` takes to import them elsewhere."""
        found = key_rows.read_all(connection)
        if not with_hashes:
            return [self._json(stored) for stored in found]
        return [{**self._json(stored), "secret_sha256": stored.digest.hex()} for stored in found]

    def show(self, connection: Connection, name_or_id: str) -> dict[str, Any]:
        """One key. Raises UnknownKey."""
        return self._json(key_rows.find(connection, name_or_id))

    def create(self, connection: Connection, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A new key, with its `secret`; or, if `fields` have the hash of a secret, an imported key.

        Raises:
            InvalidKey, KeyConflict, NotGrantable: By their names.
        """
        settings = {name: value for name, value in fields.items() if name not in IMPORTED_FIELDS | _READ_ONLY}
        if "secret_sha256" not in fields and (unknown := fields.keys() - settings.keys()):
            raise InvalidKey(min(unknown), "cannot be set")
        columns = parse_fields(settings, currency=self.currency)
        if "name" not in columns:
            raise InvalidKey("name", "is missing")
        self._check_grant({"verbs": ["infer"], "may": ["*"], **columns})
        if "secret_sha256" in fields:
            return self._json(key_rows.insert_known(connection, {**columns, **_imported(fields)}))
        return self._json_with_secret(key_rows.create(connection, columns))

    def import_key(self, connection: Connection, fields: Mapping[str, Any]) -> bool:
        """Import one exported key; False if the store has it already, or if it is revoked. Raises as `create`."""
        if fields.get("revoked_at") is not None:
            return False
        if "secret_sha256" not in fields:
            raise InvalidKey("secret_sha256", "is missing: `cortex key export` writes it")
        known = _imported(fields)
        try:
            there = key_rows.find(connection, known["id"])
        except UnknownKey:
            self.create(connection, fields)
            return True
        if there.digest.hex() != known["secret_hash"]:
            raise KeyConflict(f"the store has a key with the id {known['id']} and another secret")
        return False

    def edit(self, connection: Connection, name_or_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Set these fields of a key. With `rotate` it gets a new `secret`; the old one works for `grace`, default 0s.

        Raises:
            UnknownKey, InvalidKey, KeyConflict, NotGrantable: By their names.
        """
        stored = self._changeable(connection, name_or_id)
        settings = dict(fields)
        rotate, grace = settings.pop("rotate", False), settings.pop("grace", "0s")
        if not isinstance(rotate, bool):
            raise InvalidKey("rotate", "must be true or false")
        columns = parse_fields(settings, currency=self.currency)
        self._check_grant(columns)
        grace_s = duration_s("grace", grace, "24h")
        if grace_s > LONGEST_LIFE_S:
            raise InvalidKey("grace", "must be at most 36500d")
        edited = key_rows.edit(connection, stored.key.id, columns)
        if not rotate:
            return self._json(edited)
        return self._json_with_secret(key_rows.rotate(connection, stored.key.id, grace_s=grace_s))

    def revoke(self, connection: Connection, name_or_id: str, *, end_streams: bool) -> dict[str, Any]:
        """The key works no more; with `end_streams` its running requests end. Raises UnknownKey, NotGrantable.

        A revoked key, too, so that its requests can be ended after all; its name may be free by then.
        """
        stored = self._within_grant(connection, name_or_id, revoked_too=True)
        return self._json(key_rows.revoke(connection, stored.key.id, end_streams=end_streams))

    def _changeable(self, connection: Connection, name_or_id: str) -> StoredKey:
        stored = self._within_grant(connection, name_or_id)
        if stored.key.revoked_at is not None:
            raise KeyConflict(f"the key '{stored.key.name}' ({stored.key.id}) was revoked: create another")
        return stored

    def _within_grant(self, connection: Connection, name_or_id: str, *, revoked_too: bool = False) -> StoredKey:
        stored = key_rows.find(connection, name_or_id, revoked_too=revoked_too)
        self._check_grant({"verbs": stored.key.verbs, "may": stored.key.may})
        return stored

    def _check_grant(self, columns: Mapping[str, Any]) -> None:
        grantor = self.grantor
        if grantor is None:
            return
        lacking = sorted(set(columns.get("verbs", ())) - grantor.verbs)
        if lacking:
            raise NotGrantable("verbs", f"the key {grantor.name!r} lacks the verb {', '.join(lacking)} itself")
        if not scope.contains(grantor.may, columns.get("may", ())):
            raise NotGrantable("may", f"the key {grantor.name!r} may itself use only {', '.join(grantor.may)}")

    def _json(self, stored: StoredKey) -> dict[str, Any]:
        return as_json(stored, currency=self.currency)

    def _json_with_secret(self, new: NewSecret) -> dict[str, Any]:
        return {"secret": new.secret, **self._json(new.stored)}


def _imported(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of an imported key that no operator chooses. Raises InvalidKey."""
    key_id, digest, created_at = fields.get("id"), fields["secret_sha256"], fields.get("created_at")
    if not isinstance(key_id, str) or not _ID.fullmatch(key_id):
        raise InvalidKey("id", "must be 1 to 32 letters and digits, the middle part of ctx_<id>_<secret>")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise InvalidKey("secret_sha256", "must be 64 hexadecimal digits in lower case")
    columns: dict[str, Any] = {"id": key_id, "secret_hash": digest}
    if created_at is not None:
        columns["created_at"] = parse_fields({"expires_at": created_at})["expires_at"]
    return columns
