"""One edit of `models.toml`, from the lock to the new file on disk; a shell and a rollout share it. Blocking."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from catalogue.load import parse
from catalogue.models import Catalogue
from catalogue.toml.faults import Fault, FaultyFile
from catalogue.toml.parse import is_blank
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.file_history import Announcement, digest_of
from gateway.files.atomic_write import CannotSave, replace
from gateway.files.file_lock import locked

__all__ = ["FileEdit", "check", "edit_models", "edit_models_locked"]

Edit = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class FileEdit:
    """The file before and after an edit; false if they are equal.

    `not_kept` says why the history does not have both files, so that there is no way back; None if it has.
    """

    before: bytes
    after: bytes
    not_kept: str | None = None

    @property
    def digest(self) -> str:
        """The hash of the file after the edit."""
        return digest_of(self.after)

    def __bool__(self) -> bool:
        return self.before != self.after


def edit_models(files: CatalogueFiles, edit: Edit, *, who: str, command: str) -> FileEdit:
    """Take the edit lock, and edit `models.toml`.

    Args:
        files: The file, and where its earlier contents are kept.
        edit: Turns the old content into the new. May raise.
        who: The author, for the audit log.
        command: The command that would do it again, for the audit log.

    Raises:
        CannotSave: The file could not be read or written, or changed meanwhile.
        FaultyFile: The new content is faulty. As in every other case, the file has its old content.
    """
    with locked(files.models_path):
        return edit_models_locked(files, edit, who=who, command=command)


def edit_models_locked(files: CatalogueFiles, edit: Edit, *, who: str, command: str) -> FileEdit:
    """Do the same as `edit_models` for a caller that holds the lock."""
    before = _read(files)
    after = edit(before)
    if after == before:
        return FileEdit(before, after)
    check(after, path=str(files.models_path))
    announcement = Announcement(who=who, command=command, before=digest_of(before), at=time.time())
    not_kept = _keep(files, before, after, announcement)
    try:
        replace(files.models_path, after, expected=before)
    except CannotSave:
        files.history.remove_announcement(digest_of(after))
        raise
    return FileEdit(before, after, not_kept)


def check(data: bytes, *, path: str) -> Catalogue:
    """Parse the file as a gateway would. Raises FaultyFile."""
    if is_blank(data):
        hint = "to have no models on purpose, write `models = []`"
        raise FaultyFile((Fault(path, None, None, "the file would be empty", hint),))
    return parse(data, path=path, generation=0, loaded_at=0.0)


def _read(files: CatalogueFiles) -> bytes:
    try:
        return files.models_path.read_bytes()
    except OSError as error:
        raise CannotSave(f"{files.models_path} cannot be read: {error.strerror or error}") from error


def _keep(files: CatalogueFiles, before: bytes, after: bytes, announcement: Announcement) -> str | None:
    """Store both files in the history; returns why that failed. An urgent swap must not fail on a full disk."""
    try:
        files.history.keep(before)
        files.history.announce(files.history.keep(after), announcement)
    except OSError as error:
        return f"{error.filename or files.history.folder}: {error.strerror or error}"
    return None
