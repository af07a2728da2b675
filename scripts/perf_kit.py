"""Starts and measures the processes of `perf.py` and `perf_dialects.py`: the bench kit's programs, and gateways.

Every process listens on a free port of loopback, so that several runs on one machine do not disturb each other's ports.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parent.parent
KIT = ROOT / "scripts" / "bench"
NOT_EPHEMERAL = range(20_000, 32_000)  # Linux gives connections without a port of their own 32768 to 60999
CHUNKS, INTERVAL_US = 100, 10_000  # of a stream of the upstream, unless the request says otherwise

CONFIG = """
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:{port}"
metrics_listen = "127.0.0.1:{metrics_port}"
[streaming]
pump = {pump}
[[neurons]]
name = "mock"
endpoint = "http://127.0.0.1:{mock_port}"
"""
MODELS = '[aliases]\n"helexa/small" = "Qwen/Qwen3-1.7B"\n'


@dataclass(frozen=True)
class Process:
    """One process under measurement."""

    name: str
    port: int
    pid: int


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nothing listens on. No client's connection takes one before its server listens."""
    ports: list[int] = []
    for port in random.sample(NOT_EPHEMERAL, len(NOT_EPHEMERAL)):
        with contextlib.suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            ports.append(port)
        if len(ports) == count:
            return ports
    raise SystemExit(f"no {count} ports between {NOT_EPHEMERAL.start} and {NOT_EPHEMERAL.stop} are free")


def raise_open_files() -> None:
    """For this process and all that it starts: some keep two sockets for each of 1,000 streams."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def need(*programs: str) -> None:
    """End with one line that says what to install, if a program is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} not found: install with `apt-get install {' '.join(missing)}`")


def build(home: Path, *names: str) -> None:
    """Compile programs of the kit into `home`."""
    for name in names:
        command = ["rustc", "-O", str(KIT / f"{name}.rs"), "-o", str(home / name)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"rustc cannot compile {KIT / name}.rs: {done.stderr.strip().splitlines()[0]}")


@contextlib.contextmanager
def mock(home: Path) -> Iterator[Process]:
    """The upstream for as long as the block lasts: 100 chunks per stream, one every 10 ms."""
    (port,) = free_ports(1)
    with running([str(home / "mock"), str(port), str(CHUNKS), str(INTERVAL_US), "0"]) as pid:
        yield Process("direct", port, pid)


def cortex_command(
    home: Path, port: int, metrics_port: int, mock_port: int, more: str = "", *, pump: str | None = "true"
) -> list[str]:
    """`cortex serve` in front of the mock; the same command in every checkout.

    `more` is appended to its settings; `pump` None is for a checkout that is older than that key.
    """
    home.mkdir()
    config = CONFIG.format(port=port, metrics_port=metrics_port, mock_port=mock_port, pump=pump)
    if pump is None:
        config = config.replace("[streaming]\npump = None\n", "")
    (home / "cortex.toml").write_text(config + more)
    (home / "models.toml").write_text(MODELS)
    return [sys.executable, "-m", "gateway.cli", "serve", "-c", str(home / "cortex.toml")]


@contextlib.contextmanager
def one(
    name: str, port: int, command: list[str], cwd: Path, more: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Process]:
    """One gateway's process for as long as the block lasts. Its code is that of `cwd`, wherever this was installed."""
    with running(command, cwd=cwd, env={**os.environ, "PYTHONPATH": str(cwd), **more}) as pid:
        yield Process(name, port, pid)


@contextlib.contextmanager
def running(command: list[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Iterator[int]:
    """A process for as long as the block lasts; its pid."""
    process = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(command: list[str], env: Mapping[str, str] | None = None) -> str:
    """What a program of the kit prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **(env or {})})
    return done.stdout


def found(pattern: str, text: str) -> re.Match[str]:
    """The first match; ends the run without one."""
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"no {pattern!r} in: {text}")
    return match


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far, threads that have ended included (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def rss_kib(pid: int) -> int:
    """Resident memory in KiB."""
    return int(found(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


@dataclass(frozen=True)
class Load:
    """What the kit's `load` printed."""

    events: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    gap_p99_ms: float

    @classmethod
    def parse(cls, output: str, name: str) -> Load:
        """Ends the run if any stream failed."""
        if not output.rstrip().endswith("bad 0"):
            raise SystemExit(f"streams failed on {name}: {output}")
        ttft = found(r"ttft us p50 (\d+) p99 (\d+)", output)
        gap = found(r"gap us p50 \d+ p99 (\d+)", output)
        events = int(found(r"events (\d+)", output)[1])
        return cls(events, int(ttft[1]) / 1000, int(ttft[2]) / 1000, int(gap[1]) / 1000)


def load_command(
    home: Path, port: int, count: int, *, rounds: int = 1, stagger_us: int = 200, path: str = "", body: str = ""
) -> list[str]:
    """The kit's `load`. One stream starts every `stagger_us`."""
    command = [str(home / "load"), str(port), str(count), str(rounds), str(stagger_us)]
    return [*command, path or "/v1/chat/completions", body] if body else command


def stream_load(home: Path, port: int, count: int, *, stagger_us: int = 200, path: str = "", body: str = "") -> Load:
    """One round of streams."""
    output = run(load_command(home, port, count, stagger_us=stagger_us, path=path, body=body))
    return Load.parse(output, f"port {port}")


def requests_per_s(port: int, seconds: int, body_bytes: int = 0) -> float:
    """By wrk with 16 connections. Ends the run if any answer was not 2xx."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = ["wrk", "-t1", "-c16", "--timeout", "60s", f"-d{seconds}", "-s", str(KIT / "post.lua"), url]
    output = run(command, {"BODY_BYTES": str(body_bytes)})
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(output)
    return float(found(r"Requests/sec:\s+([\d.]+)", output)[1])
