"""`cortex` as people start it: a process of its own, its output read line by line."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field

END_S = 60  # to start and to end; a busy machine is no failure


def environment(**added: str) -> dict[str, str]:
    """Ours without any `CORTEX_` of whoever runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("CORTEX_")}
    return inherited | added


def cortex(*arguments: object, cwd: object = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    command = [sys.executable, "-m", "gateway.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=END_S, check=False
    )


@dataclass
class Process:
    """One that goes on until told otherwise."""

    popen: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    def read_until(self, text: str) -> str:
        """All lines of stdout so far, up to and with the first that has `text`."""
        for line in self.popen.stdout:
            self.said.append(line)
            if text in line:
                return "".join(self.said)
        raise AssertionError(f"ended without saying {text!r}: {''.join(self.said)} {self.popen.stderr.read()}")

    def log_line(self, text: str) -> str:
        """The next line of its log (stderr) that has `text`."""
        for line in self.popen.stderr:
            if text in line:
                return line
        raise AssertionError(f"ended without logging {text!r}")

    def interrupt(self) -> None:
        self.popen.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """Exit code, and what was still said on stdout and stderr."""
        out, err = self.popen.communicate(timeout=END_S)
        return self.popen.returncode, out, err


@contextmanager
def running_cortex(*arguments: object, cwd: object = None, open_files: int | None = None, **env: str):
    """A `cortex` in the background; killed at the end should it still be there. `open_files` as `ulimit -n` has it."""
    command = [sys.executable, "-m", "gateway.cli", *map(str, arguments)]
    if open_files is not None:
        command = ["bash", "-c", f'ulimit -n {open_files}; exec "$@"', "bash", *command]
    with _running(command, cwd=cwd, **env) as process:
        yield process


@contextmanager
def running_program(program: str, *arguments: object):
    """The same for a program of a test's own making: a gateway with something broken in it."""
    with _running([sys.executable, "-c", program, *map(str, arguments)]) as process:
        yield process


@contextmanager
def _running(command: list[str], *, cwd: object = None, **env: str):
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(PYTHONUNBUFFERED="1", **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as popen:
        try:
            yield Process(popen)
        finally:
            if popen.poll() is None:
                popen.kill()


@dataclass
class Watched:
    """One that thinks it is talking to a person."""

    popen: subprocess.Popen[bytes]
    terminal: int
    seen: str = ""

    def read_until(self, text: str, *, times: int) -> None:
        """Wait until it has said this so often, from its start on."""
        while self.seen.count(text) < times:
            if not select.select([self.terminal], [], [], END_S)[0]:
                raise AssertionError(f"did not say {text!r} {times} times: {self.seen}")
            self.seen += os.read(self.terminal, 65536).decode("utf-8", "replace")


@contextmanager
def on_a_terminal(*arguments: object, **env: str):
    """A `cortex` on a terminal of 24 x 120; killed at the end should it still be there."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(TERM="xterm", COLUMNS="120", LINES="24", **env),
            start_new_session=True,
        ) as popen:
            os.close(theirs)
            try:
                yield Watched(popen, ours)
            finally:
                if popen.poll() is None:
                    popen.kill()
    finally:
        os.close(ours)
