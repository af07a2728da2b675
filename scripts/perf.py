"""Measure the data plane against other gateways, interleaved in one run; prints a table of ratios, with the goals.

    scripts/perf.py                         every gateway, five rounds, about twenty minutes
    scripts/perf.py --many                  also 1,000 streams for 60 s on floor, pump and cortex, in two rounds
    scripts/perf.py --quick                 one short round; with --many, streams of 10 s
    scripts/perf.py --only floor cortex     these gateways only
    scripts/perf.py --only cortex keys limits   what keys, the ledger and limits cost: `cortex` has none of them
    scripts/perf.py --other ../cortex-old   adds the cortex of another checkout: before and after a change
    scripts/perf.py --install-routers       installs two Rust routers from PyPI into .perf-routers, to measure them too
    scripts/perf.py --many --docs           writes the table and the plot into docs/performance.md

Needs `rustc` and `wrk` (Debian packages of these names). Starts the kit's mock upstream and one process per gateway, on
loopback, in every round anew: of two processes with the same code one can be slower for as long as it runs. Every round
measures every gateway, so that a slow minute of the machine touches all of them: small requests and bursts by turns of
seconds, then the rest one gateway after the other. Figures are medians over the rounds. Machines differ: only ratios
within one run count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import perf_report
from perf_kit import (
    INTERVAL_US,
    KIT,
    ROOT,
    Load,
    Process,
    build,
    cortex_command,
    cpu_s,
    free_ports,
    load_command,
    mock,
    need,
    one,
    raise_open_files,
    requests_per_s,
    rss_kib,
    stream_load,
)

ROUTERS = ROOT / ".perf-routers"
STREAMS = (1, 50, 200)
TRANSLATED = 50  # streams
BODIES = (1_000, 20_000, 1_000_000)
BURST = 200  # streams that start in the same moment
MANY, MANY_INTERVAL_US, MANY_S = 1000, 50_000, 60  # 20 chunks/s each, as a model decodes
MANY_STAGGER_US = 5_000  # they start within 5 s
MEASURED_MANY = ("floor", "pump", "cortex", "other")
BESIDE_INTERVAL_S = 0.05  # between two small requests beside many streams
ROUNDS = 5
MANY_ROUNDS = 2  # each takes a minute
TURNS = 3  # in each round
SOAK_REQUESTS = 100_000

KEYS = '[access]\nmode = "keys"\n'
LIMITS = f"{KEYS}[access.limits]\nrpm = 1000000000\ntpm = 1000000000000\nconcurrency = 1000000\n"
KEYED = {"keys": KEYS, "limits": LIMITS}
"""Gateways that ask for keys and have a ledger, by name, with their settings: without limits, and with all three."""
WITHOUT_LEDGER = {"CORTEX_LEDGER__KEEP_DAYS": "0"}
SECRET = "ctx_perf_" + "0" * 43
PUMP = {"cortex": "true", "cortex-tasks": "false", "keys": "true", "limits": "true"}  # name -> [streaming] pump
MESSAGES = '{"model":"helexa/small","stream":true,"max_tokens":1000,"messages":[{"role":"user","content":"Why?"}]}'
QUESTION = '{"model":"helexa/small","messages":[{"role":"user","content":"What is the capital of Georgia?"}]'


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
    beside_p99_ms: dict[str, float] = field(default_factory=dict)
    """Time of a small request beside that many streams."""

    def take(self, key: str, load: Load, interval_us: int, chunk_us: float) -> None:
        """The figures of one number of streams."""
        self.chunk_us[key] = chunk_us
        self.ttft_p50_ms[key], self.ttft_p99_ms[key] = load.ttft_p50_ms, load.ttft_p99_ms
        self.late_p99_ms[key] = max(0.0, load.gap_p99_ms - interval_us / 1000)


def main() -> None:
    """Build the kit, run the rounds, print the table."""
    options = parse_options()
    need("rustc", "wrk")
    raise_open_files()
    if options.install_routers:
        install_routers()
    options.only = options.only or ["naive", "floor", "pump", "cortex", *KEYED, *installed_routers()]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        build(home, "mock", "load")
        upstream = stack.enter_context(mock(home))
        rounds: dict[str, list[Figures]] = {}
        for number in range(1, options.rounds + 1):
            for name, figures in measured_round(home, upstream, options, number).items():
                rounds.setdefault(name, []).append(figures)
        progress("")
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} cores, shared with upstream and load generator",
            "load_average": round(os.getloadavg()[1], 1),
            "minutes": round((time.monotonic() - began) / 60, 1),
            "many_s": options.many_s,
            "many_rounds": min(MANY_ROUNDS, options.rounds),
            "rounds": {name: [asdict(each) for each in values] for name, values in rounds.items()},
        }
        print(perf_report.table(result))
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if options.docs:
            perf_report.write_docs(result, ROOT / "docs")
        if options.soak:
            soak(home, upstream)


def measured_round(home: Path, upstream: Process, options: argparse.Namespace, number: int) -> dict[str, Figures]:
    """One round of all gateways, each in a new process."""
    folder = home / str(number)
    folder.mkdir()
    # `naive` takes minutes for what takes the others seconds.
    names = [name for name in options.only if name != "naive" or number == 1]
    with contextlib.ExitStack() as stack:
        gateways = [stack.enter_context(each) for each in started(folder, upstream.port, names, options.other)]
        for gateway in gateways:
            wait_until_ready(gateway)
            with client_key(gateway):
                requests_per_s(gateway.port, 1)  # warms the pools and the interpreter
        measured = [upstream, *gateways]
        figures = {each.name: Figures() for each in measured}
        progress(f"round {number} of {options.rounds}: requests and bursts, by turns")
        take_turns(measured, figures, home, options.small_s)
        for each in measured:
            progress(f"round {number} of {options.rounds}: {each.name}")
            with client_key(each):
                measure(each, figures[each.name], home, options, number)
    return figures


def parse_options() -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help=f"how often each gateway is measured; {ROUNDS} by default")
    parser.add_argument("--quick", action="store_true", help="short rounds, one by default")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="naive, floor, pump, cortex, cortex-tasks, keys, limits, *-router"
    )
    parser.add_argument(
        "--other", type=Path, metavar="CHECKOUT", help="another checkout of cortex to measure beside this"
    )
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="numbers of streams")
    parser.add_argument("--many", action="store_true", help=f"also {MANY} streams of 20 chunks/s for {MANY_S} s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round to FILE")
    parser.add_argument("--docs", action="store_true", help="write the medians into docs/performance.md")
    parser.add_argument("--install-routers", action="store_true", help=f"install the Rust routers into {ROUTERS.name}")
    parser.add_argument(
        "--soak", action="store_true", help=f"afterwards: memory of cortex over {SOAK_REQUESTS} requests"
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else ROUNDS)
    options.small_s, options.body_s = (1, 1) if options.quick else (2, 3)
    options.many_s = 0 if not options.many else 10 if options.quick else MANY_S
    return options


def install_routers() -> None:
    """Two Rust routers of the field, in an environment of their own."""
    if not (ROUTERS / "bin" / "pip").exists():
        venv.create(ROUTERS, with_pip=True)
    for package in ("vllm-router", "sglang-router"):
        subprocess.run([str(ROUTERS / "bin" / "pip"), "install", "--quiet", package], check=True)


def installed_routers() -> list[str]:
    """Those that were installed, by name."""
    routers = [name for name in ("vllm-router", "sglang-router") if (ROUTERS / "bin" / name).exists()]
    if not routers:
        print("without the Rust routers: install them with --install-routers", file=sys.stderr)
    return routers


def started(
    home: Path, mock_port: int, names: Sequence[str], other: Path | None
) -> Iterator[contextlib.AbstractContextManager[Process]]:
    """The gateways to measure, each as a context manager around its process."""
    for name in names:
        port, metrics_port = free_ports(2)
        more: Mapping[str, str] = {}
        if name in PUMP:
            command = cortex_command(home / name, port, metrics_port, mock_port, KEYED.get(name, ""), pump=PUMP[name])
            more = {"CORTEX_BOOTSTRAP_KEY": SECRET} if name in KEYED else WITHOUT_LEDGER
        elif name.endswith("-router"):
            command = router_command(name, port, metrics_port, mock_port)
        else:
            command = [sys.executable, str(KIT / f"{name}.py"), str(port), str(mock_port)]
        yield one(name, port, command, ROOT if name in PUMP else KIT, more)
    if other is not None:
        port, metrics_port = free_ports(2)
        command = cortex_command(home / "other", port, metrics_port, mock_port, pump=None)
        yield one("other", port, command, other.resolve(), WITHOUT_LEDGER)


def router_command(name: str, port: int, metrics_port: int, mock_port: int) -> list[str]:
    """A Rust router in front of the mock."""
    options = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics_port)]
    launch = ["launch"] if name == "sglang-router" else []
    workers = ["--worker-urls", f"http://127.0.0.1:{mock_port}", "--policy", "round_robin"]
    return [str(ROUTERS / "bin" / name), *launch, *workers, *options]


def wait_until_ready(gateway: Process) -> None:
    """Until it accepts connections and, if it has a readiness check, passes it."""
    is_cortex = gateway.name in {*PUMP, "other"}
    for _ in range(600):
        if Path(f"/proc/{gateway.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            raise SystemExit(f"{gateway.name} ended instead of listening on port {gateway.port}")
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
def client_key(gateway: Process) -> Iterator[None]:
    """What wrk and `load` send: a key to those that ask for one."""
    if gateway.name in KEYED:
        os.environ["CORTEX_KEY"] = SECRET
    try:
        yield
    finally:
        os.environ.pop("CORTEX_KEY", None)


def take_turns(measured: Sequence[Process], figures: Mapping[str, Figures], home: Path, seconds: int) -> None:
    """Requests with small bodies, and bursts: what a disturbance of the machine changes most, so in short turns."""
    cpu: dict[str, float] = dict.fromkeys(figures, 0.0)
    rates: dict[str, list[float]] = {name: [] for name in figures}
    bursts: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(TURNS):
        for each in measured:
            with client_key(each):
                before_s = cpu_s(each.pid)
                rates[each.name].append(requests_per_s(each.port, seconds))
                cpu[each.name] += cpu_s(each.pid) - before_s
    for _ in range(TURNS):
        for each in measured:
            with client_key(each):
                bursts[each.name].append(stream_load(home, each.port, BURST, stagger_us=0).ttft_p99_ms)
    for name, taken in figures.items():
        taken.requests_per_s = statistics.mean(rates[name])
        taken.request_us["small"] = cpu[name] / (sum(rates[name]) * seconds) * 1e6
        taken.burst_p99_ms = statistics.median(bursts[name])


def measure(process: Process, figures: Figures, home: Path, options: argparse.Namespace, number: int) -> None:
    """Requests with large bodies, then streams. Of the upstream itself, only what its clients see."""
    is_gateway = process.name != "direct"
    for size in BODIES if is_gateway else ():
        rate, seconds = 0.0, options.body_s
        while not rate:  # on a busy machine no large request may end in one second
            before_s = cpu_s(process.pid)
            rate = requests_per_s(process.port, seconds, size)
            seconds *= 1 if rate else 4
        figures.request_us[str(size)] = (cpu_s(process.pid) - before_s) / (rate * seconds) * 1e6
    for count in options.streams:
        measure_streams(process, home, figures, count)
    if process.name in {*PUMP, "other"}:
        before_s = cpu_s(process.pid)
        load = stream_load(home, process.port, TRANSLATED, path="/v1/messages", body=MESSAGES)
        figures.translated_chunk_us = (cpu_s(process.pid) - before_s) / load.events * 1e6
    many_rounds = MANY_ROUNDS if process.name in MEASURED_MANY else 0 if is_gateway else 1
    if options.many_s and number <= many_rounds:
        measure_many(process, home, figures, options.many_s)
    if not is_gateway:
        figures.request_us, figures.chunk_us, figures.rss_kib_per_stream = {}, {}, {}


def measure_streams(process: Process, home: Path, figures: Figures, count: int) -> None:
    """`count` streams at a time, two rounds of them. One alone is ten times as fast, so that idle time counts less."""
    interval_us = INTERVAL_US if count > 1 else INTERVAL_US // 10
    body = streaming(interval_us, seconds=1)
    command = load_command(home, process.port, count, rounds=2, path="/v1/chat/completions", body=body)
    load, cpu_us, grown_kib = loaded(process, command, 0.7)
    figures.take(str(count), load, interval_us, cpu_us / load.events)
    if count > 1:
        figures.rss_kib_per_stream[str(count)] = grown_kib / count


def measure_many(process: Process, home: Path, figures: Figures, seconds: int) -> None:
    """Streams as slow as a model decodes, and small requests beside them, each on its own."""
    body = streaming(MANY_INTERVAL_US, seconds)
    command = load_command(home, process.port, MANY, stagger_us=MANY_STAGGER_US, path="/v1/chat/completions", body=body)
    with SmallRequests(process.port) as beside:
        load, cpu_us, grown_kib = loaded(process, command, MANY * MANY_STAGGER_US / 1e6 + seconds / 2)
    figures.take(str(MANY), load, MANY_INTERVAL_US, cpu_us / load.events)
    figures.rss_kib_per_stream[str(MANY)] = grown_kib / MANY
    figures.beside_p99_ms[str(MANY)] = beside.p99_ms


def streaming(interval_us: int, seconds: int) -> str:
    """The body of a request whose stream lasts so long."""
    return f'{QUESTION},"stream":true,"interval_us":{interval_us},"chunks":{seconds * 1_000_000 // interval_us}}}'


def loaded(process: Process, command: list[str], sample_s: float) -> tuple[Load, float, float]:
    """Run a load: what it printed, the process's CPU time in us, and by how many KiB it has grown after `sample_s`."""
    before_s, rest_kib = cpu_s(process.pid), rss_kib(process.pid)
    generator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    time.sleep(sample_s)
    grown_kib = rss_kib(process.pid) - rest_kib
    load = Load.parse(generator.communicate()[0], process.name)
    return load, (cpu_s(process.pid) - before_s) * 1e6, grown_kib


class SmallRequests:
    """Requests without a stream, one after the other on one connection, for as long as the block lasts."""

    def __init__(self, port: int) -> None:
        self._took_ms: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(port,))

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of their times."""
        return statistics.quantiles(self._took_ms, n=100)[98]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self, port: int) -> None:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(QUESTION) + 1}\r\n"
        request = f"{head}content-type: application/json\r\n\r\n{QUESTION}}}".encode()
        with socket.create_connection(("127.0.0.1", port)) as client:
            while not self._over.wait(BESIDE_INTERVAL_S):
                began = time.perf_counter()
                client.sendall(request)
                answer = b""
                while not answer.rstrip(b"\r\n0").endswith(b"}"):
                    answer += client.recv(65536)
                if b" 200 " not in answer[:20]:
                    raise SystemExit(f"a small request failed: {answer!r}")
                self._took_ms.append((time.perf_counter() - began) * 1000)


def progress(text: str) -> None:
    """One line on a terminal that the next one replaces; nothing in a pipe."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def soak(home: Path, upstream: Process) -> None:
    """Resident memory over many requests: what grows without a bound shows here."""
    (started_gateway,) = started(home, upstream.port, ["cortex"], None)
    with started_gateway as gateway:
        wait_until_ready(gateway)
        done = requests_per_s(gateway.port, seconds=5) * 5
        first_kib = rss_kib(gateway.pid)
        while done < SOAK_REQUESTS:
            done += requests_per_s(gateway.port, seconds=5) * 5
        print(f"\nRSS over {done:,.0f} requests: {first_kib:,} KiB -> {rss_kib(gateway.pid):,} KiB")


if __name__ == "__main__":
    main()
