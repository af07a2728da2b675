"""Where a request's and a chunk's time goes, step by step; writes docs/profile.md.

    scripts/profile_steps.py           prints the tables
    scripts/profile_steps.py --docs    writes them into docs/profile.md

It plays requests through the whole data plane in one process under cProfile (`tests/fakes/call_counts.py`: server,
pump, proxy, metrics, log and pool, with socket pairs as network). Calls are exact, the same in every run. Times are
cProfile's: it makes calls dearer than they are, so read them as shares.
"""

from __future__ import annotations

import argparse
import cProfile
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import trio  # noqa: E402
from fakes import call_counts  # type: ignore[import-not-found]  # noqa: E402

PAGE = ROOT / "docs" / "profile.md"
BEGIN, END = "<!-- begin: written by scripts/profile_steps.py --docs -->", "<!-- end: scripts/profile_steps.py -->"
REQUESTS, CHUNKS_FEW, CHUNKS_MANY = 200, 10, 110
STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pump: wait, read, write", ("gateway/http/epoll",)),
    ("client's side: parse the request, frame and send the response", ("gateway/http/server", "gateway/http/request")),
    ("neuron's side: pool, send, parse the response", ("gateway/http/",)),
    ("proxy: admit, dispatch, attempt, relay, headers", ("gateway/proxy", "gateway/server", "gateway/asgi.py")),
    ("dialects: find and replace the model, usage, translate", ("gateway/dialects",)),
    ("routing, leases, breakers", ("gateway/fleet", "catalogue")),
    ("keys, limits, ledger", ("gateway/access",)),
    ("telemetry: record, meter, metrics, log", ("gateway/telemetry", "structlog")),
    ("Trio: tasks, scopes, nursery, event loop", ("trio", "outcome", "contextlib", "attrs", "__init__.py")),
    ("built-in functions", ("",)),
)


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--docs", action="store_true", help=f"write the tables into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    call_counts.log_to_nowhere()
    few = profile("stream", CHUNKS_FEW, call_counts.STREAMS)
    many = profile("stream", CHUNKS_MANY, call_counts.STREAMS)
    chunks = REQUESTS // call_counts.STREAMS * call_counts.STREAMS * (CHUNKS_MANY - CHUNKS_FEW)
    text = "\n\n".join(
        (
            "## A request that is not streamed",
            table(profile("plain", CHUNKS_FEW, 1), REQUESTS),
            f"## A chunk, when {call_counts.STREAMS} streams get one at the same time",
            table({step: (many[step][0] - few[step][0], many[step][1] - few[step][1]) for step in many}, chunks),
        )
    )
    if options.docs:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    else:
        print(text)


def profile(kind: str, chunks: int, clients: int) -> dict[str, tuple[float, float]]:
    """Calls and seconds of each step, during `REQUESTS` requests."""
    profiler = cProfile.Profile()
    trio.run(call_counts.play, kind, REQUESTS // clients, chunks, profiler, clients)
    calls: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    for entry in profiler.getstats():
        name = call_counts.name_of(entry.code)
        if name is None:
            continue
        step = step_of(name)
        calls[step] += entry.callcount
        seconds[step] += entry.inlinetime
    return {step: (calls[step], seconds[step]) for step, _ in STEPS}


def step_of(name: str) -> str:
    """The step that a function belongs to, by its file."""
    file = name.rpartition(" (")[2].removesuffix(")") if name.endswith(")") and not name.startswith("<") else ""
    if "attrs generated" in name:
        file = "attrs"
    return next(step for step, beginnings in STEPS if file.startswith(beginnings))


def table(steps: dict[str, tuple[float, float]], divisor: int) -> str:
    """Markdown: calls and share of the time."""
    total_calls = sum(calls for calls, _ in steps.values())
    total_s = sum(seconds for _, seconds in steps.values())
    share: Callable[[float], str] = lambda seconds: f"{seconds / total_s:.0%}"  # noqa: E731
    lines = ["| step | calls | share of the time |", "|---|---|---|"]
    for step, (calls, seconds) in sorted(steps.items(), key=lambda item: -item[1][1]):
        if calls / divisor >= 0.05:
            lines.append(f"| {step} | {calls / divisor:.1f} | {share(seconds)} |")
    return "\n".join([*lines, f"| all | {total_calls / divisor:.1f} | 100% |"])


if __name__ == "__main__":
    main()
