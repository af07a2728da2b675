"""Evaluates the bench's samples: verdicts, statistics, tables, a plot. Pure; `bench.py` sends the requests."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from rich.console import RenderableType
from rich.table import Table

__all__ = ["CASES", "Case", "Row", "Sample", "Verdict", "exit_code", "judge", "plot", "ratio", "summarise", "tables"]

PROBE = "What is the capital of Georgia? Answer with the city only."
LONG_PROBE = "What is the capital of Georgia? Name it, then describe it in a hundred words."
PROBE_ANSWER = "Tbilisi"
# The probe on the reference machines, whole answer, warm. On other machines only the ratio is comparable.
REFERENCE_SMALL_S, REFERENCE_LARGE_S = 2.5, 6.7
TOKENS_FOR_A_SPEED = 8  # with fewer, tokens/s is the jitter of one or two reads

Phase = Literal["cold", "warm-up", "measured"]
Via = Literal["gateway", "neuron"]
Verdict = Literal["correct", "wrong answer", "wrong model", "unavailable"]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request; `long` applies to the prompt and, as far as the model writes one, to the answer."""

    name: str
    stream: bool
    long: bool


CASES = (
    Case("short", stream=False, long=False),
    Case("short stream", stream=True, long=False),
    Case("long", stream=False, long=True),
    Case("long stream", stream=True, long=True),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and its result; a line of the JSONL.

    `subject` is the requested name, `target` the model it stood for. `total_s` runs from sending to the last byte,
    `first_token_s` to the first generated delta (not the role chunk), `decode_s` from there to the last one; the latter
    two are None without a stream. `round` pairs a gateway's sample with its neuron's. `header_model` and `body_model`
    name the model that answered. `error` is why there is no whole answer.
    """

    subject: str
    target: str
    case: str
    via: Via
    phase: Phase
    round: int
    total_s: float
    first_token_s: float | None = None
    decode_s: float | None = None
    tokens_out: int | None = None
    node: str | None = None
    header_model: str | None = None
    body_model: str | None = None
    text: str = ""
    error: str | None = None


# Verdicts .............................................................................................................


def judge(sample: Sample, known: AbstractSet[str]) -> Verdict:
    """The verdict on a sample. `known` are the ids of `/v1/models`.

    "wrong model" needs evidence: the gateway's header, or a body that names *another* model of this gateway. Engines
    use all kinds of names for themselves (`name@main`). An answer that began while its model loaded has no header yet.
    """
    if sample.error is not None:
        return "unavailable"
    if sample.header_model not in {None, sample.target}:
        return "wrong model"
    if sample.body_model in known - {sample.target, sample.subject}:
        return "wrong model"
    return "correct" if PROBE_ANSWER.casefold() in sample.text.casefold() else "wrong answer"


# An answer by the wrong model is worse than no answer, and that is worse than a wrong answer.
_EXIT_CODES: tuple[tuple[Verdict, int], ...] = (("wrong model", 3), ("unavailable", 2), ("wrong answer", 1))


def exit_code(samples: Iterable[Sample], known: AbstractSet[str]) -> int:
    """0 all correct, 1 a wrong answer, 2 unavailable (or no request), 3 another model than the alias's target.

    Of several the most severe: 3, 2, 1. Only requests through the gateway count, warm-up and cold starts included.
    """
    verdicts = {judge(sample, known) for sample in samples if sample.via == "gateway"}
    if not verdicts:
        return 2
    return next((code for verdict, code in _EXIT_CODES if verdict in verdicts), 0)


# Statistics ...........................................................................................................


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 95th percentile by nearest rank: a value that was measured (of fewer than 20, the largest)."""

    median: float
    p95: float


def spread(values: Sequence[float]) -> Spread | None:
    """None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return Spread(statistics.median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1])


@dataclass(frozen=True, slots=True)
class Row:
    """One subject in one case, measured samples through the gateway only. Seconds; overheads are medians of pairs."""

    subject: str
    case: str
    n: int
    correct: int
    total: Spread | None
    first_token: Spread | None
    tokens_per_s: float | None
    tokens_out: float | None
    overhead_total_s: float | None
    overhead_first_token_s: float | None


def summarise(samples: Sequence[Sample], known: AbstractSet[str]) -> list[Row]:
    """One row for each subject and case, in the order of the requests. Failed samples count in `n` only."""
    measured = [sample for sample in samples if sample.phase == "measured"]
    keys = dict.fromkeys((sample.subject, sample.case) for sample in measured)
    return [_row([sample for sample in measured if (sample.subject, sample.case) == key], key, known) for key in keys]


def _row(samples: list[Sample], key: tuple[str, str], known: AbstractSet[str]) -> Row:
    through_gateway = [sample for sample in samples if sample.via == "gateway"]
    answered = [sample for sample in through_gateway if sample.error is None]
    return Row(
        subject=key[0],
        case=key[1],
        n=len(through_gateway),
        correct=sum(judge(sample, known) == "correct" for sample in through_gateway),
        total=spread([sample.total_s for sample in answered]),
        first_token=spread(_known(sample.first_token_s for sample in answered)),
        tokens_per_s=_median(_known(tokens_per_s(sample) for sample in answered)),
        tokens_out=_median(_known(sample.tokens_out for sample in answered)),
        overhead_total_s=_overhead(samples, lambda sample: sample.total_s),
        overhead_first_token_s=_overhead(samples, lambda sample: sample.first_token_s),
    )


def tokens_per_s(sample: Sample) -> float | None:
    """Decode speed: the tokens after the first over their time, so both sides count the same tokens."""
    if not sample.decode_s or sample.tokens_out is None or sample.tokens_out < TOKENS_FOR_A_SPEED:
        return None
    return (sample.tokens_out - 1) / sample.decode_s


def _overhead(samples: list[Sample], value: Callable[[Sample], float | None]) -> float | None:
    """The median of gateway minus neuron, pair by pair: drift of the machine affects both halves of a pair."""
    values = {(sample.via, sample.round): value(sample) for sample in samples if sample.error is None}
    pairs = [(values.get(("gateway", at)), values.get(("neuron", at))) for at in sorted({at for _, at in values})]
    return _median([gateway - neuron for gateway, neuron in pairs if gateway is not None and neuron is not None])


def ratio(rows: Sequence[Row], small: str, large: str) -> float | None:
    """Median total of `large` over that of `small` in the first case that both answered."""
    totals = {(row.subject, row.case): row.total.median for row in rows if row.total is not None}
    for case in (case.name for case in CASES):
        if (small, case) in totals and (large, case) in totals:
            return totals[large, case] / totals[small, case]
    return None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


# Tables ...............................................................................................................


def tables(samples: Sequence[Sample], subjects: Sequence[str], known: AbstractSet[str]) -> list[RenderableType]:
    """The report for a terminal: measurements, cold starts, failures, and the ratio.

    `subjects` from small to large, as they were given.
    """
    rows = summarise(samples, known)
    parts: list[RenderableType] = [
        _measured_table(subject, [row for row in rows if row.subject == subject])
        for subject in dict.fromkeys(row.subject for row in rows)
    ]
    cold = [sample for sample in samples if sample.phase == "cold"]
    if cold:
        parts.append(_cold_table(cold, known))
    bad = [sample for sample in samples if sample.via == "gateway" and judge(sample, known) != "correct"]
    if bad:
        parts.append(_bad_table(bad, known))
    parts += _ratio_line(rows, subjects)
    return parts


def _measured_table(subject: str, rows: Sequence[Row]) -> Table:
    table = _table(f"{subject}, warm, through the gateway", "case")
    for name in ("n", "correct", "total s\nmedian", "\np95", "TTFT s\nmedian", "\np95", "tok/s", "tokens\nout"):
        table.add_column(name, justify="right")
    for name in ("overhead ms\ntotal", "\nTTFT"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.case,
            str(row.n),
            str(row.correct),
            *_spread_cells(row.total),
            *_spread_cells(row.first_token),
            _cell(row.tokens_per_s, 1),
            _cell(row.tokens_out, 0),
            _cell(row.overhead_total_s, 1, 1000),
            _cell(row.overhead_first_token_s, 1, 1000),
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, collapse_padding=True
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _cold_table(samples: Sequence[Sample], known: AbstractSet[str]) -> Table:
    table = _table("cold starts: load included", "requested", "neuron", "total s", "TTFT s", "verdict")
    for sample in samples:
        verdict = judge(sample, known)
        cells = (_cell(sample.total_s, 3), _cell(sample.first_token_s, 3))
        table.add_row(sample.subject, sample.node or "-", *cells, verdict)
    return table


def _bad_table(samples: Sequence[Sample], known: AbstractSet[str]) -> Table:
    table = _table("not correct", "requested", "case", "phase", "verdict", "why")
    for sample in samples:
        verdict = judge(sample, known)
        by = f"{sample.header_model or sample.body_model}, expected {sample.target}; body says {sample.body_model}"
        why = sample.error or (by if verdict == "wrong model" else sample.text[:100])
        table.add_row(sample.subject, sample.case, sample.phase, verdict, why)
    return table


def _ratio_line(rows: Sequence[Row], subjects: Sequence[str]) -> list[RenderableType]:
    if len(subjects) < 2 or (found := ratio(rows, subjects[0], subjects[-1])) is None:
        return []
    reference = REFERENCE_LARGE_S / REFERENCE_SMALL_S
    sentence = f"{subjects[-1]} takes {found:.2f} times as long as {subjects[0]}"
    return [f"{sentence} (reference: {REFERENCE_SMALL_S} s, {REFERENCE_LARGE_S} s, ratio {reference:.2f})"]


def _spread_cells(values: Spread | None) -> tuple[str, str]:
    return ("-", "-") if values is None else (_cell(values.median, 3), _cell(values.p95, 3))


def _cell(value: float | None, digits: int, factor: float = 1) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


# The plot: one HTML file that needs nothing but a browser .............................................................

_ROW_PX, _LEFT_PX, _WIDTH_PX = 26, 300, 700


def plot(samples: Sequence[Sample]) -> str:
    """Every measured sample as a dot on a line of seconds, a row for each subject and case; an HTML document."""
    measured = [sample for sample in samples if sample.phase == "measured" and sample.error is None]
    rows = list(dict.fromkeys((sample.subject, sample.case) for sample in measured))
    longest_s = max((sample.total_s for sample in measured), default=1.0)
    marks = [_row_label(at, *row) for at, row in enumerate(rows)]
    for sample in measured:
        y = _y(rows.index((sample.subject, sample.case)))
        marks.append(_dot(sample.total_s, longest_s, y, sample.via))
        if sample.first_token_s is not None:
            marks.append(_dot(sample.first_token_s, longest_s, y, f"{sample.via} first"))
    marks += _axis(longest_s, len(rows))
    height = _y(len(rows)) + _ROW_PX
    return _PAGE.format(width=_LEFT_PX + _WIDTH_PX + 40, height=height, marks="\n".join(marks))


def _y(row: int) -> int:
    return _ROW_PX * (row + 1)


def _x(seconds: float, longest_s: float) -> float:
    return round(_LEFT_PX + _WIDTH_PX * seconds / longest_s, 1)


def _dot(seconds: float, longest_s: float, y: int, kind: str) -> str:
    title = f"{kind}: {seconds:.3f} s"
    return f'<circle class="{kind}" cx="{_x(seconds, longest_s)}" cy="{y}" r="4"><title>{title}</title></circle>'


def _row_label(at: int, subject: str, case: str) -> str:
    return f'<text x="{_LEFT_PX - 12}" y="{_y(at) + 4}" text-anchor="end">{html.escape(f"{subject}, {case}")}</text>'


def _axis(longest_s: float, rows: int) -> list[str]:
    y = _y(rows)
    ticks = [longest_s * part / 5 for part in range(6)]
    line = f'<line x1="{_LEFT_PX}" x2="{_LEFT_PX + _WIDTH_PX}" y1="{y - 8}" y2="{y - 8}" stroke="currentColor"/>'
    return [line] + [
        f'<text x="{_x(tick, longest_s)}" y="{y + 10}" text-anchor="middle">{tick:.2f} s</text>' for tick in ticks
    ]


_PAGE = """<!doctype html>
<meta charset="utf-8"><title>cortex bench</title>
<style>
body {{ font: 13px system-ui, sans-serif; margin: 2em; }} text {{ font: 12px system-ui, sans-serif; }}
.gateway {{ fill: #1f77b4; fill-opacity: .6; }} .neuron {{ fill: #ff7f0e; fill-opacity: .6; }}
.first {{ fill-opacity: 0; }} .gateway.first {{ stroke: #1f77b4; }} .neuron.first {{ stroke: #ff7f0e; }}
</style>
<p>Blue: through the gateway. Orange: the neuron directly. Filled: whole answer. Ring: first generated token.</p>
<svg style="max-width:100%;height:auto" width="{width}" height="{height}">
{marks}
</svg>
"""
