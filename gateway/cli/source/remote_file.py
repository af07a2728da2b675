"""A `models.toml` behind the admin API of a gateway: no file is needed on this host. Blocking."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from catalogue.toml.faults import FaultyFile
from gateway.aliases.files.audit_log import ChainBreak, Verification
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.locked_edit import FileEdit
from gateway.aliases.files.rollout_state import Rollout
from gateway.aliases.files.start_rollout import RolloutPlan
from gateway.aliases.files.toml_edit import CannotEdit
from gateway.aliases.files.versions import Version
from gateway.cli import api_client
from gateway.cli.api_client import ApiError, GatewayAddress, NoToken
from gateway.cli.source.editable_file import AliasCommandError, NoAnswer
from gateway.cli.source.local_file import FROM_DISK_HINT, os_user

__all__ = ["RemoteFile"]

SETTLED_WITHIN_S = 3.0  # another operator's edit is in force by then
RETRY_S = 0.1


class RemoteFile:
    """The file that a gateway reads. `gateway.is_remote` holds."""

    def __init__(self, gateway: GatewayAddress) -> None:
        self._gateway = gateway

    @property
    def name(self) -> str:
        """The gateway's address, as a file has no path here."""
        return f"models.toml of {self._gateway.admin}"

    @property
    def audit_name(self) -> str:
        """The gateway's address."""
        return f"audit log of {self._gateway.admin}"

    def read(self) -> bytes:
        """The file on disk. Raises AliasCommandError."""
        with _refusals():
            return self._get_catalogue(from_disk=True)

    def is_current(self, data: bytes) -> bool:
        """Whether the file on disk has this content."""
        try:
            return self.read() == data
        except AliasCommandError:
            return False

    def edit(self, edit: Callable[[bytes], bytes], command: str, *, from_disk: bool) -> FileEdit:
        """Replace the content, if it is still the one that the edit started from. Raises AliasCommandError."""
        give_up_at = time.monotonic() + SETTLED_WITHIN_S
        while True:
            with _refusals():
                before = self._get_catalogue(from_disk=from_disk)
                after = edit(before)
                if after == before:
                    return FileEdit(before, after)
                try:
                    body = self._put(before, after, command)
                except ApiError as error:
                    if error.status != 412:
                        raise
                    if time.monotonic() >= give_up_at:
                        text = f"{self.name} on disk is not the file in force\n{FROM_DISK_HINT}"
                        raise AliasCommandError(text) from error
                else:
                    return FileEdit(before, after, body["not_kept"])
            time.sleep(RETRY_S)  # another edit came first, and is about to be in force

    def _put(self, before: bytes, after: bytes, command: str) -> dict[str, Any]:
        headers = {"if-match": f'"{digest_of(before)}"', "content-type": "application/toml"}
        return self._send("PUT", "/admin/catalogue", command, headers=headers, content=after)

    def roll_back(self, alias: str | None, version: str | None, command: str) -> FileEdit:
        """Restore the file or one alias. Raises AliasCommandError."""
        try:
            before = self.read()
        except AliasCommandError:  # deleted, or no file: that is what a rollback mends
            before = b""
        with _refusals():
            body = self._send("POST", "/admin/rollback", command, json={"alias": alias, "to": version})
        moved_to = None if body["moved_to"] is None else Path(body["moved_to"])
        return FileEdit(before, self.read(), body["not_kept"], moved_to)

    def content_in_force(self, digest: str | None = None) -> bytes | None:  # noqa: ARG002 - the gateway knows which
        """The file in force. Raises AliasCommandError."""
        with _refusals():
            return self._get_catalogue(from_disk=False)

    def versions(self, alias: str | None, limit: int) -> list[Version]:
        """From the gateway. Raises AliasCommandError."""
        params = {"limit": str(limit)} | ({} if alias is None else {"alias": alias})
        with _refusals():
            found = self._get("/admin/history", "versions", params)
        return [Version(**version | {"aliases": frozenset(version["aliases"])}) for version in found["versions"]]

    def rollouts(self) -> dict[str, Rollout]:
        """From the gateway. Raises AliasCommandError."""
        with _refusals():
            stored = self._get("/admin/rollouts", "stored", {"stored": "1"})["stored"]
        return {each["alias"]: msgspec.convert(each, Rollout) for each in stored}

    def start_rollout(self, plan: RolloutPlan, *, from_disk: bool) -> Rollout:
        """Store a rollout. Raises AliasCommandError."""
        body = {
            "target": plan.target,
            "steps": list(plan.steps),
            "every_seconds": plan.every_s,
            "guards": dict(plan.guards),
            "min_requests": plan.min_requests,
            "force": True,  # this command has looked the target up already
            "from_disk": from_disk,
        }
        command = f"cortex alias rollout {plan.alias} {plan.target}"
        with _refusals():
            return msgspec.convert(self._send("POST", self._rollout_path(plan.alias), command, json=body), Rollout)

    def abort_rollout(self, alias: str) -> tuple[Rollout, FileEdit]:
        """End a running rollout. Raises AliasCommandError."""
        before = self.read()
        with _refusals():
            body = self._send("DELETE", self._rollout_path(alias), f"cortex alias rollout {alias} --abort")
        return msgspec.convert(body, Rollout), FileEdit(before, self.read())

    def acknowledge_rollback(self, alias: str) -> Rollout:
        """Note that the operator knows of the rollback. Raises AliasCommandError."""
        with _refusals():
            path = f"{self._rollout_path(alias)}/acknowledge"
            return msgspec.convert(self._send("POST", path, f"cortex alias rollout {alias} --acknowledge"), Rollout)

    def audit_lines(self, limit: int) -> Iterable[Mapping[str, Any]]:
        """From the gateway. Raises AliasCommandError."""
        with _refusals():
            lines: list[Mapping[str, Any]] = self._get("/admin/audit", "lines", {"limit": str(limit)})["lines"]
            return lines

    def verify_audit_log(self) -> Verification:
        """The gateway reads the whole log. Raises AliasCommandError."""
        with _refusals():
            found = self._get("/admin/audit", "verification", {"limit": "1", "verify": "1"})["verification"]
        broken = found["broken"]
        if broken is not None:
            found["broken"] = ChainBreak(Path(broken["path"]), broken["number"], broken["reason"])
        return Verification(**found)

    # HTTP .............................................................................................................

    def _rollout_path(self, alias: str) -> str:
        return f"/admin/aliases/{api_client.segment(alias)}/rollout"

    def _get_catalogue(self, *, from_disk: bool) -> bytes:
        params = {"source": "disk" if from_disk else "in_force"}
        with api_client.open_client() as client:
            url, token = f"{self._gateway.admin}/admin/catalogue", self._gateway.required_token()
            return api_client.send(client, "GET", url, token=token, headers={}, params=params).content

    def _get(self, path: str, key: str, params: Mapping[str, str]) -> dict[str, Any]:
        with api_client.open_client() as client:
            url, token = f"{self._gateway.admin}{path}", self._gateway.required_token()
            response = api_client.send(client, "GET", url, token=token, headers={}, params=params)
        return _object_with(response, key)

    def _send(
        self, method: str, path: str, command: str, *, headers: Mapping[str, str] | None = None, **content: Any
    ) -> dict[str, Any]:
        """Change something; the audit log names this user and the command."""
        labels = {"x-cortex-user": f"{os_user()}@{socket.gethostname()}", "x-cortex-command": command}
        encoded = {name: quote(value) for name, value in labels.items()}
        with api_client.open_client() as client:
            url, token = f"{self._gateway.admin}{path}", self._gateway.required_token()
            response = api_client.send(
                client, method, url, token=token, headers=encoded | dict(headers or {}), **content
            )
        return _object_with(response)


def _object_with(response: httpx.Response, *keys: str) -> dict[str, Any]:
    body = response.json()
    if not isinstance(body, dict) or not body.keys() >= set(keys):
        raise ApiError(f"the server at {response.url} is not a cortex gateway of this version")
    return body


@contextmanager
def _refusals() -> Iterator[None]:
    """What the gateway refuses, as AliasCommandError."""
    try:
        yield
    except ApiError as error:
        if error.message is None and error.status is None and not isinstance(error, NoToken):
            raise NoAnswer(str(error)) from error
        raise AliasCommandError(str(error) if error.message is None else error.message) from error
    except (CannotEdit, FaultyFile, ValueError) as error:  # by the edit itself, on this host
        raise AliasCommandError(str(error)) from error
