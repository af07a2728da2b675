"""A `models.toml` on this host, and the files beside it. Blocking."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from catalogue.toml.faults import FaultyFile
from gateway.aliases.files import locked_edit, rollback, rollout_state, start_rollout, versions
from gateway.aliases.files.audit_log import AuditHead, Verification
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.locked_edit import FileEdit, NotInForce
from gateway.aliases.files.rollout_state import InvalidRolloutState, Rollout, RolloutAlreadyRunning
from gateway.aliases.files.start_rollout import CannotStartRollout, RolloutPlan
from gateway.aliases.files.toml_edit import CannotEdit
from gateway.aliases.files.versions import Version, VersionNotFound
from gateway.cli.source.editable_file import AliasCommandError
from gateway.files.atomic_write import CannotSave
from gateway.files.config_file import read_config_file

__all__ = ["FROM_DISK_HINT", "LocalFile", "os_user"]

FROM_DISK_HINT = (
    "`cortex plan` shows the difference, `cortex alias rollback` restores the file in force, "
    "--from-disk edits the file on disk all the same"
)
SETTLED_WITHIN_S = 3.0  # a gateway notices a change within 0.1 s, or at its next poll 2 s later
POLL_S = 0.05
ABORT_ATTEMPTS = 5  # each fails if a gateway changes the rollout at the same moment
_REASONS = (
    CannotEdit,
    CannotSave,
    CannotStartRollout,
    FaultyFile,
    InvalidRolloutState,
    RolloutAlreadyRunning,
    ValueError,
    VersionNotFound,
)


class LocalFile:
    """The file and its records on this host.

    Args:
        files: Where they are.
        ask_gateway: Returns the catalogue status of the gateway that reads the file, from its `/health`; None if it
            does not answer. With `reload=True` it first has the gateway read the file.
        ask_last_line: Returns the last line of the audit log that this gateway has written, as far as it tells.
    """

    def __init__(
        self,
        files: CatalogueFiles,
        ask_gateway: Callable[..., Mapping[str, Any] | None],
        ask_last_line: Callable[[], AuditHead] = AuditHead,
    ) -> None:
        self.files = files
        self._ask_gateway = ask_gateway
        self._last_line = ask_last_line

    @property
    def name(self) -> str:
        """The path of the file."""
        return str(self.files.models_path)

    @property
    def audit_name(self) -> str:
        """The path of the audit log."""
        return str(self.files.audit_log.path)

    def read(self) -> bytes:
        """The file on disk. Raises AliasCommandError."""
        with _refusals():
            return read_config_file(self.files.models_path)

    def is_current(self, data: bytes) -> bool:
        """Whether the file on disk has this content."""
        try:
            return read_config_file(self.files.models_path) == data
        except FaultyFile:
            return False

    def edit(self, edit: Callable[[bytes], bytes], command: str, *, from_disk: bool) -> FileEdit:
        """Replace the content under the edit lock. Raises AliasCommandError."""
        check = (lambda _: None) if from_disk else self._require_in_force
        with _refusals():
            return locked_edit.edit_models(self.files, edit, who=os_user(), command=command, check_before=check)

    def _require_in_force(self, data: bytes) -> None:
        """Wait a moment for a gateway that is about to read the file. Raises AliasCommandError."""
        give_up_at = time.monotonic() + SETTLED_WITHIN_S
        while True:
            status = self._ask_gateway(reload=True)
            try:
                known = versions.newest_digest(self.files) if status is None else status.get("digest")
                locked_edit.require_in_force(self.files, data, known)
            except NotInForce as error:
                if status is not None and status.get("error") is None and time.monotonic() < give_up_at:
                    time.sleep(POLL_S)
                    continue
                refused = "" if not (status and status.get("error")) else f": {status['error']['message']}"
                raise AliasCommandError(f"{error}{refused}\n{FROM_DISK_HINT}") from error
            return

    def roll_back(self, alias: str | None, version: str | None, command: str) -> FileEdit:
        """Restore the file or one alias. Raises AliasCommandError."""
        status = self._ask_gateway()
        in_force = None if status is None else status.get("digest")
        with _refusals():
            return rollback.roll_back(self.files, alias, version, in_force=in_force, who=os_user(), command=command)

    def content_in_force(self, digest: str | None = None) -> bytes | None:
        """From the history. Raises AliasCommandError."""
        with _refusals():
            known = digest or versions.newest_digest(self.files)
            return None if known is None else self.files.history.get(known)

    def versions(self, alias: str | None, limit: int) -> list[Version]:
        """From the audit log. Raises AliasCommandError."""
        with _refusals():
            return list(islice(versions.list_versions(self.files, alias), limit))

    def rollouts(self) -> dict[str, Rollout]:
        """From the state file. Raises AliasCommandError."""
        with _refusals():
            return rollout_state.read(self.files)

    def start_rollout(self, plan: RolloutPlan, *, from_disk: bool) -> Rollout:
        """Store a rollout. Raises AliasCommandError."""
        data = self.read()
        if not from_disk:
            self._require_in_force(data)
        with _refusals():
            return start_rollout.start_rollout(self.files, plan, data, who=os_user())

    def abort_rollout(self, alias: str) -> tuple[Rollout, FileEdit]:
        """End a running rollout. Raises AliasCommandError."""
        before = self.read()
        for _ in range(ABORT_ATTEMPTS):
            rollout = self.rollouts().get(alias)
            if rollout is None or rollout.state != "running":
                raise AliasCommandError(f"{alias} has no running rollout")
            with _refusals():
                ended = rollout_state.end(self.files, rollout, "aborted", f"aborted by {os_user()}", time.time())
            if ended.state != "running":
                return ended, FileEdit(before, self.read())
        raise AliasCommandError(f"the rollout of {alias} kept changing while this command tried to end it; try again")

    def acknowledge_rollback(self, alias: str) -> Rollout:
        """Note that the operator knows of the rollback. Raises AliasCommandError."""
        with _refusals():
            acknowledged = rollout_state.acknowledge(self.files, alias, time.time())
        if acknowledged is None:
            raise AliasCommandError(f"{alias} has no rollback that is not acknowledged")
        return acknowledged

    def audit_lines(self, limit: int) -> Iterable[Mapping[str, Any]]:
        """From the log. Raises AliasCommandError."""
        with _refusals():
            return [line.fields for line in islice(self.files.audit_log.newest_first(), limit)][::-1]

    def verify_audit_log(self) -> Verification:
        """Read the whole log, and compare its end with what the gateway knows. Raises AliasCommandError."""
        with _refusals():
            return self.files.audit_log.verify(known=self._last_line())


@contextmanager
def _refusals() -> Iterator[None]:
    """Everything that prevents an edit, as AliasCommandError."""
    try:
        yield
    except _REASONS as error:
        raise AliasCommandError(str(error)) from error
    except KeyError as error:
        raise AliasCommandError(f"there is no alias '{error.args[0]}'") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise AliasCommandError(f"{where}{error.strerror or error}") from error


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
