"""`cortex` as an operator starts it: a process of its own, whose output tests read line by line."""

from __future__ import annotations

import os
import pty
import random
import select
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio
from fakes.patience import SAFETY_NET_S

END_S = 60  # to start and to end, even on a busy machine


def environment(**added: str) -> dict[str, str]:
    """The environment without any `CORTEX_` variable of the person who runs the tests."""
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
    """A process that runs until it is stopped."""

    popen: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)

    def read_until(self, text: str) -> str:
        """All lines of stdout so far, up to the first that contains `text`."""
        for line in self.popen.stdout:
            self.output.append(line)
            if text in line:
                return "".join(self.output)
        raise AssertionError(f"ended without printing {text!r}: {''.join(self.output)} {self.popen.stderr.read()}")

    def log_line(self, text: str) -> str:
        """The next line of its log (stderr) that contains `text`."""
        for line in self.popen.stderr:
            if text in line:
                return line
        raise AssertionError(f"ended without logging {text!r}")

    def interrupt(self) -> None:
        self.popen.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """Exit code, and the rest of stdout and stderr."""
        out, err = self.popen.communicate(timeout=END_S)
        return self.popen.returncode, out, err


@contextmanager
def running_cortex(*arguments: object, cwd: object = None, open_files: int | None = None, **env: str):
    """A `cortex` in the background; killed at the end if it still runs. `open_files` is a limit for `ulimit -n`."""
    command = [sys.executable, "-m", "gateway.cli", *map(str, arguments)]
    if open_files is not None:
        command = ["bash", "-c", f'ulimit -n {open_files}; exec "$@"', "bash", *command]
    with _running(command, cwd=cwd, **env) as process:
        yield process


@contextmanager
def running_program(program: str, *arguments: object):
    """The same for a program of the test: a gateway with a deliberate fault."""
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


# Kernels choose from 32768 on (Linux) or 16000 to 65535 (gVisor), for listeners and for clients.
OUR_PORTS = range(12_000, 16_000)


def a_port_of_our_own() -> int:
    """A port that the kernel gives to no other process: still free when a process listens on it again."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # each worker has its own eighth
    while True:
        port = random.SystemRandom().choice(OUR_PORTS[worker % 8 :: 8])
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@asynccontextmanager
async def a_program(*command: object, **env: str):
    """A module of this repository as a process, its output in pipes; killed at the end if it still runs."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONUNBUFFERED="1", **env),
    )
    try:
        async with process.stdout, process.stderr:
            yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):  # ends at once: it was killed
            await process.wait()


@asynccontextmanager
async def a_neuron(*options: object):
    """A simulated neuron as a process of its own: the process, and its URL."""
    async with a_program("neuron.simulated", *options) as process:
        output = b""
        with trio.fail_after(SAFETY_NET_S):
            while not output.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                assert piece, "it ended before it printed its address"
                output += piece
        yield process, output.decode().strip()


@dataclass
class TerminalProcess:
    """A process whose standard streams are a terminal."""

    popen: subprocess.Popen[bytes]
    terminal: int
    screen: str = ""

    def read_until(self, text: str, *, times: int) -> None:
        """Wait until it has printed `text` this many times since its start."""
        while self.screen.count(text) < times:
            if not select.select([self.terminal], [], [], END_S)[0]:
                raise AssertionError(f"did not print {text!r} {times} times: {self.screen}")
            self.screen += os.read(self.terminal, 65536).decode("utf-8", "replace")


@contextmanager
def on_a_terminal(*arguments: object, **env: str):
    """A `cortex` on a terminal of 24 x 120; killed at the end if it still runs."""
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
                yield TerminalProcess(popen, ours)
            finally:
                if popen.poll() is None:
                    popen.kill()
    finally:
        os.close(ours)
