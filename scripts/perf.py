"""Measure the data plane against the naive gateway of the bench kit, in one run; prints a table of ratios.

    scripts/perf.py ../shared/bench        needs rustc and wrk (Debian package `wrk`); takes about two minutes

What it starts, on loopback: the kit's mock upstream, `naive.py` on Hypercorn's Trio worker, and `cortex serve`, one
process each. Machines differ, so only ratios within one run count; figures of a run are in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOCK_PORT, NAIVE_PORT, CORTEX_PORT = 9000, 8000, 8001
STREAMS, CHUNKS, INTERVAL_US = 50, 100, 10_000
SOAK_REQUESTS = 100_000
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

CONFIG = f"""
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:{CORTEX_PORT}"
metrics_listen = "127.0.0.1:{CORTEX_PORT + 1}"
[[neurons]]
name = "mock"
endpoint = "http://127.0.0.1:{MOCK_PORT}"
"""
MODELS = '[aliases]\n"helexa/small" = "Qwen/Qwen3-1.7B"\n'
NAIVE = """
import sys, trio, hypercorn, hypercorn.trio
sys.path.insert(0, {kit!r})
import naive
config = hypercorn.Config()
config.bind = ["127.0.0.1:{port}"]
trio.run(hypercorn.trio.serve, naive.app, config)
"""


@dataclass
class Figures:
    """Of one gateway."""

    requests_per_s: float = 0.0
    cpu_us_per_chunk: float = 0.0
    ttft_p50_ms: float = 0.0
    ttft_p99_ms: float = 0.0
    rss_kib_per_stream: float = 0.0


def main() -> None:
    """Build the kit, run everything, print the table."""
    kit = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/bench").resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        for name in ("mock", "load"):
            subprocess.run(
                ["rustc", "-O", str(kit / f"{name}.rs"), "-o", str(home / name)], check=True, capture_output=True
            )
        (home / "cortex.toml").write_text(CONFIG)
        (home / "models.toml").write_text(MODELS)
        mock = [str(home / "mock"), str(MOCK_PORT), str(CHUNKS), str(INTERVAL_US), "0"]
        stack.enter_context(running(mock))
        naive = stack.enter_context(running([sys.executable, "-c", NAIVE.format(kit=str(kit), port=NAIVE_PORT)]))
        serve = [sys.executable, "-m", "gateway.cli", "serve", "-c", str(home / "cortex.toml")]
        cortex = stack.enter_context(running(serve))
        wait_until_ready()
        baseline = measure(naive, NAIVE_PORT, home, kit)
        ours = measure(cortex, CORTEX_PORT, home, kit)
        direct_ms = ttft_ms(load(home, MOCK_PORT))[0]
        print_table(baseline, ours, direct_ms)
        soak(cortex, kit)


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[int]:
    """A process for as long as the block lasts; its pid."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready() -> None:
    """Until both gateways answer."""
    for port, path in ((CORTEX_PORT, "/ready"), (NAIVE_PORT, "/")):
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1)
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
            else:
                break


def measure(pid: int, port: int, home: Path, kit: Path) -> Figures:
    """Requests per second, then streams."""
    figures = Figures(requests_per_s=requests_per_s(port, kit, seconds=8))
    rest_kib = rss_kib(pid)
    before_s = cpu_s(pid)
    streaming = subprocess.Popen(load_command(home, port), stdout=subprocess.PIPE, text=True)
    time.sleep(0.6)
    figures.rss_kib_per_stream = (rss_kib(pid) - rest_kib) / STREAMS
    output, _ = streaming.communicate()
    events = int(_found(r"events (\d+)", output)[1])
    if not output.rstrip().endswith("bad 0"):
        raise SystemExit(f"streams failed on port {port}: {output}")
    figures.cpu_us_per_chunk = (cpu_s(pid) - before_s) / events * 1e6
    figures.ttft_p50_ms, figures.ttft_p99_ms = ttft_ms(output)
    return figures


def requests_per_s(port: int, kit: Path, seconds: int) -> float:
    """By wrk with 16 connections. Ends the run if any answer was not 2xx."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = ["wrk", "-t1", "-c16", f"-d{seconds}", "-s", str(kit / "post.lua"), url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(output)
    return float(_found(r"Requests/sec:\s+([\d.]+)", output)[1])


def load_command(home: Path, port: int) -> list[str]:
    """The kit's streaming clients: three rounds."""
    return [str(home / "load"), str(port), str(STREAMS), "3"]


def load(home: Path, port: int) -> str:
    """Its output."""
    return subprocess.run(load_command(home, port), check=True, capture_output=True, text=True).stdout


def ttft_ms(output: str) -> tuple[float, float]:
    """(p50, p99) of the time to the first event."""
    found = _found(r"ttft us p50 (\d+) p99 (\d+)", output)
    return int(found[1]) / 1000, int(found[2]) / 1000


def _found(pattern: str, text: str) -> re.Match[str]:
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
    return int(_found(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def print_table(naive: Figures, cortex: Figures, direct_ms: float) -> None:
    """Markdown, to be put into docs/performance.md as it is."""
    added = (naive.ttft_p50_ms - direct_ms, cortex.ttft_p50_ms - direct_ms)
    rows = [
        ("requests/s, 16 connections, no stream", naive.requests_per_s, cortex.requests_per_s),
        ("CPU per streamed chunk, us", naive.cpu_us_per_chunk, cortex.cpu_us_per_chunk),
        (f"added TTFT p50 at {STREAMS} streams, ms", *added),
        (f"TTFT p99 at {STREAMS} streams, ms", naive.ttft_p99_ms, cortex.ttft_p99_ms),
        ("RSS growth per open stream, KiB", naive.rss_kib_per_stream, cortex.rss_kib_per_stream),
    ]
    print("| what | naive.py | cortex | ratio |\n|---|---|---|---|")
    for what, before, after in rows:
        print(
            f"| {what} | {before:,.1f} | {after:,.1f} | {after / before:.2f} |"
            if before
            else f"| {what} | 0 | {after:,.1f} | - |"
        )


def soak(pid: int, kit: Path) -> None:
    """Resident memory over many requests: what grows for ever shows here."""
    done, first_kib = 0.0, rss_kib(pid)
    while done < SOAK_REQUESTS:
        done += requests_per_s(CORTEX_PORT, kit, seconds=5) * 5
    print(f"\nRSS over {done:,.0f} further requests: {first_kib:,} KiB -> {rss_kib(pid):,} KiB")


if __name__ == "__main__":
    main()
