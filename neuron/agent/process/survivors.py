"""Engine processes that an earlier run of the neuron left over: find them and end them. Blocking.

The launcher ends its engine when the neuron dies. This is for what survives all the same: the launcher was killed too,
or a worker had moved to another parent. Two signs identify such a process: the state file has its process id and start
time, or its environment has the mark that the neuron gives to all engines of this state directory.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from neuron.agent.process.launcher import descendants

__all__ = ["MARK", "RUN_MARK", "StartedProcess", "end_survivors", "find_survivors", "kill_marked", "start_time"]

MARK = "CORTEX_NEURON_STATE"
"""The environment variable of engines that names the state directory of their neuron."""
RUN_MARK = "CORTEX_NEURON_RUN"
"""The environment variable of one run of one engine; its value is unique."""

GRACE_S = 3.0
KILL_S = 5.0
_POLL_S = 0.05


class StartedProcess(NamedTuple):
    """A process that the neuron has started, as the state file has it. The start time tells it from a later process
    with the same id; in clock ticks since boot (proc(5), field 22).
    """

    pid: int
    start_time: int


def start_time(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


def find_survivors(started: Iterable[StartedProcess], state_dir: Path) -> list[int]:
    """The process ids of engines, launchers and their descendants that an earlier run has left over."""
    found = {process.pid for process in started if start_time(process.pid) == process.start_time}
    found |= _marked(f"{MARK}={state_dir}")
    below = {child for pid in found for child in descendants(pid)}
    return sorted((found | below) - {os.getpid()})


def end_survivors(started: Iterable[StartedProcess], state_dir: Path) -> list[int]:
    """End them: SIGTERM, then SIGKILL. Returns their process ids."""
    started = list(started)
    found = alive = find_survivors(started, state_dir)
    _signal(alive, signal.SIGTERM)
    begin = time.monotonic()
    while alive and time.monotonic() < begin + GRACE_S + KILL_S:
        time.sleep(_POLL_S)
        alive = [pid for pid in alive if start_time(pid) is not None]
        if time.monotonic() > begin + GRACE_S:
            alive = sorted({*alive, *find_survivors(started, state_dir)})
            _signal(alive, signal.SIGKILL)
    return found


def kill_marked(run: str) -> None:
    """Kill what is left of one run of an engine whose launcher was killed, and so could not do that."""
    begin = time.monotonic()
    while (alive := _marked(f"{RUN_MARK}={run}")) and time.monotonic() < begin + KILL_S:
        _signal(alive, signal.SIGKILL)
        time.sleep(_POLL_S)


def _marked(mark: str) -> set[int]:
    """The living processes with this variable in their environment."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):  # another user's, or it has ended
                if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
    return {pid for pid in found if start_time(pid) is not None}


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
