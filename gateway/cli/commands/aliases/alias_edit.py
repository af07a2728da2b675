"""Edits `models.toml` for `cortex alias`, and reports what changes. Blocking.

An operator could make the same changes with an editor, so a gateway that does not answer does not prevent them. A
gateway that reads another file does: the change would have no effect there. `follow_edit.py` waits for the gateway.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from catalogue.diff import CatalogueDiff, diff
from catalogue.load import parse
from catalogue.models import Catalogue
from catalogue.nearest import did_you_mean
from catalogue.toml.faults import FaultyFile
from catalogue.toml.parse import is_blank
from gateway.aliases.files import toml_edit
from gateway.aliases.files.locked_edit import FileEdit
from gateway.aliases.files.rollout_state import Rollout, split_weights
from gateway.cli import api_client
from gateway.cli.api_client import ApiError, GatewayAddress
from gateway.cli.connection import Connection
from gateway.cli.source.editable_file import AliasCommandError, EditableFile, NoAnswer
from gateway.cli.terminal import HASH_DIGITS, print_error

__all__ = ["DONE", "NOT_IN_FORCE", "NO_GATEWAY", "REFUSED", "AliasEditor", "run_alias_command"]

# Exit codes.
DONE = 0
REFUSED = 1  # nothing was written
NO_GATEWAY = 2  # the file is written, but no gateway answers
NOT_IN_FORCE = 3  # the file is written, but the gateway did not apply it, or could not move the alias
INTERRUPTED = 130

DIFF_LINES = 60  # of a file that replaces a faulty one


def run_alias_command(
    connection: Connection, command: Callable[[AliasEditor], int], *, only_reads: bool = False
) -> NoReturn:
    """Run `command` for this file and gateway, print its error if it raises one, and exit.

    A command that only reads exits with NO_GATEWAY if the gateway cannot be reached; of an edit that code says that the
    file is written.
    """
    editor: AliasEditor | None = None
    try:
        editor = AliasEditor(connection.file(), connection.address(), click.echo)
        exit_code = command(editor)
    except AliasCommandError as error:
        for line in str(error).splitlines():
            print_error(f"error: {line}")
        exit_code = NO_GATEWAY if only_reads and isinstance(error, NoAnswer) else REFUSED
    except KeyboardInterrupt:
        if editor is not None and editor.has_begun:
            print_error("interrupted: the change may be written already; the gateway goes on with it")
        else:
            print_error("interrupted: nothing was written")
        exit_code = INTERRUPTED
    sys.exit(exit_code)


class AliasEditor:
    """Reads and edits one `models.toml`.

    Args:
        file: The file, with its audit log, history and rollouts.
        gateway: The gateway that reads the file.
        report: Prints a line about the progress.

    Attributes:
        has_begun: Whether the command may have written something; an interrupted operator needs to know.
    """

    def __init__(self, file: EditableFile, gateway: GatewayAddress, report: Callable[[str], None]) -> None:
        self.file = file
        self.gateway = gateway
        self.report = report
        self.has_begun = False
        self._in_force_before: bytes | None = None

    # Reading ..........................................................................................................

    def read(self) -> tuple[bytes, Catalogue]:
        """The file and its catalogue. Raises AliasCommandError if it cannot be read or is faulty."""
        data = self.file.read()
        try:
            return data, self._parse(data)
        except FaultyFile as error:
            raise AliasCommandError(str(error)) from error

    def health(self) -> dict[str, Any] | None:
        """The body of the gateway's `/health`; None if it does not answer."""
        try:
            with api_client.open_client() as client:
                return api_client.get_health(client, self.gateway)
        except ApiError:
            return None

    def running_rollouts(self) -> dict[str, Rollout]:
        """The running rollouts, by alias. Raises AliasCommandError if their file is invalid."""
        return {alias: rollout for alias, rollout in self.file.rollouts().items() if rollout.state == "running"}

    def _parse(self, data: bytes) -> Catalogue:
        return parse(data, path=self.file.name, generation=0, loaded_at=0.0)

    # Editing: each raises AliasCommandError ...........................................................................

    def point(
        self, name: str, target: str, percent: float, command: str, *, swap: str | None, force: bool, from_disk: bool
    ) -> FileEdit:
        """Give `target` so many percent of an alias; the other targets share the rest."""

        def edit(data: bytes) -> bytes:
            alias = self._parse(data).aliases.get(name)
            weights = {} if alias is None else {each.model: each.weight for each in alias.targets}
            edited = toml_edit.set_alias(data, name, split_weights(weights, target, percent), swap=swap)
            if edited != data:
                self.require_known(target, self._parse(edited), force=force)
            return edited

        return self._edit(edit, command, from_disk=from_disk)

    def remove(self, name: str, command: str, *, from_disk: bool) -> FileEdit:
        """Remove an alias."""

        def edit(data: bytes) -> bytes:
            self.require_alias(name, self._parse(data))
            return toml_edit.remove_alias(data, name)

        return self._edit(edit, command, from_disk=from_disk)

    def roll_back(self, name: str | None, version: str | None, command: str) -> FileEdit:
        """Restore the file, or one alias in it, to a version; without one, to that before the last change."""
        self.refuse_other_file()
        self._in_force_before = self._read_in_force()
        self.has_begun = True
        return self._warned(self.file.roll_back(name, version, command))

    def replace(self, wanted: bytes, command: str, *, base: bytes | None, from_disk: bool) -> FileEdit:
        """Replace the whole file; with `base`, only if the file still has that content."""
        try:
            self._parse(wanted)
        except FaultyFile as error:
            raise AliasCommandError(f"the new file is faulty, and nothing was written\n{error}") from error

        def edit(data: bytes) -> bytes:
            if base is not None and data != base:
                raise AliasCommandError(f"{self.file.name} has been changed since you began; nothing was written")
            return wanted

        return self._edit(edit, command, from_disk=from_disk)

    def in_force(self) -> bytes | None:
        """The file that the gateway has in force; None if it cannot be had."""
        return self._read_in_force()

    def _edit(self, edit: Callable[[bytes], bytes], command: str, *, from_disk: bool) -> FileEdit:
        self.refuse_other_file()
        if from_disk:
            self._in_force_before = self._read_in_force()
        self.has_begun = True
        return self._warned(self.file.edit(edit, command, from_disk=from_disk))

    def _read_in_force(self) -> bytes | None:
        health = self.health()
        return self.file.content_in_force(None if health is None else health["catalogue"].get("digest"))

    def _warned(self, done: FileEdit) -> FileEdit:
        if done.not_kept is not None:
            self.report(f"warning: `cortex alias rollback` cannot undo this change: {done.not_kept}")
        if done.moved_to is not None:
            self.report(f"warning: what was in the place of {self.file.name} is {done.moved_to} now")
        return done

    def require_alias(self, name: str, catalogue: Catalogue) -> None:
        """Raise AliasCommandError unless the file has this alias."""
        if name not in catalogue.aliases:
            raise AliasCommandError(f"{self.file.name} has no alias '{name}'{did_you_mean(name, catalogue.aliases)}")

    def require_known(self, target: str, catalogue: Catalogue, *, force: bool) -> None:
        """Raise AliasCommandError, or with `force` warn, if neither the file nor a neuron has this model."""
        if target in catalogue.models:
            return
        on_neurons = self._models_on_neurons()
        if target in (on_neurons or ()):
            return
        elsewhere = "no gateway answers that could find it on a neuron" if on_neurons is None else "no neuron has it"
        text = (
            f"{target} is unknown: {os.path.basename(self.file.name)} has no [[models]] table for it, and {elsewhere}"  # noqa: PTH119 - it may be a URL
        )
        if not force:
            hint = did_you_mean(target, [*catalogue.models, *(on_neurons or ())])
            raise AliasCommandError(f"{text}{hint}\n--force does it all the same")
        self.report(f"warning: {text}")

    def _models_on_neurons(self) -> set[str] | None:
        """The models that neurons list; None if the gateway does not answer."""
        try:
            with api_client.open_client() as client:
                models = api_client.get_models(client, self.gateway)
                return {model["id"] for model in models if model["locations"] and model.get("alias_of") is None}
        except ApiError:
            return None

    def refuse_other_file(self) -> None:
        """Raise AliasCommandError if the gateway at this address reads another file."""
        health = self.health()
        if health is None or self.gateway.is_remote:
            return
        path = health["catalogue"].get("path")
        if path is None or os.path.realpath(path) != os.path.realpath(self.file.name):
            raise AliasCommandError(
                f"the gateway at {self.gateway.api} reads {path}, not {self.file.name}; "
                "-c must name the cortex.toml of that gateway"
            )

    # Reporting ........................................................................................................

    def report_changes(self, done: FileEdit) -> CatalogueDiff:
        """Report everything that the new file changes of what is in force, and which rollouts that ends."""
        changes = CatalogueDiff()
        is_valid = self._is_valid(done.before)
        before = self._in_force_before or (done.before if is_valid else None)
        if before is not None:
            changes = diff(self._parse(before), self._parse(done.after))
        if is_valid or changes:
            self._report_diff(self.file.name, changes)
        if is_valid and before is not None and before != done.before:
            from_disk = diff(self._parse(done.before), self._parse(done.after))
            self._report_diff("compared with the file that was on disk", from_disk)
        if not is_valid:
            self._report_replaced(done)
        self._report_ended_rollouts(changes)
        return changes

    def _report_diff(self, name: str, changes: CatalogueDiff) -> None:
        first, *more = str(changes).split("; ")
        self.report(f"{name}: {first}")
        for phrase in more:
            self.report(f"  {phrase}")

    def _is_valid(self, data: bytes) -> bool:
        try:
            return not is_blank(data) and self._parse(data) is not None
        except FaultyFile:
            return False

    def _report_replaced(self, done: FileEdit) -> None:
        """The lines that differ, since a faulty file has no meaning to compare."""
        self.report(
            f"{self.file.name}: valid again, file {done.digest[:HASH_DIGITS]}; the replaced one is in the history"
        )
        before, after = (data.decode("utf-8", "replace").splitlines() for data in (done.before, done.after))
        lines = list(difflib.unified_diff(before, after, "replaced", "restored", n=0, lineterm=""))
        for line in lines[:DIFF_LINES]:
            self.report(f"  {line}")
        if len(lines) > DIFF_LINES:
            self.report(f"  and {len(lines) - DIFF_LINES} more lines")

    def _report_ended_rollouts(self, changes: CatalogueDiff) -> None:
        try:
            running = self.running_rollouts()
        except AliasCommandError as error:  # the file is written: this is too late to refuse
            self.report(f"warning: {error}")
            return
        touched = retargeted(changes) | {alias.name for alias in changes.aliases_removed}
        for name in sorted(touched & running.keys()):
            self.report(f"this ends the running rollout of {name}")


def retargeted(changes: CatalogueDiff) -> set[str]:
    """The aliases whose targets change."""
    return {change.name for change in changes.aliases_changed if change.moves_traffic}
