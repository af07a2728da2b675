"""Measure the data plane against other gateways, interleaved in one run; prints tables of ratios.

    scripts/perf.py                         every gateway, five rounds, about half an hour
    scripts/perf.py --quick                 one short round
    scripts/perf.py --only floor cortex     these gateways only
    scripts/perf.py --only cortex keys      what keys, limits and the ledger cost: `cortex` has none of them
    scripts/perf.py --other ../cortex-old   adds the cortex of another checkout: before and after a change
    scripts/perf.py --install-routers       installs two Rust routers from PyPI into .perf-routers, to measure them too
    scripts/perf.py --docs                  writes the tables and the plot into docs/performance.md

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
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

import perf_report

ROOT = Path(__file__).resolve().parent.parent
KIT = ROOT / "scripts" / "bench"
ROUTERS = ROOT / ".perf-routers"
MOCK_PORT = 9000
FIRST_PORT = 8000
CORTEX_PORT = 8001
"""Where scripts/perf_dialects.py has its gateway."""
STREAMS, CHUNKS, INTERVAL_US = 50, 100, 10_000
MANY_STREAMS, SLOW_INTERVAL_US, SLOW_CHUNKS = 1000, 50_000, 60  # 20 chunks/s each, as a model decodes
BODIES = (1_000, 20_000, 1_000_000)
BURST = 200  # streams that start in the same moment
ROUNDS = 5
WRK_S = 6
SOAK_REQUESTS = 100_000
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

CONFIG = f"""
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:{{port}}"
metrics_listen = "127.0.0.1:{{metrics_port}}"
[streaming]
pump = {{pump}}
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
CORTEX = {"cortex": "true", "cortex-tasks": "false", "keys": "true"}  # name -> [streaming] pump
MESSAGES = '{"model":"helexa/small","stream":true,"max_tokens":1000,"messages":[{"role":"user","content":"Why?"}]}'


@dataclass(frozen=True)
class Gateway:
    """One process under measurement."""

    name: str
    port: int
    pid: int


@dataclass
class Figures:
    """One round of one gateway. CPU is user and system time of its process; keys are sizes and numbers of streams."""

    requests_per_s: float = 0.0
    request_us: dict[str, float] = field(default_factory=dict)
    """CPU per request, by the size of its body in bytes; "small" is 100 bytes."""
    chunk_us: dict[str, float] = field(default_factory=dict)
    """CPU per chunk, by number of streams."""
    translated_chunk_us: float = 0.0
    ttft_p50_ms: dict[str, float] = field(default_factory=dict)
    ttft_p99_ms: dict[str, float] = field(default_factory=dict)
    late_p99_ms: dict[str, float] = field(default_factory=dict)
    """How much later than its predecessor plus the upstream's interval a chunk arrives."""
    burst_p99_ms: float = 0.0
    """Time to first token when 200 streams start at once."""
    rss_kib_per_stream: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Build the kit, run the rounds, print the tables."""
    options = parse_options()
    need("rustc", "wrk")
    if options.install_routers:
        install_routers()
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
                    rounds[gateway.name].append(measure(gateway, home, options))
        progress("")
        direct = stream_load(home, MOCK_PORT, STREAMS)
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} cores, shared with upstream and load generator",
            "load_average": round(os.getloadavg()[1], 1),
            "direct_ttft_p50_ms": direct.ttft_p50_ms,
            "rounds": {name: [asdict(each) for each in values] for name, values in rounds.items()},
        }
        print(perf_report.table(result))
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if options.docs:
            perf_report.write_docs(result, ROOT / "docs")
        if options.soak:
            soak(next(gateway for gateway in gateways if gateway.name == "cortex"))


def parse_options() -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help=f"how often each gateway is measured; {ROUNDS} by default")
    parser.add_argument("--quick", action="store_true", help="short rounds, one by default, without large bodies")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="naive, floor, pump, cortex, cortex-tasks, keys, *-router"
    )
    parser.add_argument(
        "--other", type=Path, metavar="CHECKOUT", help="another checkout of cortex to measure beside this"
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[STREAMS, 200], help="numbers of streams")
    parser.add_argument("--many", action="store_true", help=f"also {MANY_STREAMS} streams of 20 chunks/s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round to FILE")
    parser.add_argument("--docs", action="store_true", help="write the medians into docs/performance.md")
    parser.add_argument("--install-routers", action="store_true", help=f"install the Rust routers into {ROUTERS.name}")
    parser.add_argument(
        "--soak", action="store_true", help=f"afterwards: memory of cortex over {SOAK_REQUESTS} requests"
    )
    options = parser.parse_args()
    options.wrk_seconds = 2 if options.quick else WRK_S
    options.rounds = options.rounds or (1 if options.quick else ROUNDS)
    options.bodies = () if options.quick else BODIES
    return options


def need(*programs: str) -> None:
    """End with one line that says what to install, if a program is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} not found: install with `apt-get install {' '.join(missing)}`")


def install_routers() -> None:
    """Two Rust routers of the field, in an environment of their own."""
    if not (ROUTERS / "bin" / "pip").exists():
        venv.create(ROUTERS, with_pip=True)
    for package in ("vllm-router", "sglang-router"):
        subprocess.run([str(ROUTERS / "bin" / "pip"), "install", "--quiet", package], check=True)


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
    routers = [name for name in ("vllm-router", "sglang-router") if (ROUTERS / "bin" / name).exists()]
    if not routers and only is None:
        print("without the Rust routers: install them with --install-routers", file=sys.stderr)
    port = FIRST_PORT
    for name in only or ["naive", "floor", "pump", *CORTEX, *routers]:
        cwd = ROOT if name in CORTEX else KIT
        more: Mapping[str, str] = {}
        if name in CORTEX:
            command = cortex_command(home / name, port, KEYS if name == "keys" else "", pump=CORTEX[name])
            more = {"CORTEX_BOOTSTRAP_KEY": SECRET} if name == "keys" else WITHOUT_KEYS
        elif name.endswith("-router"):
            command = router_command(name, port)
        else:
            command = [sys.executable, str(KIT / f"{name}.py"), str(port), str(MOCK_PORT)]
        yield one(name, port, command, cwd, more)
        port += 10
    if other is not None:
        yield one("other", port, cortex_command(home / "other", port, pump=None), other.resolve())


@contextlib.contextmanager
def one(
    name: str, port: int, command: list[str], cwd: Path, more: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Gateway]:
    """One gateway's process for as long as the block lasts. Its code is that of `cwd`, wherever this was installed."""
    with running(command, cwd=cwd, env={**os.environ, "PYTHONPATH": str(cwd), **more}) as pid:
        yield Gateway(name, port, pid)


def cortex_command(home: Path, port: int, more: str = "", *, pump: str | None = "true") -> list[str]:
    """`cortex serve` in front of the mock; the same command in every checkout.

    `more` is appended to its settings; `pump` None is for a checkout that is older than that key.
    """
    home.mkdir()
    config = CONFIG.format(port=port, metrics_port=port + 1, pump=pump)
    if pump is None:
        config = config.replace("[streaming]\npump = None\n", "")
    (home / "cortex.toml").write_text(config + more)
    (home / "models.toml").write_text(MODELS)
    return [sys.executable, "-m", "gateway.cli", "serve", "-c", str(home / "cortex.toml")]


def router_command(name: str, port: int) -> list[str]:
    """A Rust router in front of the mock."""
    options = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(port + 1)]
    launch = ["launch"] if name == "sglang-router" else []
    workers = ["--worker-urls", f"http://127.0.0.1:{MOCK_PORT}", "--policy", "round_robin"]
    return [str(ROUTERS / "bin" / name), *launch, *workers, *options]


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
    is_cortex = gateway.name in {*CORTEX, "other"}
    for _ in range(600):
        with contextlib.suppress(OSError):
            if not (is_cortex or gateway.name.endswith("-router")):
                socket.create_connection(("127.0.0.1", gateway.port), timeout=1).close()
                return
            path = "ready" if is_cortex else "readiness"
            urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/{path}", timeout=1).close()
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


def measure(gateway: Gateway, home: Path, options: argparse.Namespace) -> Figures:
    """Requests with small and large bodies, then streams."""
    figures = Figures()
    for size in (0, *options.bodies):
        seconds = options.wrk_seconds
        before_s = cpu_s(gateway.pid)
        rate = requests_per_s(gateway.port, seconds, size)
        figures.request_us[str(size or "small")] = (cpu_s(gateway.pid) - before_s) / (rate * seconds) * 1e6
        figures.requests_per_s = figures.requests_per_s or rate
    for count in options.streams:
        measure_streams(gateway, home, figures, count)
    if options.many:
        body = '{"model":"helexa/small","stream":true,"messages":[{"role":"user","content":"Why?"}],'
        body += f'"interval_us":{SLOW_INTERVAL_US},"chunks":{SLOW_CHUNKS}}}'
        measure_streams(gateway, home, figures, MANY_STREAMS, interval_us=SLOW_INTERVAL_US, body=body)
    if gateway.name in {*CORTEX, "other"}:
        before_s = cpu_s(gateway.pid)
        load = stream_load(home, gateway.port, STREAMS, path="/v1/messages", body=MESSAGES)
        figures.translated_chunk_us = (cpu_s(gateway.pid) - before_s) / load.events * 1e6
    figures.burst_p99_ms = stream_load(home, gateway.port, BURST, stagger_us=0).ttft_p99_ms
    return figures


def measure_streams(
    gateway: Gateway, home: Path, figures: Figures, count: int, *, interval_us: int = INTERVAL_US, body: str = ""
) -> None:
    """`count` streams at a time, two rounds of them."""
    key, before_s, rest_kib = str(count), cpu_s(gateway.pid), rss_kib(gateway.pid)
    command = load_command(home, gateway.port, count, body=body, rounds=1 if body else 2)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    time.sleep(2.5 if body else 0.7)
    figures.rss_kib_per_stream[key] = (rss_kib(gateway.pid) - rest_kib) / count
    load = Load.parse(process.communicate()[0], gateway.name)
    figures.chunk_us[key] = (cpu_s(gateway.pid) - before_s) / load.events * 1e6
    figures.ttft_p50_ms[key], figures.ttft_p99_ms[key] = load.ttft_p50_ms, load.ttft_p99_ms
    figures.late_p99_ms[key] = max(0.0, load.gap_p99_ms - interval_us / 1000)


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
    command = ["wrk", "-t1", "-c16", f"-d{seconds}", "-s", str(KIT / "post.lua"), url]
    output = run(command, {"BODY_BYTES": str(body_bytes)})
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(output)
    return float(found(r"Requests/sec:\s+([\d.]+)", output)[1])


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


def soak(gateway: Gateway) -> None:
    """Resident memory over many requests: what grows without a bound shows here."""
    done, first_kib = 0.0, rss_kib(gateway.pid)
    while done < SOAK_REQUESTS:
        done += requests_per_s(gateway.port, seconds=5) * 5
    print(f"\nRSS over {done:,.0f} further requests: {first_kib:,} KiB -> {rss_kib(gateway.pid):,} KiB")


if __name__ == "__main__":
    main()
