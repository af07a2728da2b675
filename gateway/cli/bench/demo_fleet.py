"""`cortex demo` in a process of its own, for a bench without GPUs. Blocking."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from catalogue.toml.faults import FaultyFile
from gateway.cli.api_client import GatewayAddress
from gateway.cli.bench.run import UnavailableError
from gateway.config.load import load

__all__ = ["DEMO_COLD", "demo_fleet"]

_KEY = re.compile(r"ctx_[0-9A-Za-z]+_[0-9A-Za-z]+")  # which the demo prints
START_S, STOP_S = 30.0, 20.0
DEMO_COLD = ("Qwen/Qwen3-14B",)  # not loaded on any of its neurons


@contextlib.contextmanager
def demo_fleet(speed: float) -> Iterator[GatewayAddress]:
    """A gateway with three simulated neurons, `speed` times as fast as real ones. Raises UnavailableError."""
    with tempfile.TemporaryDirectory(prefix="cortex-bench-") as folder:
        command = [sys.executable, "-m", "gateway.cli", "demo", "--port", "0", "--dir", folder, "--speed", str(speed)]
        env = {name: value for name, value in os.environ.items() if not name.upper().startswith("CORTEX_")}
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own program
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=env
            )
        try:
            yield _await_demo(process, Path(folder))
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_demo(process: subprocess.Popen[bytes], folder: Path) -> GatewayAddress:
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(FaultyFile, httpx.HTTPError):  # not written yet, not listening yet
            address = GatewayAddress.from_settings(load(folder / "cortex.toml", {}).settings)
            key = _KEY.search((folder / "log").read_text(errors="replace"))
            if key is not None and httpx.get(f"{address.api}/ready", trust_env=False).is_success:
                return dataclasses.replace(address, token=key[0])
        time.sleep(0.05)
    raise UnavailableError(f"cortex demo did not start: {(folder / 'log').read_text(errors='replace')}")
