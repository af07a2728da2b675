"""`cortex` as people start it: a process of its own, its output read line by line."""

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


# Kernels choose from 32768 on (Linux) or 16000 to 65535 (gVisor), for those who listen and for those who connect.
OUR_PORTS = range(12_000, 16_000)


def a_port_of_our_own() -> int:
    """One that nobody gets who does not ask for it by number: still free when a process comes back to it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # each has its own eighth
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
    """A module of ours as a process, its output in pipes; killed at the end should it still be there."""
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
    """A simulated neuron as a program of its own: the process, and its URL."""
    async with a_program("neuron.simulated", *options) as process:
        said = b""
        with trio.fail_after(SAFETY_NET_S):
            while not said.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                assert piece, "it ended before it said where it listens"
                said += piece
        yield process, said.decode().strip()


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
