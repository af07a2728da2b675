"""One change of `models.toml`, from lock to new file on disk: the same for a shell and for a rollout. Blocking."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from catalogue.load import parse, says_nothing
from catalogue.models import Catalogue, Fault, FaultyFile
from gateway.aliases.files.file_history import Announcement, digest_of
from gateway.aliases.files.paths import Records
from gateway.files.atomic import CannotSave, locked, replace

__all__ = ["Change", "change", "change_locked"]

Edit = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Change:
    """What was done: the file before and after. `not_kept` says why there is no way back, if there is none."""

    before: bytes
    after: bytes
    not_kept: str | None = None

    @property
    def digest(self) -> str:
        """Of the file as it is now."""
        return digest_of(self.after)

    def __bool__(self) -> bool:
        return self.before != self.after


def change(records: Records, edit: Edit, *, who: str, command: str) -> Change:
    """Change the file, once nobody else does.

    Args:
        records: Whose file, and where what it said before is kept.
        edit: From the file as it is to the file as it is to be. May raise.
        who: For the audit trail.
        command: What they would do to do it again.

    Raises:
        CannotSave: It could not be read or written, or somebody wrote it meanwhile.
        FaultyFile: What `edit` made of it is at fault. Then, as in every other case, the file is as it was.
    """
    with locked(records.models):
        return change_locked(records, edit, who=who, command=command)


def change_locked(records: Records, edit: Edit, *, who: str, command: str) -> Change:
    """The same for whoever holds the lock already."""
    before = _read(records)
    after = edit(before)
    if after == before:
        return Change(before, after)
    check(after, path=str(records.models))
    digest = digest_of(after)
    announcement = Announcement(who=who, command=command, before=digest_of(before), at=time.time())
    not_kept = _keep(records, before, after, announcement)
    try:
        replace(records.models, after, expected=before)
    except CannotSave:
        records.history.taken_up(digest)  # it is not coming
        raise
    return Change(before, after, not_kept)


def check(data: bytes, *, path: str) -> Catalogue:
    """What a gateway would make of the file. Raises FaultyFile."""
    if says_nothing(data):
        hint = "to have no models on purpose, write `models = []`"
        raise FaultyFile((Fault(path, None, None, "the file would say nothing", hint),))
    return parse(data, path=path, generation=0, loaded_at=0.0)


def _read(records: Records) -> bytes:
    try:
        return records.models.read_bytes()
    except OSError as error:
        raise CannotSave(f"{records.models} cannot be read: {error.strerror or error}") from error


def _keep(records: Records, before: bytes, after: bytes, announcement: Announcement) -> str | None:
    """Why not, or None. A swap in a bad hour must not fail because a history is full."""
    try:
        records.history.keep(before)
        records.history.announce(records.history.keep(after), announcement)
    except OSError as error:
        return f"{error.filename or records.history.folder}: {error.strerror or error}"
    return None
