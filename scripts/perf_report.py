"""What `perf.py` has measured: as a Markdown table, as a plot, and as a part of docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BEGIN, END = "<!-- begin: written by scripts/perf.py --docs -->", "<!-- end: scripts/perf.py -->"
PLOT = "performance.svg"
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#b8860b", "#6a4c93", "#444444", "#0e8f8f")

ROUTERS = ("vllm-router", "sglang-router")

Round = Mapping[str, Any]
Result = Mapping[str, Any]
Figure = Callable[[Round], float | None]


class Goal(NamedTuple):
    """At most `limit`, or `limit` times the figure of `than`: a gateway, or "router" for the better of the two."""

    limit: float
    than: str | None = None
    gateway: str = "cortex"


class Row(NamedTuple):
    """A line of the table: what it shows, how to get it from a round, and its goals."""

    label: str
    figure: Figure
    goals: Sequence[Goal] = ()
    than: Figure | None = None
    """What the goals compare with, if that is another figure."""


GOALS = {
    "request_us small": (Goal(2.5, "floor"), Goal(1.1, "cortex", "keys"), Goal(1.1, "cortex", "limits")),
    "chunk_us 50": (Goal(0.85, "floor"), Goal(1.9, "router")),
    "chunk_us 200": (Goal(1.0, "floor"), Goal(1.4, "router")),
    "translated": (Goal(1.15, "floor"),),
    "burst": (Goal(0.5, "floor"),),
    "late_p99_ms 1000": (Goal(100),),
    "rss_kib_per_stream 1000": (Goal(32),),
    "beside_p99_ms 1000": (Goal(50),),
}


def table(result: Result) -> str:
    """Markdown: medians over the rounds, and in brackets the ratio to the floor (without one, to the first gateway)."""
    rounds: Mapping[str, Sequence[Round]] = result["rounds"]
    base = "floor" if "floor" in rounds else next(name for name in rounds if name != "direct")
    lines = [f"| median of {len(rounds[base])} rounds (ratio to {base}) | goals | {' | '.join(rounds)} |"]
    lines.append("|---" * (len(rounds) + 2) + "|")
    for row in _rows(rounds):
        medians = _medians(rounds, row.figure)
        met = "; ".join(_met(goal, medians, _medians(rounds, row.than or row.figure)) for goal in row.goals)
        cells = [_cell(value, medians[base], of_base=name == base) for name, value in medians.items()]
        lines.append(f"| {row.label} | {met} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _medians(rounds: Mapping[str, Sequence[Round]], figure: Figure) -> dict[str, float | None]:
    return {name: _median(values, figure) for name, values in rounds.items()}


def _median(values: Sequence[Round], figure: Figure) -> float | None:
    known = [value for each in values if (value := figure(each)) is not None]
    return statistics.median(known) if known else None


def _cell(value: float | None, base: float | None, *, of_base: bool) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f} ({value / base:.2f})" if base and not of_base else f"{value:,.1f}"


def _met(goal: Goal, medians: Mapping[str, float | None], others: Mapping[str, float | None]) -> str:
    """The goal and what is there instead, in bold if that is too much."""
    value = medians.get(goal.gateway)
    whose = "" if goal.gateway == "cortex" else f"{goal.gateway} "
    if goal.than is None:
        text, ratio = f"{whose}<= {goal.limit:g}", value
    else:
        text = f"{whose}<= {goal.limit:g}x {goal.than}"
        found = [others.get(name) for name in (ROUTERS if goal.than == "router" else [goal.than])]
        known = [other for other in found if other]
        ratio = value / min(known) if value is not None and known else None
    if ratio is None:
        return text
    shown = text if goal.than is None else f"{text}: {ratio:.2f}"
    return shown if ratio <= goal.limit else f"**{shown}, missed**"


def _rows(rounds: Mapping[str, Sequence[Round]]) -> Iterator[Row]:
    """What the table has."""

    def by_key(name: str, key: str) -> Figure:
        return lambda each: each[name].get(key)

    def keys(name: str) -> list[str]:
        """The union over all gateways: some are measured with fewer."""
        return list(dict.fromkeys(key for values in rounds.values() for key in values[0][name]))

    def row(label: str, name: str, key: str) -> Row:
        return Row(label, by_key(name, key), GOALS.get(f"{name} {key}", ()))

    yield Row("requests/s, 16 connections, no stream", lambda each: each["requests_per_s"])
    for size in keys("request_us"):
        body = "" if size == "small" else f", body of {int(size) // 1000:,} KB"
        yield row(f"CPU per request{body}, us", "request_us", size)
    for count in keys("chunk_us"):
        yield row(f"CPU per chunk at {_streams(count)}, us", "chunk_us", count)
    yield Row(
        "CPU per translated chunk at 50 streams, us",
        lambda each: each["translated_chunk_us"] or None,
        GOALS["translated"],
        by_key("chunk_us", "50"),
    )
    for count in keys("ttft_p99_ms"):
        yield row(f"TTFT p50 at {_streams(count)}, ms", "ttft_p50_ms", count)
        yield row(f"TTFT p99 at {_streams(count)}, ms", "ttft_p99_ms", count)
    yield Row("TTFT p99 of 200 streams that start at once, ms", lambda each: each["burst_p99_ms"], GOALS["burst"])
    for count in keys("late_p99_ms"):
        yield row(f"chunks late at {_streams(count)}, p99, ms", "late_p99_ms", count)
    for count in keys("beside_p99_ms"):
        yield row(f"small request beside {_streams(count)}, p99, ms", "beside_p99_ms", count)
    for count in keys("rss_kib_per_stream"):
        yield row(f"RSS growth per stream at {_streams(count)}, KiB", "rss_kib_per_stream", count)


def _streams(count: str) -> str:
    return "1 stream" if count == "1" else f"{int(count):,} streams"


def write_docs(result: Result, docs: Path) -> None:
    """Replace the measured part of performance.md, and its plot."""
    page = docs / "performance.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    where = f"Measured {result['date']} on {result['machine']}; load average {result['load_average']}."
    if "naive" in result["rounds"]:
        where += " `naive` is measured in one round only."
    where += " Streams have 100 chunks/s and last 1 s, two on each connection; one alone has 1,000 chunks/s."
    where += " Each round starts every gateway anew."
    where += " In it, requests of 100 bytes and bursts are measured in three short turns of every gateway."
    if result["many_s"]:
        where += f" The 1,000 streams start within 5 s, have 20 chunks/s each and last {result['many_s']} s."
        where += f" They are measured in {result['many_rounds']} rounds."
    text = f"{where}\n\n{table(result)}\n\n![CPU per chunk by number of streams]({PLOT})"
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    (docs / PLOT).write_text(plot(result), encoding="utf-8")


def plot(result: Result) -> str:
    """SVG: CPU per chunk of each gateway, by number of streams."""
    rounds: Mapping[str, Sequence[Round]] = result["rounds"]
    counts = list(dict.fromkeys(key for values in rounds.values() for key in values[0]["chunk_us"]))
    lines = {
        name: [(key, median) for key in counts if (median := _chunk_us(values, key)) is not None]
        for name, values in rounds.items()
        if values[0]["chunk_us"]
    }
    top = max((value for points in lines.values() for _, value in points), default=1.0) * 1.1
    width, height, left, bottom = 640, 320, 60, 40
    step = (width - left - 160) / max(1, len(counts) - 1)

    def at(key: str, value: float) -> tuple[float, float]:
        return left + counts.index(key) * step, (height - bottom) * (1 - value / top)

    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<line x1="{left}" y1="{height - bottom}" x2="{width - 160}" y2="{height - bottom}" stroke="black"/>',
        f'<text x="{left}" y="{height - 8}">streams</text><text x="4" y="14">us per chunk</text>',
    ]
    for key in counts:
        x, _ = at(key, 0)
        parts.append(f'<text x="{x}" y="{height - bottom + 16}" text-anchor="middle">{key}</text>')
    for number in range(5):
        value = top * number / 4
        parts.append(f'<text x="{left - 8}" y="{at(counts[0], value)[1] + 4}" text-anchor="end">{value:.0f}</text>')
    for (name, points), colour in zip(lines.items(), COLOURS * 2, strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        row = list(lines).index(name)
        parts.append(f'<text x="{width - 150}" y="{20 + row * 16}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _chunk_us(values: Sequence[Round], key: str) -> float | None:
    return _median(values, lambda each: each["chunk_us"].get(key))
