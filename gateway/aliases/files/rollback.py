"""Going back to an earlier version of `models.toml`, whatever is in its place now. Blocking."""

from __future__ import annotations

from dataclasses import dataclass

from catalogue.load import parse
from catalogue.toml.faults import FaultyFile
from catalogue.toml.parse import is_blank
from gateway.aliases.files import toml_edit, versions
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.locked_edit import FileEdit, read_if_possible, restore_models
from gateway.aliases.files.versions import VersionNotFound

__all__ = ["roll_back", "rolled_back"]


def roll_back(
    files: CatalogueFiles,
    alias: str | None,
    version: str | None,
    *,
    in_force: str | None,
    in_force_content: bytes | None = None,
    who: str,
    command: str,
) -> FileEdit:
    """Restore the whole file, or one alias in it.

    Args:
        files: The file, which may be missing, empty or faulty, and its history.
        alias: The alias to restore; None for the whole file.
        version: A number, or the beginning of a hash. None for the version before the present one, or, if the file on
            disk is not in force, for the file in force.
        in_force: The hash of the file in force; None to go by the history.
        in_force_content: Its content, if the caller has it; else it is read from the history.
        who: The author, for the audit log.
        command: The command that would do it again, for the audit log.

    Raises:
        VersionNotFound: There is no such version.
        CannotSave, FaultyFile, CannotEdit: The file has its old content.
    """
    restoration = _Restoration(files, alias, version, in_force, in_force_content)
    return restore_models(files, restoration, who=who, command=command)


def rolled_back(
    files: CatalogueFiles,
    alias: str | None,
    version: str | None,
    *,
    in_force: str | None,
    in_force_content: bytes | None = None,
) -> bytes:
    """The content that `roll_back` would write now. Changes nothing.

    Raises:
        VersionNotFound: There is no such version.
        CannotSave, CannotEdit: `roll_back` would raise it.
    """
    now, _ = read_if_possible(files.models_path)
    return _Restoration(files, alias, version, in_force, in_force_content)(now)


@dataclass(frozen=True, slots=True)
class _Restoration:
    """The arguments of `roll_back`. A call returns the new content for the one on disk, None if that is unreadable."""

    files: CatalogueFiles
    alias: str | None
    version: str | None
    in_force: str | None
    in_force_content: bytes | None

    def __call__(self, now: bytes | None) -> bytes:
        files, alias = self.files, self.alias
        current = self.in_force or versions.newest_digest(files)
        kept = self.in_force_content if self.in_force_content is not None else files.history.get(current or "")
        base = now if now is not None and _is_catalogue(now) else kept
        if self.version is not None:
            earlier = versions.read_version(files, self.version)
        elif alias is None and current is not None and not _is_current(files, now, current):
            if kept is None:
                raise VersionNotFound(f"the file in force is not kept: {files.history.folder} has no {current[:12]}…")
            earlier = kept
        else:
            earlier = versions.read_previous(files, (now if alias is None else base) or b"", alias)
        if alias is None:
            return earlier
        if base is None:
            raise VersionNotFound("the file is faulty, and no other version of it is kept")
        return toml_edit.restore_alias(base, alias, earlier)


def _is_current(files: CatalogueFiles, now: bytes | None, in_force: str) -> bool:
    """Whether the file is in force, or about to be: cortex has put it in place."""
    if now is None:
        return False
    digest = digest_of(now)
    return digest == in_force or files.history.announcement_of(digest) is not None


def _is_catalogue(data: bytes) -> bool:
    try:
        parse(data, path="models.toml", generation=0, loaded_at=0.0)
    except FaultyFile:
        return False
    return not is_blank(data)
