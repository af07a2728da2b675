"""Host memory of processes, and their names. Reads proc(5); blocking, but microseconds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["process_name", "resident_mb"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_mb(pids: Iterable[int]) -> int:
    """The resident memory of these processes together, in MiB. Those that have ended count nothing."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return pages * _PAGE_BYTES // 2**20


def process_name(pid: int) -> str:
    """The name of a process, for a message; "unknown" if it is in another container or has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "unknown"
