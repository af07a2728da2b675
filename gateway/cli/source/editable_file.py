"""`EditableFile`: what commands can do with a `models.toml` and its records, wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from gateway.aliases.files.audit_log import Verification
from gateway.aliases.files.locked_edit import FileEdit
from gateway.aliases.files.rollout_state import Rollout
from gateway.aliases.files.start_rollout import RolloutPlan
from gateway.aliases.files.versions import Version

__all__ = ["AliasCommandError", "EditableFile", "NoAnswer"]


class AliasCommandError(Exception):
    """The command cannot be carried out, and nothing was written. The text has a line for each reason."""


class NoAnswer(AliasCommandError):
    """The gateway cannot be reached."""


class EditableFile(Protocol):
    """One `models.toml`, its history, audit log and rollouts. Every method raises AliasCommandError.

    Attributes:
        name: The file, for messages.
        audit_name: Its audit log, for messages.
    """

    @property
    def name(self) -> str:
        """The file, for messages."""
        ...

    @property
    def audit_name(self) -> str:
        """Its audit log, for messages."""
        ...

    def read(self) -> bytes:
        """The file on disk."""
        ...

    def is_current(self, data: bytes) -> bool:
        """Whether the file on disk has this content."""
        ...

    def edit(self, edit: Callable[[bytes], bytes], command: str, *, from_disk: bool) -> FileEdit:
        """Replace the content. Refuses if the file on disk is not the file in force, unless `from_disk`."""
        ...

    def roll_back(self, alias: str | None, version: str | None, command: str) -> FileEdit:
        """Restore the file or one alias, whatever is there now."""
        ...

    def content_in_force(self, digest: str | None = None) -> bytes | None:
        """The file in force, which has this hash if the caller knows it; None if it cannot be had."""
        ...

    def versions(self, alias: str | None, limit: int) -> list[Version]:
        """The versions, newest first; of one alias, only those that changed it."""
        ...

    def rollouts(self) -> dict[str, Rollout]:
        """The last rollout of each alias, running or ended."""
        ...

    def start_rollout(self, plan: RolloutPlan, *, from_disk: bool) -> Rollout:
        """Store a rollout for a gateway to begin. Refuses as `edit` does."""
        ...

    def abort_rollout(self, alias: str) -> tuple[Rollout, FileEdit]:
        """End a running rollout and restore the alias; the file before and after it."""
        ...

    def acknowledge_rollback(self, alias: str) -> Rollout:
        """Note that the operator knows of the alias's rollback."""
        ...

    def audit_lines(self, limit: int) -> Iterable[Mapping[str, Any]]:
        """The newest lines of the audit log, oldest first."""
        ...

    def verify_audit_log(self) -> Verification:
        """Whether the audit log is intact."""
        ...
