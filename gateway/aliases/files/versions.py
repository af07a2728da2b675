"""The versions of `models.toml`, from audit log and history, and which one a rollback restores. Blocking.

A version's number is the number of its line in the audit log: generations start again with every gateway process, and
hashes are hard to read out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from catalogue.toml.faults import FaultyFile
from catalogue.toml.parse import parse_toml
from gateway.aliases.files.audit_log import AuditLine
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.file_history import digest_of

__all__ = [
    "Version",
    "VersionNotFound",
    "in_force_lines",
    "list_versions",
    "newest_digest",
    "read_previous",
    "read_version",
]

_SHORTEST_HASH = 4  # characters of a hash that may name a version
_FILE_EVENTS = frozenset({"started", "applied"})  # audit events of a file that came into force


class VersionNotFound(Exception):
    """There is no version to go back to; the text says why."""


@dataclass(frozen=True, slots=True)
class Version:
    """One file that came into force. `generation` is the number its gateway process gave it."""

    number: int
    time: str
    who: str
    generation: int
    digest: str
    summary: str
    aliases: frozenset[str]
    is_kept: bool


def in_force_lines(lines: Iterable[AuditLine]) -> Iterator[AuditLine]:
    """Those lines that record a file coming into force."""
    return (line for line in lines if line.fields.get("event") in _FILE_EVENTS)


def list_versions(files: CatalogueFiles, alias: str | None = None) -> Iterator[Version]:
    """The versions, newest first; of one alias, only those that changed it. Raises OSError."""
    lines = list(in_force_lines(files.audit_log.newest_first()))
    for position, line in enumerate(lines, start=1):
        fields, older = line.fields, lines[position] if position < len(lines) else None
        if older is not None and older.fields["file"] == fields["file"]:
            continue  # a gateway started with the file that was in force before
        version = _version(fields, files)
        is_first = older is None and alias is not None and _is_in(files, version.digest, alias)
        if alias is None or alias in version.aliases or is_first:
            yield version


def _version(fields: dict[str, Any], files: CatalogueFiles) -> Version:
    return Version(
        fields["seq"],
        fields["time"],
        fields["who"],
        fields["generation"],
        fields["file"],
        fields.get("summary") or "",
        _aliases_in(fields.get("diff") or {}),
        files.history.get(fields["file"]) is not None,
    )


def _aliases_in(changes: dict[str, Any]) -> frozenset[str]:
    kinds = ("aliases_added", "aliases_removed", "aliases_changed", "aliases_warming")
    return frozenset(entry["name"] for kind in kinds for entry in changes.get(kind) or ())


def _is_in(files: CatalogueFiles, digest: str, alias: str) -> bool:
    data = files.history.get(digest)
    return data is not None and _entry_of(data, alias) is not None


def newest_digest(files: CatalogueFiles) -> str | None:
    """The hash of the newest version, which is in force as far as the files tell; None if no version is known.

    A file that cortex has put in place while no gateway was running is newer than every line of the audit log.
    """
    announced = files.history.newest_announcement()
    newest = next(list_versions(files), None)
    if announced is not None and (newest is None or announced[1].at > _unix_seconds(newest.time)):
        return announced[0]
    return None if newest is None else newest.digest


def _unix_seconds(time: str) -> float:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0


def read_version(files: CatalogueFiles, which: str) -> bytes:
    """The file of a version, named by its number or by the first characters of its hash, at least four.

    Raises:
        VersionNotFound: There is no such version, or several, or its file is not in the history any more.
    """
    found = list(list_versions(files))
    named = [version for version in found if which in {str(version.number), f"#{version.number}"}]
    if not named and len(which) >= _SHORTEST_HASH:
        named = [version for version in found if version.digest.startswith(which.lower())]
    if not named:
        raise VersionNotFound(f"there is no version {which}; `cortex alias history` lists them")
    if len({version.digest for version in named}) > 1:
        numbers = ", ".join(str(version.number) for version in reversed(named))
        raise VersionNotFound(f"{which} is the beginning of several hashes: those of versions {numbers}")
    return _read_kept(files, named[0].digest, f"version {named[0].number}")


def read_previous(files: CatalogueFiles, now: bytes, alias: str | None = None) -> bytes:
    """The file that a rollback restores: the one before `now`, or the last one in which the alias was different.

    Raises:
        VersionNotFound: No earlier file is known, or it is not in the history any more.
    """
    if alias is None:
        return _read_kept(files, _digest_before(files, digest_of(now)), "the file before this one")
    entry = _entry_of(now, alias)
    for digest in _earlier_digests(files, digest_of(now)):
        data = files.history.get(digest)
        if data is not None and _entry_of(data, alias) != entry:
            return data
    raise VersionNotFound(f"'{alias}' is the same in every version that is kept; `cortex alias history` lists them")


def _digest_before(files: CatalogueFiles, digest: str) -> str:
    for before in _earlier_digests(files, digest):
        return before
    if next(list_versions(files), None) is not None:
        raise VersionNotFound("this is the first version of the file: no earlier one is known")
    raise VersionNotFound("no earlier file is known: no gateway has written an audit log yet")


def _earlier_digests(files: CatalogueFiles, digest: str) -> Iterator[str]:
    """The file that this one replaced, then every other file that was in force, newest first."""
    announcement = files.history.announcement_of(digest)
    if announcement is not None:  # no gateway has recorded this file yet
        yield announcement.before
    for line in files.audit_log.newest_first():
        if line.fields.get("file") == digest and line.fields.get("before") is not None:
            yield line.fields["before"]
            break
    for version in list_versions(files):
        if version.digest != digest:
            yield version.digest


def _read_kept(files: CatalogueFiles, digest: str, description: str) -> bytes:
    data = files.history.get(digest)
    if data is None:
        raise VersionNotFound(f"{description} is not kept: {files.history.folder} has no {digest[:12]}…")
    return data


def _entry_of(data: bytes, alias: str) -> object:
    """What the file has under `aliases.<alias>`; None if it has nothing there or is not TOML."""
    try:
        _, document = parse_toml(data, path="models.toml")
    except FaultyFile:
        return None
    aliases = document.get("aliases")
    return aliases.get(alias) if isinstance(aliases, dict) else None
