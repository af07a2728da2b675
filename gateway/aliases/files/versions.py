"""What `models.toml` said when, as trail and history tell it together; and what a rollback goes back to. Blocking.

A version's number is that of its line in the audit trail. Generations begin again with every gateway, and hashes are
hard to say on the phone; the numbers of lines are neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from catalogue.load import parse_toml
from catalogue.models import FaultyFile
from gateway.aliases.auditor import by_file
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.paths import Records

__all__ = ["NoVersion", "Version", "earlier", "find", "versions"]

_SHORTEST_HASH = 6


class NoVersion(Exception):
    """There is nothing to go back to; the text says why."""


@dataclass(frozen=True, slots=True)
class Version:
    """One coming into force of a file. `generation` is what its gateway called it."""

    number: int
    time: str
    who: str
    generation: int
    digest: str
    summary: str
    aliases: frozenset[str]
    is_kept: bool


def versions(records: Records, alias: str | None = None) -> Iterator[Version]:
    """Newest first: those in which the file changed, or, of one alias, in which that did. Raises OSError."""
    lines = list(by_file(records.trail.newest_first()))
    for position, line in enumerate(lines, start=1):
        said, older = line.said, lines[position] if position < len(lines) else None
        if older is not None and older.said["file"] == said["file"]:
            continue  # a gateway was started, and that was all
        version = _version(said, records)
        is_first = older is None and alias is not None and _is_in(records, version.digest, alias)
        if alias is None or alias in version.aliases or is_first:
            yield version


def _version(said: dict[str, Any], records: Records) -> Version:
    return Version(
        said["seq"],
        said["time"],
        said["who"],
        said["generation"],
        said["file"],
        said.get("summary") or "",
        _aliases_in(said.get("diff") or {}),
        records.history.get(said["file"]) is not None,
    )


def _aliases_in(changes: dict[str, Any]) -> frozenset[str]:
    kinds = ("aliases_added", "aliases_removed", "aliases_changed", "aliases_warming")
    return frozenset(entry["name"] for kind in kinds for entry in changes.get(kind) or ())


def _is_in(records: Records, digest: str, alias: str) -> bool:
    data = records.history.get(digest)
    return data is not None and _said_of(data, alias) is not None


def find(records: Records, which: str) -> bytes:
    """The file of a version, by its number or by the beginning of its hash.

    Raises:
        NoVersion: There is none, or it is not kept any more.
    """
    for version in versions(records):
        if which in {str(version.number), f"#{version.number}"} or (
            len(which) >= _SHORTEST_HASH and version.digest.startswith(which)
        ):
            return _kept(records, version.digest, f"version {version.number}")
    raise NoVersion(f"there is no version {which}; `cortex alias history` lists them")


def earlier(records: Records, now: bytes, alias: str | None = None) -> bytes:
    """What a rollback goes back to: the file before this one, or the last one in which the alias was otherwise.

    Raises:
        NoVersion: Nobody knows, or it is not kept any more.
    """
    if alias is None:
        return _kept(records, _before(records, digest_of(now)), "the file before this one")
    said = _said_of(now, alias)
    for digest in _digests_back_from(records, digest_of(now)):
        data = records.history.get(digest)
        if data is not None and _said_of(data, alias) != said:
            return data
    raise NoVersion(f"no version that is kept says anything else of '{alias}'; `cortex alias history` lists them")


def _before(records: Records, digest: str) -> str:
    """The hash of the file that this one took the place of."""
    for before in _digests_back_from(records, digest):
        return before
    raise NoVersion("nothing is known of an earlier file: no gateway has written an audit trail yet")


def _digests_back_from(records: Records, digest: str) -> Iterator[str]:
    """Whose place it took, then every file that was in force, newest first."""
    announced = records.history.announced(digest)
    if announced is not None:  # so new that no gateway has written of it
        yield announced.before
    for line in records.trail.newest_first():
        if line.said.get("file") == digest and line.said.get("before") is not None:
            yield line.said["before"]
            break
    for version in versions(records):
        if version.digest != digest:
            yield version.digest


def _kept(records: Records, digest: str, what: str) -> bytes:
    data = records.history.get(digest)
    if data is None:
        raise NoVersion(f"{what} is not kept: {records.history.folder} has no {digest[:12]}…")
    return data


def _said_of(data: bytes, alias: str) -> object:
    try:
        _, document = parse_toml(data, path="models.toml")
    except FaultyFile:
        return None
    aliases = document.get("aliases")
    return aliases.get(alias) if isinstance(aliases, dict) else None
