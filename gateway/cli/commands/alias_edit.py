"""Edits `models.toml` for `cortex alias`, then waits until the gateway has the new file in force. Blocking.

An operator could make the same changes with an editor, so a gateway that does not answer does not prevent them. A
gateway that reads another file does: the change would have no effect there.
"""

from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Self

import click
import httpx

from catalogue.diff import CatalogueDiff, diff
from catalogue.load import parse
from catalogue.models import Catalogue
from catalogue.toml.faults import FaultyFile
from gateway.aliases.files import locked_edit, rollout_state, toml_edit, versions
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.locked_edit import FileEdit
from gateway.aliases.files.rollout_state import InvalidRolloutState, Rollout, split_weights
from gateway.aliases.files.toml_edit import CannotEdit
from gateway.aliases.files.versions import VersionNotFound
from gateway.cli import api_client
from gateway.cli.api_client import ApiError, GatewayAddress
from gateway.cli.options import load_settings
from gateway.cli.terminal import HASH_DIGITS, print_error
from gateway.cli.views.alias_view import swap_text
from gateway.config.settings import Settings
from gateway.files.atomic_write import CannotSave

__all__ = [
    "DONE",
    "NOT_IN_FORCE",
    "NO_GATEWAY",
    "REFUSED",
    "AliasCommandError",
    "AliasEditor",
    "os_user",
    "run_alias_command",
]

# Exit codes.
DONE = 0
REFUSED = 1  # nothing was written
NO_GATEWAY = 2  # the file is written, but no gateway answers
NOT_IN_FORCE = 3  # the file is written, but the gateway did not apply it, or could not move the alias
INTERRUPTED = 130

IN_FORCE_WITHIN_S = 10.0  # a gateway notices a change within 0.1 s, or at its next poll 2 s later
POLL_S = 0.05
SWAP_POLL_S = 0.25


class AliasCommandError(Exception):
    """The command cannot be carried out, and nothing was written. The text has a line for each reason."""


def run_alias_command(config: Path | None, command: Callable[[AliasEditor], int]) -> NoReturn:
    """Run `command` for the file and gateway of the settings, print its error if it raises one, and exit."""
    editor = AliasEditor.from_settings(load_settings(config).settings, click.echo)
    try:
        exit_code = command(editor)
    except AliasCommandError as error:
        for line in str(error).splitlines():
            print_error(f"error: {line}")
        exit_code = REFUSED
    except KeyboardInterrupt:
        if editor.has_begun:
            print_error("interrupted: the change may be written already; the gateway goes on with it")
        else:
            print_error("interrupted: nothing was written")
        exit_code = INTERRUPTED
    sys.exit(exit_code)


def os_user() -> str:
    """The user who runs this process, as the audit log names them."""
    name = _user_name(os.getuid())
    sudo_user = os.environ.get("SUDO_USER")
    return f"{name} (sudo: {sudo_user})" if sudo_user and os.geteuid() == 0 else name


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"  # as in many containers


class AliasEditor:
    """Reads and edits `models.toml`, and follows what the gateway does with it.

    Args:
        files: The file, and its audit log, history and rollouts.
        gateway: The gateway that reads the file.
        report: Prints a line about the progress.

    Attributes:
        has_begun: Whether the command may have written something; an interrupted operator needs to know.
    """

    def __init__(self, files: CatalogueFiles, gateway: GatewayAddress, report: Callable[[str], None]) -> None:
        self.files = files
        self.gateway = gateway
        self.report = report
        self.has_begun = False

    @classmethod
    def from_settings(cls, settings: Settings, report: Callable[[str], None]) -> Self:
        """The editor for the files and the gateway of these settings."""
        return cls(CatalogueFiles.from_settings(settings), GatewayAddress.from_settings(settings), report)

    # Reading ..........................................................................................................

    def read(self) -> tuple[bytes, Catalogue]:
        """The file and its catalogue. Raises AliasCommandError if it cannot be read or is faulty."""
        path = self.files.models_path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise AliasCommandError(f"cannot read {path}: {error.strerror or error}") from error
        try:
            return data, self._parse(data)
        except FaultyFile as error:
            raise AliasCommandError(str(error)) from error

    def health(self) -> dict[str, Any] | None:
        """The body of the gateway's `/health`; None if it does not answer."""
        try:
            with api_client.open_client() as client:
                return self._get_health(client)
        except ApiError:
            return None

    def rollouts(self) -> dict[str, Rollout]:
        """The last rollout of each alias, running or ended. Raises AliasCommandError if their file is invalid."""
        try:
            return rollout_state.read(self.files)
        except (InvalidRolloutState, OSError) as error:
            raise AliasCommandError(str(error)) from error

    def running_rollouts(self) -> dict[str, Rollout]:
        """The running rollouts, by alias. Raises AliasCommandError if their file is invalid."""
        return {alias: rollout for alias, rollout in self.rollouts().items() if rollout.state == "running"}

    def _parse(self, data: bytes) -> Catalogue:
        return parse(data, path=str(self.files.models_path), generation=0, loaded_at=0.0)

    def _get_health(self, client: httpx.Client) -> dict[str, Any]:
        return api_client.get(client, f"{self.gateway.api}/health", ("catalogue",))

    # Editing ..........................................................................................................

    def point(self, name: str, target: str, percent: float, command: str, *, swap: str | None) -> FileEdit:
        """Give `target` so many percent of an alias; the other targets share the rest. Raises AliasCommandError."""

        def edit(data: bytes) -> bytes:
            alias = self._parse(data).aliases.get(name)
            weights = {} if alias is None else {each.model: each.weight for each in alias.targets}
            return toml_edit.set_alias(data, name, split_weights(weights, target, percent), swap=swap)

        done = self._edit(edit, command)
        if target not in self._parse(done.after).models:
            self.report(
                f"warning: {self.files.models_path.name} has no [[models]] table for {target}; "
                "only neurons that have it loaded already can serve it"
            )
        return done

    def remove(self, name: str, command: str) -> FileEdit:
        """Remove an alias. Raises AliasCommandError."""
        return self._edit(lambda data: toml_edit.remove_alias(data, name), command)

    def roll_back(self, name: str | None, version: str | None, command: str) -> FileEdit:
        """Restore the file, or one alias in it, to a version; without one, to that before the last change.

        Raises AliasCommandError.
        """

        def edit(data: bytes) -> bytes:
            if version is None:
                earlier = versions.read_previous(self.files, data, name)
            else:
                earlier = versions.read_version(self.files, version)
            return earlier if name is None else toml_edit.restore_alias(data, name, earlier)

        return self._edit(edit, command)

    def _edit(self, edit: Callable[[bytes], bytes], command: str) -> FileEdit:
        self._refuse_other_file()
        self.has_begun = True
        try:
            done = locked_edit.edit_models(self.files, edit, who=os_user(), command=command)
        except FaultyFile as error:
            raise AliasCommandError(str(error)) from error
        except KeyError as error:
            raise AliasCommandError(f"{self.files.models_path} has no alias {error.args[0]!r}") from error
        except (CannotSave, CannotEdit, VersionNotFound, OSError, ValueError) as error:
            raise AliasCommandError(str(error)) from error
        if done.not_kept is not None:
            self.report(f"warning: `cortex alias rollback` cannot undo this change: {done.not_kept}")
        return done

    def _refuse_other_file(self) -> None:
        """Raise AliasCommandError if the gateway at this address reads another file."""
        health = self.health()
        if health is None:
            return
        path = health["catalogue"].get("path")
        if path is None or os.path.realpath(path) != os.path.realpath(self.files.models_path):
            raise AliasCommandError(
                f"the gateway at {self.gateway.api} reads {path}, not {self.files.models_path}; "
                "-c must name the cortex.toml of that gateway"
            )

    # Following ........................................................................................................

    def follow(self, done: FileEdit, aliases: set[str] | None, *, wait: bool) -> int:
        """Report the change, and wait until it is in force; return the exit code.

        Args:
            done: The edit.
            aliases: The aliases whose swaps are reported; None for all whose target changed.
            wait: Wait also until those swaps are complete.
        """
        path = self.files.models_path
        if not done:
            self.report(f"no change: {path} has this content already; nothing was written")
            return DONE
        changes = self._changes(done)
        if changes is None:
            self.report(f"{path}: valid again, file {done.digest[:HASH_DIGITS]}")
            changes = CatalogueDiff()
        else:
            self.report(f"{path}: {changes}")
        self._report_ended_rollouts(changes)
        began = time.monotonic()
        with api_client.open_client() as client:
            self._request_reload(client)
            health = self._wait_until_in_force(client, done)
            if isinstance(health, int):
                return health
            took_ms = (time.monotonic() - began) * 1000
            self.report(f"in force: generation {health['catalogue']['generation']}, after {took_ms:.0f} ms")
            return self._follow_swaps(client, health, aliases or _retargeted(changes), wait=wait)

    def _changes(self, done: FileEdit) -> CatalogueDiff | None:
        """What the edit changes; None if the file before it was faulty."""
        try:
            before = self._parse(done.before)
        except FaultyFile:
            return None
        return diff(before, self._parse(done.after))

    def _report_ended_rollouts(self, changes: CatalogueDiff) -> None:
        try:
            running = self.running_rollouts()
        except AliasCommandError as error:  # the file is written: this is too late to refuse
            self.report(f"warning: {error}")
            return
        touched = _retargeted(changes) | {alias.name for alias in changes.aliases_removed}
        for name in sorted(touched & running.keys()):
            self.report(f"this ends the running rollout of {name}")

    def _request_reload(self, client: httpx.Client) -> None:
        """Have the gateway read the file now; without the token it notices the change by itself."""
        if self.gateway.token is None:
            return
        try:
            api_client.post(client, f"{self.gateway.admin}/admin/reload", ("result",), token=self.gateway.token)
        except ApiError as error:
            if error.status in {401, 404}:
                self.report(f"warning: {error}; the gateway will notice the change by itself")

    def _wait_until_in_force(self, client: httpx.Client, done: FileEdit) -> dict[str, Any] | int:
        """The gateway's health once the file is in force, or the exit code if it does not get there."""
        give_up_at = time.monotonic() + IN_FORCE_WITHIN_S
        while True:
            try:
                health = self._get_health(client)
            except ApiError as error:
                self.report(f"the file is written, but no gateway answers: {error}; it reads the file when it starts")
                return NO_GATEWAY
            if health["catalogue"].get("digest") == done.digest:
                return health
            if time.monotonic() >= give_up_at:
                break
            time.sleep(POLL_S)
        catalogue = health["catalogue"]
        if catalogue["error"] is not None:
            reason = f"the gateway refuses it: {catalogue['error']['message']}"
        elif not self._is_current(done):
            reason = "the file has been changed again since"
        else:
            reason = f"the gateway did not apply it within {IN_FORCE_WITHIN_S:g} s; see its log"
        self.report(
            f"the file is written, but not in force: {reason} (generation {catalogue['generation']} is in force)"
        )
        return NOT_IN_FORCE

    def _is_current(self, done: FileEdit) -> bool:
        try:
            return self.files.models_path.read_bytes() == done.after
        except OSError:
            return False

    def _follow_swaps(self, client: httpx.Client, health: dict[str, Any], aliases: set[str], *, wait: bool) -> int:
        """Report the aliases whose swap is not complete; with `wait`, until it is. Returns the exit code."""
        reported: dict[str, str] = {}
        swapping: set[str] = set()
        while True:
            swaps = [swap for swap in health.get("swaps", ()) if swap["alias"] in aliases]
            for swap in swaps:
                text = swap_text(swap)
                if reported.get(swap["alias"]) != text:
                    reported[swap["alias"]] = text
                    self.report(text)
            pending = {swap["alias"] for swap in swaps}
            for name in sorted(swapping - pending):
                self.report(f"{name} has moved: generation {health['catalogue']['generation']}")
            swapping = pending
            if any(swap["state"] == "failed" for swap in swaps):
                return NOT_IN_FORCE
            if not swaps or not wait:
                return DONE
            time.sleep(SWAP_POLL_S)
            try:
                health = self._get_health(client)
            except ApiError as error:
                self.report(f"the gateway stopped answering: {error}")
                return NO_GATEWAY


def _retargeted(changes: CatalogueDiff) -> set[str]:
    return {change.name for change in changes.aliases_changed if change.moves_traffic}
