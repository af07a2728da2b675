"""Small charts as SVG: bars, ranges and lines, each value with its label. Pure.

Colours are classes (`s1` to `s4` for series), so that the page's style sheet decides about light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Line", "Range", "bars", "lines", "ranges"]

WIDTH = 720
_LABEL, _ROW = 210, 34  # px: left of a bar, and per row
_CHARACTER = 7.3  # px of the text at the right of a bar, on average


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, its text at the right, and its class."""

    label: str
    value: float
    text: str
    style: str


@dataclass(frozen=True, slots=True)
class Range:
    """A line from a low to a high value with a dot at the low one, and its text at the right."""

    label: str
    low: float
    high: float
    text: str
    style: str


@dataclass(frozen=True, slots=True)
class Line:
    """One series: a value per position, None where there is none."""

    label: str
    values: Sequence[float | None]
    style: str


def bars(rows: Sequence[Bar], title: str) -> str:
    """Horizontal bars from 0."""
    longest, room, marks = max((row.value for row in rows), default=0) or 1, _room(rows), []
    for at, row in enumerate(rows):
        y, width = at * _ROW, max(2.0, room * row.value / longest)
        marks.append(_label(row.label, y))
        marks.append(
            f'<rect class="{row.style}" x="{_LABEL}" y="{y + 8}" width="{width:.1f}" height="18" rx="3">'
            f"<title>{escape(row.label)}: {escape(row.text)}</title></rect>"
        )
        marks.append(f'<text class="value" x="{_LABEL + width + 8:.1f}" y="{y + 22}">{escape(row.text)}</text>')
    return _svg(marks, len(rows) * _ROW + 4, title)


def ranges(rows: Sequence[Range], title: str, unit: str) -> str:
    """Ranges on one scale from 0, with a few vertical lines."""
    longest, room, height = max((row.high for row in rows), default=0) or 1, _room(rows), len(rows) * _ROW
    ticks, marks = _ticks(longest), []
    for tick in ticks:
        x = _LABEL + room * tick / longest
        marks.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
        marks.append(f'<text class="tick" x="{x:.1f}" y="{height + 16}" text-anchor="middle">{tick:g} {unit}</text>')
    for at, row in enumerate(rows):
        y, low, high = at * _ROW + 17, _LABEL + room * row.low / longest, _LABEL + room * row.high / longest
        marks.append(_label(row.label, at * _ROW))
        marks.append(f'<line class="{row.style} range" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
        marks.append(
            f'<circle class="{row.style}" cx="{low:.1f}" cy="{y}" r="6"><title>{escape(row.label)}: {escape(row.text)}'
            "</title></circle>"
        )
        marks.append(f'<text class="value" x="{max(high, low + 6) + 8:.1f}" y="{y + 5}">{escape(row.text)}</text>')
    return _svg(marks, height + 24, title)


def lines(positions: Sequence[str], series: Sequence[Line], title: str, unit: str) -> str:
    """Lines over a few positions at equal distances; the last value of each series has its label."""
    top = max((value for line in series for value in line.values if value is not None), default=0) or 1
    left, right, height = 70, 190, 220
    step = (WIDTH - left - right) / max(1, len(positions) - 1)
    ticks, marks = _ticks(top), []
    for tick in ticks:
        y = 10 + height * (1 - tick / top)
        marks.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for at, position in enumerate(positions):
        x = left + at * step
        marks.append(f'<text class="tick" x="{x:.1f}" y="{height + 30}" text-anchor="middle">{escape(position)}</text>')
    taken: list[float] = []
    for line in series:
        points = [
            (left + at * step, 10 + height * (1 - value / top), value)
            for at, value in enumerate(line.values)
            if value is not None
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        marks.append(f'<polyline class="{line.style} path" points="{path}"/>')
        for x, y, value in points:
            marks.append(
                f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="5">'
                f"<title>{escape(line.label)}: {value:.3g} {escape(unit)}</title></circle>"
            )
        if points:
            x, y, value = points[-1]
            while any(abs(y - other) < 18 for other in taken):  # two labels must not lie on each other
                y += 18
            taken.append(y)
            text = f"{value:.3g} {unit}, {line.label}"
            marks.append(f'<text class="value" x="{x + 12:.1f}" y="{y + 5:.1f}">{escape(text)}</text>')
    return _svg(marks, height + 40, title)


def _room(rows: Sequence[Bar | Range]) -> float:
    """The width of the longest bar, so that the longest text fits beside it."""
    return WIDTH - _LABEL - 16 - _CHARACTER * max((len(row.text) for row in rows), default=0)


def _label(text: str, y: int) -> str:
    shown = text if len(text) <= 30 else f"…{text[-29:]}"
    return f'<text class="label" x="{_LABEL - 12}" y="{y + 22}" text-anchor="end">{escape(shown)}</text>'


def _ticks(longest: float) -> list[float]:
    """Three to six round numbers from 0."""
    size = 10.0 ** math.floor(math.log10(longest / 5))
    step = next(factor * size for factor in (1, 2, 5, 10) if longest / (factor * size) <= 5)
    return [round(at * step, 9) for at in range(int(longest / step) + 1)]


def _svg(marks: Sequence[str], height: float, title: str) -> str:
    body = "\n".join(marks)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">\n'
        f"<title>{escape(title)}</title>\n{body}\n</svg>"
    )
