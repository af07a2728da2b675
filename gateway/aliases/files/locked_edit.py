"""One edit of `models.toml`, from the lock to the new file on disk. Blocking.

Shells, rollouts and the admin API share it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path

from catalogue.load import parse
from catalogue.models import Catalogue
from catalogue.toml.faults import Fault, FaultyFile
from catalogue.toml.parse import is_blank
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.file_history import Announcement, digest_of
from gateway.files.atomic_write import CannotSave, create, replace
from gateway.files.config_file import read_config_file
from gateway.files.file_lock import locked

__all__ = ["FileEdit", "NotInForce", "check", "edit_models", "edit_models_locked", "require_in_force", "restore_models"]

Edit = Callable[[bytes], bytes]
Restoration = Callable[[bytes | None], bytes]


class NotInForce(Exception):
    """The file on disk is not the file in force, so an edit would bring more into force than itself."""


@dataclass(frozen=True, slots=True)
class FileEdit:
    """The file before and after an edit; false if they are equal.

    `not_kept` says why the history does not have both files, so that there is no way back; None if it has. `moved_to`
    is where a restoration has put what could not be kept in the history: not a regular file, or too large.
    """

    before: bytes
    after: bytes
    not_kept: str | None = None
    moved_to: Path | None = None

    @property
    def digest(self) -> str:
        """The hash of the file after the edit."""
        return digest_of(self.after)

    def __bool__(self) -> bool:
        return self.before != self.after


def edit_models(
    files: CatalogueFiles,
    edit: Edit,
    *,
    who: str,
    command: str,
    check_before: Callable[[bytes], object] = lambda _: None,
) -> FileEdit:
    """Take the edit lock, and edit `models.toml`.

    Args:
        files: The file, and where its earlier contents are kept.
        edit: Turns the old content into the new. May raise.
        who: The author, for the audit log.
        command: The command that would do it again, for the audit log.
        check_before: Called with the old content. May raise to prevent the edit.

    Raises:
        CannotSave: The file could not be read or written, or changed meanwhile.
        FaultyFile: The new content is faulty. As in every other case, the file has its old content.
    """

    def checked(before: bytes) -> bytes:
        check_before(before)
        return edit(before)

    with locked(files.models_path):
        return edit_models_locked(files, checked, who=who, command=command)


def edit_models_locked(files: CatalogueFiles, edit: Edit, *, who: str, command: str) -> FileEdit:
    """Do the same as `edit_models` for a caller that holds the lock."""
    before = _read(files)
    after = edit(before)
    if after == before:
        return FileEdit(before, after)
    check(after, path=str(files.models_path))
    return _put(files, before, after, who=who, command=command)


def _put(files: CatalogueFiles, before: bytes | None, after: bytes, *, who: str, command: str) -> FileEdit:
    """Keep both contents in the history, announce the new one, and write it. `before` is None if there is no file."""
    announcement = Announcement(who=who, command=command, before=digest_of(before or b""), at=time.time())
    not_kept = _keep(files, before, after, announcement)
    try:
        if before is None:
            create(files.models_path, after)
        else:
            replace(files.models_path, after, expected=before)
    except CannotSave:
        files.history.remove_announcement(digest_of(after))
        raise
    return FileEdit(before or b"", after, not_kept)


def require_in_force(files: CatalogueFiles, data: bytes, in_force: str | None) -> None:
    """Check that an edit of this content brings only itself into force.

    Args:
        files: Where the content is from. A file that cortex itself has just put in place counts as in force.
        data: The content on disk.
        in_force: The hash of the file in force, or None if that is unknown.

    Raises:
        NotInForce: The content is another, or empty.
    """
    if is_blank(data):
        raise NotInForce(f"{files.models_path} is empty")
    digest = digest_of(data)
    if in_force not in {None, digest} and files.history.announcement_of(digest) is None:
        raise NotInForce(
            f"{files.models_path} on disk is not the file in force: its hash begins with {digest[:10]}, "
            f"that in force with {in_force:.10}"
        )


def restore_models(files: CatalogueFiles, restoration: Restoration, *, who: str, command: str) -> FileEdit:
    """Take the edit lock, and put another content in the place of whatever is there.

    Args:
        files: As for `edit_models`; the file may be missing, empty, faulty, not a regular file, or too large.
        restoration: Returns the new content; its argument is the old content, or None if that cannot be read as a file.
            May raise.
        who: The author, for the audit log.
        command: The command that would do it again, for the audit log.

    Raises:
        CannotSave, FaultyFile: As for `edit_models`.
    """
    with locked(files.models_path):
        before, in_the_way = read_if_possible(files.models_path)
        after = restoration(before)
        if after == before:
            return FileEdit(after, after)
        check(after, path=str(files.models_path))
        moved_to = _move_away(files.models_path) if in_the_way else None
        done = _put(files, before, after, who=who, command=command)
        return replace_fields(done, moved_to=moved_to)


def read_if_possible(path: Path) -> tuple[bytes | None, bool]:
    """The content, or None; and whether something else than a file of a sensible size is in the way."""
    try:
        return read_config_file(path), False
    except FaultyFile as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | NotADirectoryError):
            raise CannotSave(str(error)) from error
        return None, cause is None


def _move_away(path: Path) -> Path:
    real = Path(os.path.realpath(path))
    aside = real.with_name(f"{real.name}.replaced-{int(time.time())}")
    try:
        real.rename(aside)
    except OSError as error:
        raise CannotSave(f"{real} cannot be renamed to {aside}: {error.strerror or error}") from error
    return aside


def check(data: bytes, *, path: str) -> Catalogue:
    """Parse the file as a gateway would. Raises FaultyFile."""
    if is_blank(data):
        hint = "to have no models on purpose, write `models = []`"
        raise FaultyFile((Fault(path, None, None, "the file would be empty", hint),))
    return parse(data, path=path, generation=0, loaded_at=0.0)


def _read(files: CatalogueFiles) -> bytes:
    try:
        return read_config_file(files.models_path)
    except FaultyFile as error:
        raise CannotSave(str(error)) from error


def _keep(files: CatalogueFiles, before: bytes | None, after: bytes, announcement: Announcement) -> str | None:
    """Store both files in the history; returns why that failed. An urgent swap must not fail on a full disk."""
    try:
        if before is not None:
            files.history.keep(before)
        files.history.announce(files.history.keep(after), announcement)
    except OSError as error:
        return f"{error.filename or files.history.folder}: {error.strerror or error}"
    return None
