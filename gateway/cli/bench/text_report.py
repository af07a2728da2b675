"""The report on a terminal: the same figures as tables. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gateway.cli.bench.figures import REFERENCE_LARGE_S, REFERENCE_RATIO, REFERENCE_SMALL_S, Figures, Spread
from gateway.cli.bench.questions import KINDS
from gateway.cli.terminal import table

__all__ = ["text_report"]


def text_report(figures: Figures) -> Iterator[RenderableType]:
    """Its parts, in order."""
    if figures.simulated:
        yield Text("simulated: the times are those of simulated neurons, and their answers are made up", style="yellow")
    yield _tiers(figures)
    if not figures.simulated:
        yield _correctness(figures)
    if figures.loads:
        yield _loads(figures)
    if figures.cold:
        yield _cold(figures)
    if figures.ratio is not None:
        small, large = figures.tiers[0].tier, figures.tiers[-1].tier
        reference = f"reference: {REFERENCE_SMALL_S} s, {REFERENCE_LARGE_S} s, ratio {REFERENCE_RATIO:.2f}"
        yield f"{large} takes {figures.ratio:.2f} times as long as {small} ({reference})"


def _tiers(figures: Figures) -> Table:
    result = table("tiers", "tier", "model", "probe s", "first token s", "answer s", "tokens/s", "failed", "USD/1000")
    for tier in figures.tiers:
        result.add_row(
            tier.tier,
            tier.model,
            _spread(tier.probe),
            _spread(tier.first_token),
            _spread(tier.total),
            _number(tier.tokens_per_s),
            str(tier.failed),
            "-" if tier.usd_per_1000 is None else f"{tier.usd_per_1000:.4g}",
        )
    return result


def _correctness(figures: Figures) -> Table:
    result = table("correct answers", "tier", *KINDS, "all")
    for tier in figures.tiers:
        cells = [f"{tier.correct[kind]}/{tier.asked[kind]}" for kind in KINDS]
        result.add_row(tier.tier, *cells, f"{sum(tier.correct.values())}/{sum(tier.asked.values())}")
    return result


def _loads(figures: Figures) -> Table:
    result = table(
        "requests at a time", "tier", "at a time", "failed", "first token s", "answer s", "tokens/s each", "together"
    )
    for load in figures.loads:
        result.add_row(
            load.tier,
            str(load.concurrency),
            str(load.failed),
            _spread(load.first_token),
            _spread(load.total),
            _number(load.tokens_per_s),
            _number(load.all_tokens_per_s),
        )
    return result


def _cold(figures: Figures) -> Table:
    result = table("cold starts, load included", "model", "neuron", "first token s", "answer s", "failure")
    for each in figures.cold:
        first = "-" if each.first_token_s is None else f"{each.first_token_s:.2f}"
        result.add_row(each.model, each.node or "-", first, f"{each.total_s:.2f}", each.reason or "-")
    return result


def _spread(spread: Spread | None) -> str:
    """Median and 95th percentile."""
    return "-" if spread is None else f"{spread.median:.2f} ({spread.p95:.2f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
