"""Writing one audit entry: add what only the disk knows (author, last run), and append it. Blocking."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from catalogue.diff import diff
from catalogue.load import parse
from catalogue.toml.faults import FaultyFile
from gateway.aliases.files.audit_log import AuditHead
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.versions import in_force_lines

__all__ = ["write_entry"]

LINE_LIMIT_BYTES = 256 * 1024  # a longer line is written without diff and plan; the history has both files
SUMMARY_LIMIT = 2000  # characters of the summary in such a line
_ANNOUNCED_EVENTS = frozenset({"started", "applied", "recovered"})  # the file of these may have been announced


def write_entry(
    files: CatalogueFiles,
    fields: dict[str, Any],
    *,
    lost: int = 0,
    not_kept: str | None = None,
    known: AuditHead | None = None,
) -> dict[str, Any]:
    """Append one line and return its fields.

    Args:
        files: Where to write.
        fields: The line, without `seq`, `previous` and `hash`.
        lost: How many lines before this one were dropped; recorded if not 0.
        not_kept: Why the history does not have the file; recorded if not None.
        known: The last line that the caller has written.

    Raises:
        OSError: The line was not written.
    """
    fields = dict(fields)
    if not_kept is not None:
        fields["not_kept"] = not_kept
    if fields["event"] == "started":
        fields |= _since_last_run(files, fields["file"])
    if lost:
        fields["lost"] = lost
    digest = fields["file"]
    announcement = files.history.announcement_of(digest) if fields["event"] in _ANNOUNCED_EVENTS else None
    if announcement is not None:
        fields |= {"who": announcement.who, "command": announcement.command}
    line = files.audit_log.append(_shortened(fields), known=known or AuditHead())
    if announcement is not None:
        files.history.remove_announcement(digest)
    return line


def _since_last_run(files: CatalogueFiles, digest: str) -> dict[str, Any]:
    """Fields about an edit of the file while no gateway was running."""
    before = next((line.fields["file"] for line in in_force_lines(files.audit_log.newest_first())), None)
    if before in {None, digest}:
        return {"who": "cortex", "summary": "a gateway started"}
    fields = {"before": before, "summary": "a gateway started; the file was edited while none was running"}
    old, new = files.history.get(before), files.history.get(digest)
    if old is None or new is None:
        return fields
    with suppress(FaultyFile):
        changes = diff(*(parse(data, path="models.toml", generation=0, loaded_at=0) for data in (old, new)))
        return fields | {"summary": f"{fields['summary']}: {changes}", "diff": changes.as_json()}
    return fields


def _shortened(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields; of a very long line, without those that can be derived from the history."""
    if len(msgspec.json.encode(fields)) <= LINE_LIMIT_BYTES:
        return fields
    short = {key: value for key, value in fields.items() if key not in {"diff", "plan", "faults"}}
    return short | {"summary": str(fields.get("summary"))[:SUMMARY_LIMIT], "shortened": True}
