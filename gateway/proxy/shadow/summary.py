"""What the comparisons of an alias with its shadow amount to: figures for both sides, and one sentence. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

from gateway.proxy.shadow.shadower import Comparison, Verdict
from gateway.proxy.shadow.transcript import AnswerSummary

__all__ = ["summary"]

FEW = 30  # below this many comparisons a p95 is one request, and nobody should decide upon it


def summary(verdict: Verdict) -> dict[str, Any]:
    """As JSON, for the admin API and `cortex alias compare`.

    Times are ms, speeds tokens/s, shares 0 to 1; None where there is nothing to tell. `results` counts since the
    gateway's start: `compared`, `failed` (the candidate's fault), `cancelled` and `busy` (it gave way), `not_loaded`,
    `too_large`.
    """
    comparisons = verdict.comparisons
    return {
        "alias": verdict.alias,
        "candidate": verdict.model,
        "compared": len(comparisons),
        "results": dict(verdict.results),
        "same_answer": _share(comparisons, lambda pair: pair.same),
        "same_finish_reason": _share(comparisons, lambda pair: pair.primary.finish_reason == pair.shadow.finish_reason),
        "target": _side([pair.primary for pair in comparisons]),
        "shadow": _side([pair.shadow for pair in comparisons]),
        "verdict": _sentence(verdict),
    }


def _side(sides: Sequence[AnswerSummary]) -> dict[str, Any]:
    judged = [side.calls_valid for side in sides if side.calls_valid is not None]
    return {
        "models": sorted({side.model for side in sides}),
        "first_token_ms": _spread([side.first_token_ms for side in sides]),
        "duration_ms": _spread([side.duration_ms for side in sides]),
        "tokens_per_s": _spread([side.tokens_per_s for side in sides]),
        "completion_tokens": _spread([side.completion_tokens for side in sides]),
        "finish_reasons": dict(Counter(side.finish_reason or "none" for side in sides).most_common()),
        "tool_calls": len(judged),
        "tool_calls_valid": sum(judged) / len(judged) if judged else None,
    }


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    p95 = quantiles(known, n=20, method="inclusive")[-1] if len(known) > 1 else known[0]
    return {"median": round(median(known), 3), "p95": round(p95, 3)}


def _share(comparisons: Sequence[Comparison], test: Callable[[Comparison], bool]) -> float | None:
    return sum(map(test, comparisons)) / len(comparisons) if comparisons else None


def _sentence(verdict: Verdict) -> str:
    """For a person; says how much there is to go by before it says anything else."""
    comparisons = verdict.comparisons
    if verdict.model is None:
        return f"'{verdict.alias}' has no shadow"
    if not comparisons:
        told = ", ".join(f"{count} {result}" for result, count in sorted(verdict.results.items()))
        return "nothing compared yet" + (f": {told}" if told else "")
    seldom = f"only {len(comparisons)} compared; " if len(comparisons) < FEW else f"{len(comparisons)} compared; "
    before = median(pair.primary.duration_ms for pair in comparisons)
    after = median(pair.shadow.duration_ms for pair in comparisons)
    pace = f"{verdict.model} takes {after / before:.2f} times as long" if before else f"{verdict.model} took {after} ms"
    same = _share(comparisons, lambda pair: pair.same) or 0.0
    failed = verdict.results.get("failed", 0)
    return f"{seldom}{pace} (median), says the same in {same:.0%}, failed {failed} times"
