"""A small process between the neuron and one engine: it makes sure that nothing of the engine outlives the neuron.

    neuron --pipe--> launcher (leads the process group, is the subreaper) --> engine --> workers

Run by path (`python -I -S launcher.py COMMAND …`) and uses the standard library only, so that it starts in about 20 ms.
The neuron holds the write end of the pipe that is the launcher's standard input:

- a `T` on the pipe asks every process of the engine to terminate (SIGTERM);
- a `K` kills them (SIGKILL);
- the end of the pipe, also after `kill -9` of the neuron, means SIGTERM and, after `GRACE_S`, SIGKILL.

`PR_SET_PDEATHSIG` on the engine alone is not enough: it fires when the *thread* that forked ends, which under
`trio.run_process` is a worker thread that ends after 10 s of idleness, and it does not reach an engine's own workers.
Here it serves as a second line of defence: the launcher has one thread, and if the launcher is killed, the engine's
first process is killed with it.

The launcher exits with the engine's exit status, or with 128 + N if signal N ended the engine.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE_S = 3.0
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1  # prctl(2)
_PR_SET_CHILD_SUBREAPER = 36
_COULD_NOT_START = 127  # as shells do

_prctl = ctypes.CDLL(None, use_errno=True).prctl


def main(command: list[str]) -> int:
    """Run `command` until it ends; return its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe decides when the engine ends
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    engine = _start(command)
    if engine is None:
        return _COULD_NOT_START
    status = _supervise(engine, wakeup)
    _end_all(grace_s=0.5)  # workers that the engine left behind
    return status


def _start(command: list[str]) -> int | None:
    engine = os.fork()
    if engine:
        return engine
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.execvp(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
    os._exit(_COULD_NOT_START)


def _supervise(engine: int, wakeup: int) -> int:
    """Wait for the engine's end, and do what the pipe asks meanwhile; return the engine's exit status."""
    watched = [0, wakeup]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if wakeup in ready:
            _drain(wakeup)
        status = _reap(engine)
        if status is not None:
            return status
        if 0 in ready:
            asked = os.read(0, 64)
            if b"K" in asked:
                _signal_all(signal.SIGKILL)
            elif b"T" in asked:
                _signal_all(signal.SIGTERM)
            elif not asked:  # the neuron is gone
                _end_all(GRACE_S)
                return 128 + signal.SIGKILL


def _drain(wakeup: int) -> None:
    with suppress(BlockingIOError):
        while os.read(wakeup, 512):
            pass


def _reap(engine: int) -> int | None:
    """Collect every child that ended; the engine's exit status if it is one of them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == engine:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code


def _end_all(grace_s: float) -> None:
    """SIGTERM to every descendant, SIGKILL after `grace_s`; returns when none is left."""
    _signal_all(signal.SIGTERM)
    kill_at = time.monotonic() + grace_s
    while descendants(os.getpid()):
        _reap(0)
        if time.monotonic() >= kill_at:
            _signal_all(signal.SIGKILL)
        time.sleep(_POLL_S)
    _reap(0)


def _signal_all(number: int) -> None:
    for pid in descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def descendants(of: int) -> list[int]:
    """Every living process below a process, whatever group or session it has moved to (proc(5), fields 3 and 4)."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if state != b"Z":
            children.setdefault(int(parent), []).append(int(folder.name))
    found, waiting = [], [of]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
