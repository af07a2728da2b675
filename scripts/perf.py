"""Measure the data plane against the bench kit's gateways, interleaved in one run; prints tables of ratios.

    scripts/perf.py                         naive, floor, pump, cortex and keys; five rounds, about ten minutes
    scripts/perf.py --only cortex keys      what keys, limits and the ledger cost: `cortex` has none of them
    scripts/perf.py --quick                 one round, about one minute
    scripts/perf.py --other ../cortex-old   adds the cortex of another checkout: before and after a change

Needs `rustc` and `wrk` (Debian packages of these names). Starts the kit's mock upstream and one process per gateway, on
loopback. Every round measures every gateway, one after the other, so that a slow minute of the machine touches all of
them; figures are medians over the rounds. Machines differ: only ratios within one run count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parent.parent
KIT = ROOT / "scripts" / "bench"
MOCK_PORT = 9000
FIRST_PORT = 8000
CORTEX_PORT = 8001
"""Where scripts/perf_dialects.py has its gateway."""
STREAMS, CHUNKS, INTERVAL_US = 50, 100, 10_000
ROUNDS = 5
WRK_S = 6
SOAK_REQUESTS = 100_000
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

CONFIG = f"""
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:{{port}}"
metrics_listen = "127.0.0.1:{{metrics_port}}"
[[neurons]]
name = "mock"
endpoint = "http://127.0.0.1:{MOCK_PORT}"
"""
KEYS = """
[access]
mode = "keys"
[access.limits]
rpm = 1000000000
tpm = 1000000000000
concurrency = 1000000
"""
"""Every request has a key with all three limits, and becomes a row of the ledger."""
WITHOUT_KEYS = {"CORTEX_LEDGER__KEEP_DAYS": "0"}
SECRET = "ctx_perf_" + "0" * 43
MODELS = '[aliases]\n"helexa/small" = "Qwen/Qwen3-1.7B"\n'


@dataclass(frozen=True)
class Gateway:
    """One process under measurement."""

    name: str
    port: int
    pid: int


@dataclass(frozen=True)
class Figures:
    """One round of one gateway. Times are CPU time of its process (user and system), except those of first events."""

    requests_per_s: float
    request_us: float
    chunk_us: Mapping[str, float]
    """CPU per chunk, by number of streams."""
    ttft_p50_ms: float
    ttft_p99_ms: float
    rss_kib_per_stream: float


def main() -> None:
    """Build the kit, run the rounds, print the tables."""
    options = parse_options()
    need("rustc", "wrk")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        build(home, "mock", "load")
        stack.enter_context(running(mock_command(home)))
        gateways = [stack.enter_context(each) for each in started(home, options.only, options.other)]
        for gateway in gateways:
            wait_until_ready(gateway)
            with client_key(gateway):
                requests_per_s(gateway.port, 1)  # warms the pools and the interpreter
        rounds: dict[str, list[Figures]] = {gateway.name: [] for gateway in gateways}
        for number in range(1, options.rounds + 1):
            for gateway in gateways:
                progress(f"round {number} of {options.rounds}: {gateway.name}")
                with client_key(gateway):
                    rounds[gateway.name].append(measure(gateway, home, options.streams, options.wrk_seconds))
        progress("")
        direct_ms = ttft_ms(run([str(home / "load"), str(MOCK_PORT), str(STREAMS), "1"]))[0]
        print_table(rounds, direct_ms)
        if options.json:
            figures = {name: [asdict(each) for each in values] for name, values in rounds.items()}
            options.json.write_text(json.dumps({"direct_ttft_p50_ms": direct_ms, "rounds": figures}, indent=2))
        if options.soak:
            soak(next(gateway for gateway in gateways if gateway.name == "cortex"))


def parse_options() -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each gateway is measured")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="naive, floor, pump, cortex, keys: which to start")
    parser.add_argument(
        "--other", type=Path, metavar="CHECKOUT", help="another checkout of cortex to measure beside this"
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[STREAMS, 200], help="numbers of streams")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round to FILE")
    parser.add_argument(
        "--soak", action="store_true", help=f"afterwards: memory of cortex over {SOAK_REQUESTS} requests"
    )
    options = parser.parse_args()
    options.wrk_seconds = 2 if options.quick else WRK_S
    options.rounds = 1 if options.quick else options.rounds
    return options


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


def mock_command(home: Path) -> list[str]:
    """The upstream: 100 chunks per stream, one every 10 ms."""
    return [str(home / "mock"), str(MOCK_PORT), str(CHUNKS), str(INTERVAL_US), "0"]


def started(
    home: Path, only: Sequence[str] | None, other: Path | None
) -> Iterator[contextlib.AbstractContextManager[Gateway]]:
    """The gateways to measure, each as a context manager around its process."""
    names = only or ["naive", "floor", "pump", "cortex", "keys"]
    port = FIRST_PORT
    for name in names:
        if name == "cortex":
            yield one(name, port, cortex_command(home / name, port), ROOT, WITHOUT_KEYS)
        elif name == "keys":
            yield one(name, port, cortex_command(home / name, port, KEYS), ROOT, {"CORTEX_BOOTSTRAP_KEY": SECRET})
        else:
            yield one(name, port, [sys.executable, str(KIT / f"{name}.py"), str(port), str(MOCK_PORT)], KIT)
        port += 10
    if other is not None:
        yield one("other", port, cortex_command(home / "other", port), other.resolve())


@contextlib.contextmanager
def one(
    name: str, port: int, command: list[str], cwd: Path, more: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Gateway]:
    """One gateway's process for as long as the block lasts. Its code is that of `cwd`, wherever this was installed."""
    with running(command, cwd=cwd, env={**os.environ, "PYTHONPATH": str(cwd), **more}) as pid:
        yield Gateway(name, port, pid)


def cortex_command(home: Path, port: int, more: str = "") -> list[str]:
    """`cortex serve` in front of the mock; the same command in every checkout. `more` is appended to its settings."""
    home.mkdir()
    (home / "cortex.toml").write_text(CONFIG.format(port=port, metrics_port=port + 1) + more)
    (home / "models.toml").write_text(MODELS)
    return [sys.executable, "-m", "gateway.cli", "serve", "-c", str(home / "cortex.toml")]


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


def wait_until_ready(gateway: Gateway) -> None:
    """Until it accepts connections and, if it has a readiness check, passes it."""
    for _ in range(600):
        with contextlib.suppress(OSError):
            if gateway.name not in {"cortex", "keys", "other"}:
                socket.create_connection(("127.0.0.1", gateway.port), timeout=1).close()
                return
            urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/ready", timeout=1).close()
            return
        time.sleep(0.1)
    raise SystemExit(f"{gateway.name} does not answer on port {gateway.port}")


@contextlib.contextmanager
def client_key(gateway: Gateway) -> Iterator[None]:
    """What wrk and `load` send: a key to `keys`, to the others none."""
    if gateway.name == "keys":
        os.environ["CORTEX_KEY"] = SECRET
    try:
        yield
    finally:
        os.environ.pop("CORTEX_KEY", None)


def measure(gateway: Gateway, home: Path, streams: Sequence[int], seconds: int) -> Figures:
    """Small requests, then streams."""
    before_s = cpu_s(gateway.pid)
    rate = requests_per_s(gateway.port, seconds)
    request_us = (cpu_s(gateway.pid) - before_s) / (rate * seconds) * 1e6
    rest_kib, chunk_us, rss = rss_kib(gateway.pid), {}, 0.0
    p50 = p99 = 0.0
    for count in streams:
        before_s = cpu_s(gateway.pid)
        load = [str(home / "load"), str(gateway.port), str(count), "2"]
        process = subprocess.Popen(load, stdout=subprocess.PIPE, text=True)
        time.sleep(0.7)
        if count == streams[0]:
            rss = (rss_kib(gateway.pid) - rest_kib) / count
        output, _ = process.communicate()
        if not output.rstrip().endswith("bad 0"):
            raise SystemExit(f"streams failed on {gateway.name}: {output}")
        chunk_us[str(count)] = (cpu_s(gateway.pid) - before_s) / int(found(r"events (\d+)", output)[1]) * 1e6
        if count == streams[0]:
            p50, p99 = ttft_ms(output)
    return Figures(rate, request_us, chunk_us, p50, p99, rss)


def requests_per_s(port: int, seconds: int) -> float:
    """By wrk with 16 connections. Ends the run if any answer was not 2xx."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    output = run(["wrk", "-t1", "-c16", f"-d{seconds}", "-s", str(KIT / "post.lua"), url])
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(output)
    return float(found(r"Requests/sec:\s+([\d.]+)", output)[1])


def run(command: list[str]) -> str:
    """What a program of the kit prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ttft_ms(output: str) -> tuple[float, float]:
    """(p50, p99) of the time to the first event, from what `load` printed."""
    match = found(r"ttft us p50 (\d+) p99 (\d+)", output)
    return int(match[1]) / 1000, int(match[2]) / 1000


def found(pattern: str, text: str) -> re.Match[str]:
    """The first match; ends the run without one."""
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"no {pattern!r} in: {text}")
    return match


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def rss_kib(pid: int) -> int:
    """Resident memory in KiB."""
    return int(found(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def progress(text: str) -> None:
    """One line on a terminal that the next one replaces; nothing in a pipe."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def print_table(rounds: Mapping[str, Sequence[Figures]], direct_ms: float) -> None:
    """Markdown: medians over the rounds, and in brackets the ratio to the floor (without one, to the first)."""
    base = "floor" if "floor" in rounds else next(iter(rounds))
    print(f"| median of {len(rounds[base])} rounds (ratio to {base}) | {' | '.join(rounds)} |")
    print("|---" * (len(rounds) + 1) + "|")
    for label, of in rows(rounds[base][0], direct_ms):
        medians = {name: statistics.median(of(each) for each in values) for name, values in rounds.items()}
        cells = [
            f"{value:,.1f} ({value / medians[base]:.2f})" if medians[base] > 0 else f"{value:,.1f}"
            for value in medians.values()
        ]
        print(f"| {label} | {' | '.join(cells)} |")


def rows(one: Figures, direct_ms: float) -> Iterator[tuple[str, Callable[[Figures], float]]]:
    """What the table has: a label, and how to get the figure."""

    def chunk_us(count: str) -> Callable[[Figures], float]:
        return lambda each: each.chunk_us[count]

    yield "requests/s, 16 connections, no stream", lambda each: each.requests_per_s
    yield "CPU per request, us", lambda each: each.request_us
    for count in one.chunk_us:
        yield f"CPU per chunk at {count} streams, us", chunk_us(count)
    yield f"added TTFT p50 at {STREAMS} streams, ms", lambda each: each.ttft_p50_ms - direct_ms
    yield f"TTFT p99 at {STREAMS} streams, ms", lambda each: each.ttft_p99_ms
    yield "RSS growth per open stream, KiB", lambda each: each.rss_kib_per_stream


def soak(gateway: Gateway) -> None:
    """Resident memory over many requests: what grows without a bound shows here."""
    done, first_kib = 0.0, rss_kib(gateway.pid)
    while done < SOAK_REQUESTS:
        done += requests_per_s(gateway.port, seconds=5) * 5
    print(f"\nRSS over {done:,.0f} further requests: {first_kib:,} KiB -> {rss_kib(gateway.pid):,} KiB")


if __name__ == "__main__":
    main()
