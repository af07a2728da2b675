"""What `perf.py` has measured: as a Markdown table, as a plot, and as a part of docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- begin: written by scripts/perf.py --docs -->", "<!-- end: scripts/perf.py -->"
PLOT = "performance.svg"
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#b8860b", "#6a4c93", "#444444", "#0e8f8f")

Round = Mapping[str, Any]
Result = Mapping[str, Any]


def table(result: Result) -> str:
    """Markdown: medians over the rounds, and in brackets the ratio to the floor (without one, to the first)."""
    rounds: Mapping[str, Sequence[Round]] = result["rounds"]
    base = "floor" if "floor" in rounds else next(iter(rounds))
    lines = [f"| median of {len(rounds[base])} rounds (ratio to {base}) | {' | '.join(rounds)} |"]
    lines.append("|---" * (len(rounds) + 1) + "|")
    for label, figure in _rows(rounds[base][0], result["direct_ttft_p50_ms"]):
        medians = {name: _median(values, figure) for name, values in rounds.items()}
        lines.append(f"| {label} | {' | '.join(_cell(value, medians[base]) for value in medians.values())} |")
    return "\n".join(lines)


def _median(values: Sequence[Round], figure: Callable[[Round], float | None]) -> float | None:
    known = [value for each in values if (value := figure(each)) is not None]
    return statistics.median(known) if known else None


def _cell(value: float | None, base: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f} ({value / base:.2f})" if base else f"{value:,.1f}"


def _rows(one: Round, direct_ms: float) -> Iterator[tuple[str, Callable[[Round], float | None]]]:
    """What the table has: a label, and how to get the figure of a round."""

    def by_key(name: str, key: str) -> Callable[[Round], float | None]:
        return lambda each: each[name].get(key)

    yield "requests/s, 16 connections, no stream", lambda each: each["requests_per_s"]
    for size in one["request_us"]:
        body = "" if size == "small" else f", body of {int(size) // 1000:,} KB"
        yield f"CPU per request{body}, us", by_key("request_us", size)
    for count in one["chunk_us"]:
        yield f"CPU per chunk at {count} streams, us", by_key("chunk_us", count)
    yield "CPU per translated chunk at 50 streams, us", lambda each: each["translated_chunk_us"] or None
    for count in one["ttft_p99_ms"]:
        yield f"TTFT p99 at {count} streams, ms", by_key("ttft_p99_ms", count)
    yield "TTFT p99 of 200 streams that start at once, ms", lambda each: each["burst_p99_ms"]
    first = next(iter(one["ttft_p50_ms"]), "50")
    yield f"added TTFT p50 at {first} streams, ms", lambda each: each["ttft_p50_ms"][first] - direct_ms
    for count in one["late_p99_ms"]:
        yield f"chunks late at {count} streams, p99, ms", by_key("late_p99_ms", count)
    for count in one["rss_kib_per_stream"]:
        yield f"RSS growth per stream at {count} streams, KiB", by_key("rss_kib_per_stream", count)


def write_docs(result: Result, docs: Path) -> None:
    """Replace the measured part of performance.md, and its plot."""
    page = docs / "performance.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    where = f"Measured {result['date']} on {result['machine']}; load average {result['load_average']}."
    text = f"{where}\n\n{table(result)}\n\n![CPU per chunk by number of streams]({PLOT})"
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    (docs / PLOT).write_text(plot(result), encoding="utf-8")


def plot(result: Result) -> str:
    """SVG: CPU per chunk of each gateway, by number of streams."""
    rounds: Mapping[str, Sequence[Round]] = result["rounds"]
    counts = list(next(iter(rounds.values()))[0]["chunk_us"])
    lines = {
        name: [(key, median) for key in counts if (median := _chunk_us(values, key)) is not None]
        for name, values in rounds.items()
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
