"""A gateway and a neuron as processes, for scripts: free ports, and `cortex` commands in the background."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

START_S = 60.0


def end_on_sigterm() -> None:
    """SIGTERM ends the script as Ctrl-C does, so that its daemons end too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def free_port(wanted: int) -> int:
    """This port of loopback, or another one if it is in use."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise RuntimeError("no free port")


@contextmanager
def running(folder: Path, *arguments: str, **env: str) -> Iterator[None]:
    """A `cortex` command in the background, its log in a file of this folder."""
    with (folder / f"{arguments[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            [cortex(), *arguments], cwd=folder, stderr=log, start_new_session=True, env={**os.environ, **env}
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def cortex() -> str:
    """The command of this Python's environment."""
    return str(Path(sys.executable).with_name("cortex"))


def wait_for(url: str) -> None:
    """Return when the URL answers 200; end the script if it does not."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"nothing answers at {url}; see the logs")
