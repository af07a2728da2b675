"""Host memory of processes, and their names. Reads proc(5); blocking, but microseconds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from neuron.agent.devices.devices import DeviceProcess
from neuron.agent.process.launcher import descendants

__all__ = ["ForeignProcess", "foreign_processes", "process_name", "resident_mb"]

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


class ForeignProcess(NamedTuple):
    """A process that has device memory and is none of the neuron's engines."""

    pid: int
    name: str
    memory_mb: int


def foreign_processes(
    processes: Mapping[int, Iterable[DeviceProcess]], launchers: Iterable[int]
) -> dict[int, tuple[ForeignProcess, ...]]:
    """Of the processes that a driver lists by device, those that are not below one of these launchers."""
    own = {pid for launcher in launchers for pid in descendants(launcher)}
    return {
        index: tuple(
            ForeignProcess(each.pid, process_name(each.pid), each.memory_mb) for each in listed if each.pid not in own
        )
        for index, listed in processes.items()
    }
