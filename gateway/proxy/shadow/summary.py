"""What an alias's shadow comparisons show: figures for both answers, and one sentence. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

from gateway.proxy.shadow.shadower import ShadowComparison, ShadowReport
from gateway.proxy.shadow.transcript import AnswerSummary

__all__ = ["summary"]

SMALL_SAMPLE = 30  # with fewer comparisons the p95 is a single request, too little to decide on


def summary(report: ShadowReport) -> dict[str, Any]:
    """As JSON, for the admin API and `cortex alias compare`.

    Times are ms, speeds tokens/s, shares 0 to 1; None where there is nothing to compute. `results` counts since the
    gateway's start: `compared`, `failed` (by the candidate), `cancelled` and `busy` (the shadow gave way),
    `not_loaded`, `too_large`.
    """
    comparisons = report.comparisons
    return {
        "alias": report.alias,
        "candidate": report.model,
        "compared": len(comparisons),
        "results": dict(report.results),
        "same_answer": _share(comparisons, lambda pair: pair.is_same),
        "same_finish_reason": _share(comparisons, lambda pair: pair.primary.finish_reason == pair.shadow.finish_reason),
        "target": _figures([pair.primary for pair in comparisons]),
        "shadow": _figures([pair.shadow for pair in comparisons]),
        "verdict": _sentence(report),
    }


def _figures(answers: Sequence[AnswerSummary]) -> dict[str, Any]:
    validities = [answer.calls_valid for answer in answers if answer.calls_valid is not None]
    return {
        "models": sorted({answer.model for answer in answers}),
        "first_token_ms": _spread([answer.first_token_ms for answer in answers]),
        "duration_ms": _spread([answer.duration_ms for answer in answers]),
        "tokens_per_s": _spread([answer.tokens_per_s for answer in answers]),
        "completion_tokens": _spread([answer.completion_tokens for answer in answers]),
        "finish_reasons": dict(Counter(answer.finish_reason or "none" for answer in answers).most_common()),
        "tool_calls": len(validities),
        "tool_calls_valid": sum(validities) / len(validities) if validities else None,
    }


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    p95 = quantiles(known, n=20, method="inclusive")[-1] if len(known) > 1 else known[0]
    return {"median": round(median(known), 3), "p95": round(p95, 3)}


def _share(comparisons: Sequence[ShadowComparison], test: Callable[[ShadowComparison], bool]) -> float | None:
    return sum(map(test, comparisons)) / len(comparisons) if comparisons else None


def _sentence(report: ShadowReport) -> str:
    """The result for a person. It begins with the size of the sample."""
    comparisons = report.comparisons
    if report.model is None:
        return f"alias '{report.alias}' has no shadow"
    if not comparisons:
        counts = ", ".join(f"{count} {result}" for result, count in sorted(report.results.items()))
        return "no requests compared yet" + (f": {counts}" if counts else "")
    only = "only " if len(comparisons) < SMALL_SAMPLE else ""
    before = median(pair.primary.duration_ms for pair in comparisons)
    after = median(pair.shadow.duration_ms for pair in comparisons)
    pace = f"takes {after / before:.2f} times as long" if before else f"takes {after} ms"
    same = _share(comparisons, lambda pair: pair.is_same) or 0.0
    failed = report.results.get("failed", 0)
    return (
        f"{only}{len(comparisons)} compared; {report.model} {pace} (median), "
        f"gives the same answer in {same:.0%}, failed {failed} times"
    )
