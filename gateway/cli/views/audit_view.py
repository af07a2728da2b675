"""What `cortex audit` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.aliases.files.audit_log import Verification
from gateway.cli.terminal import HASH_DIGITS, console, entry

__all__ = ["print_lines", "verification_lines"]


def verification_lines(path: str, verification: Verification) -> Iterator[str]:
    """What there is to say of an intact log."""
    if not verification.lines:
        yield f"{path}: the audit log is empty"
        return
    first, last = verification.first, verification.last
    if first == last:
        yield f"{path}: 1 line, number {first}, is intact"
    else:
        yield f"{path}: {verification.lines} lines, numbers {first} to {last}, are intact"
    if first > 1:
        yield f"lines before number {first} were in rotated files that have been deleted"
    if verification.torn_bytes:
        yield (
            f"the file ends with an unfinished line ({verification.torn_bytes} bytes), left by a crash; "
            "the next line replaces it"
        )
    yield f"head {verification.head}"


def print_lines(path: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Print each line of the log with its details."""
    out = console()
    for fields in lines:
        time = str(fields.get("time", "")).replace("T", " ")
        head = f"{fields['seq']}  {time}  {fields.get('who')}  {fields.get('event')}: {fields.get('outcome')}"
        out.print(entry(head, *_details(fields)), soft_wrap=True)
    if not lines:
        out.print(f"{path}: the audit log is empty", soft_wrap=True)


def _details(fields: Mapping[str, Any]) -> Iterator[str]:
    if fields.get("file") is not None:
        yield f"generation {fields.get('generation')}, file {str(fields.get('file'))[:HASH_DIGITS]}"
    yield from str(fields.get("summary") or "").split("; ")
    if command := fields.get("command"):
        yield f"command: {command}"
    if lost := fields.get("lost"):
        yield f"lines lost before this one, because they could not be written: {lost}"
    if torn_bytes := fields.get("torn_bytes"):
        yield f"replaces an unfinished line ({torn_bytes} bytes)"
