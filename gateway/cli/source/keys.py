"""The keys that a command is about: in the store on this host, or behind the admin API of a gateway. Blocking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import httpx
import msgspec

from gateway.access.keys.key_changes import KeyChanges
from gateway.access.keys.key_fields import InvalidKey
from gateway.access.keys.key_rows import KeyConflict, UnknownKey
from gateway.access.store.database import Database, StoreUnavailable
from gateway.access.store.migrate import SchemaUnknown
from gateway.aliases.files.audit_log import AuditLog
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.cli import api_client
from gateway.cli.api_client import ApiError, GatewayAddress
from gateway.cli.connection import Connection
from gateway.cli.source.local_file import os_user
from gateway.cli.terminal import print_error

__all__ = ["KeyCommandError", "KeySource", "Unavailable", "key_source"]


class KeyCommandError(Exception):
    """The command is refused; the text says why."""


class Unavailable(KeyCommandError):
    """The gateway or the store does not answer."""


class KeySource(Protocol):
    """Keys, as `KeyChanges` describes them in JSON. Each method raises KeyCommandError."""

    def list(self, *, with_hashes: bool = False) -> list[dict[str, Any]]:
        """Every key."""

    def create(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A new key, with its `secret`."""

    def edit(self, name_or_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Change a key, or give it a new `secret`."""

    def revoke(self, name_or_id: str, *, now: bool) -> dict[str, Any]:
        """Revoke a key."""

    def import_keys(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Import exported keys; returns how many are new."""


def key_source(connection: Connection) -> KeySource:
    """The keys of the gateway that `--url` names; without it, those in the store of cortex.toml."""
    if connection.url:
        return _RemoteKeys(connection.address())
    settings = connection.settings
    audit_log = CatalogueFiles.from_settings(settings).audit_log
    return _LocalKeys(connection.database(), settings.ledger.currency, audit_log)


class _LocalKeys:
    """In the store, which is created or migrated first. Its operator may do everything, and the audit log says what."""

    def __init__(self, database: Database, currency: str, audit_log: AuditLog) -> None:
        self._database = database
        self._audit_log = audit_log
        self._changes = KeyChanges(currency=currency)
        with _as_command_errors():
            database.upgrade()

    def list(self, *, with_hashes: bool = False) -> list[dict[str, Any]]:
        with _as_command_errors():
            return self._database.read(partial(self._changes.list, with_hashes=with_hashes))

    def create(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return self._change("create", partial(self._changes.create, fields=fields))

    def edit(self, name_or_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        what = "rotate" if fields.get("rotate") else "edit"
        return self._change(what, partial(self._changes.edit, name_or_id=name_or_id, fields=fields))

    def revoke(self, name_or_id: str, *, now: bool) -> dict[str, Any]:
        what = "revoke, with its running requests," if now else "revoke"
        return self._change(what, partial(self._changes.revoke, name_or_id=name_or_id, end_streams=now))

    def import_keys(self, records: Sequence[Mapping[str, Any]]) -> int:
        """All of them, or none if one is faulty."""
        with _as_command_errors():
            imported = self._database.write(
                lambda connection: [record for record in records if self._changes.import_key(connection, record)]
            )
        for record in imported:
            self._record("import", str(record["name"]), str(record["id"]), "active")
        return len(imported)

    def _change(self, what: str, work: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        with _as_command_errors():
            done = self._database.write(work)
        self._record(what, done["name"], done["id"], done["state"])
        return done

    def _record(self, what: str, name: str, key_id: str, outcome: str) -> None:
        """A line as the admin API writes it, but that no catalogue belongs to it.

        A key must be revocable while the audit log is out of order, so that is a warning.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": now, "event": "key", "generation": None, "who": os_user(), "file": None}
        line |= {"key": name, "key_id": key_id, "summary": f"{what} key {name}", "outcome": outcome}
        try:
            self._audit_log.append(line)
        except OSError as error:
            reason = error.strerror or str(error)
            print_error(f"warning: the audit log does not have this change: {self._audit_log.path}: {reason}")


@contextmanager
def _as_command_errors() -> Iterator[None]:
    try:
        yield
    except (StoreUnavailable, SchemaUnknown) as error:
        raise Unavailable(str(error)) from error
    except (InvalidKey, KeyConflict, UnknownKey) as error:
        raise KeyCommandError(str(error)) from error


class _RemoteKeys:
    """Behind the admin API, which grants nothing that the operator's own key lacks."""

    def __init__(self, gateway: GatewayAddress) -> None:
        self._gateway = gateway

    def list(self, *, with_hashes: bool = False) -> list[dict[str, Any]]:
        keys: list[dict[str, Any]] = self._send("GET", "", params={"hashes": "1"} if with_hashes else {})["keys"]
        return keys

    def create(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return self._send("POST", "", fields)

    def edit(self, name_or_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        return self._send("PATCH", f"/{api_client.segment(name_or_id)}", fields)

    def revoke(self, name_or_id: str, *, now: bool) -> dict[str, Any]:
        return self._send("DELETE", f"/{api_client.segment(name_or_id)}", params={"now": "1"} if now else {})

    def import_keys(self, records: Sequence[Mapping[str, Any]]) -> int:
        """One after the other: those before a faulty one stay imported."""
        known = {key["id"] for key in self.list()}
        new = [record for record in records if record.get("id") not in known and record.get("revoked_at") is None]
        for record in new:
            self.create(record)
        return len(new)

    def _send(
        self,
        method: str,
        path: str,
        fields: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        content = b"" if fields is None else msgspec.json.encode(fields)
        headers = {"content-type": "application/json"}
        url = f"{self._gateway.admin}/admin/keys{path}"
        try:
            token = self._gateway.required_token()
            with api_client.open_client() as client:
                answer: httpx.Response = api_client.send(
                    client, method, url, token=token, headers=headers, content=content, params=params or {}
                )
                body: dict[str, Any] = answer.json()
        except ApiError as error:
            if error.status is None and error.message is None and self._gateway.token is not None:
                raise Unavailable(str(error)) from error
            raise KeyCommandError(error.message or str(error)) from error
        return body
