"""What is known about the requests to one target of a rollout's step: counts, shares and quantiles. Pure."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gateway.telemetry.observation import Observation

__all__ = [
    "FINISH_REASONS",
    "KEPT_VALUES",
    "TargetFigures",
    "TargetStatistics",
    "finish_reason_of",
    "quantile",
    "share",
]

KEPT_VALUES = 1000  # of each time and speed; enough for a p95
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "other")


@dataclass(frozen=True, slots=True)
class TargetFigures:
    """One target's figures, for operators. None if no request had the value."""

    requests: int
    failed: int
    first_token_p95_s: float | None
    tokens_per_s_median: float | None
    finish_reasons: Mapping[str, int]
    broken_tool_calls: int
    tool_calls: int


class TargetStatistics:
    """Counts of all requests to one target, and the latest `KEPT_VALUES` times and speeds.

    `abandoned` counts clients that left before the first token. They are not in `requests`; `abandoned_after_s` has how
    long they had waited.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.abandoned = 0
        self.errors: Counter[str] = Counter()
        self.abandoned_after_s: deque[float] = deque(maxlen=KEPT_VALUES)
        self.first_token_s: deque[float] = deque(maxlen=KEPT_VALUES)
        self.tokens_per_s: deque[float] = deque(maxlen=KEPT_VALUES)
        self.finish_reasons = dict.fromkeys(FINISH_REASONS, 0)
        self.tool_calls = 0
        self.broken_tool_calls = 0

    def add(self, observation: Observation) -> None:
        """Count one ended request."""
        if observation.failed is not None:
            self.requests += 1
            self.failed += observation.failed
        if observation.error is not None:
            self.errors[observation.error] += 1  # bounded: errors come from a closed list
        if observation.waited_s is not None:
            self.abandoned += 1
            self.abandoned_after_s.append(observation.waited_s)
        if observation.first_token_s is not None:
            self.first_token_s.append(observation.first_token_s)
        if observation.tokens_per_s is not None:
            self.tokens_per_s.append(observation.tokens_per_s)
        if (reason := finish_reason_of(observation)) is not None:
            self.finish_reasons[reason] += 1
        if observation.tool_calls_valid is not None:
            self.tool_calls += 1
            self.broken_tool_calls += not observation.tool_calls_valid

    def finish_reason_share(self, reason: str) -> float:
        """The share of answers that ended for this reason."""
        return share(self.finish_reasons[reason], sum(self.finish_reasons.values()))

    def wait_for_first_token_p95_s(self) -> float | None:
        """The p95 over all clients, those included that left before the first token.

        Of a target that never answers, there are only clients that left.
        """
        return quantile([*self.first_token_s, *self.abandoned_after_s], 0.95)

    def tokens_per_s_median(self) -> float | None:
        """The median speed."""
        return quantile(self.tokens_per_s, 0.5)

    def figures(self) -> TargetFigures:
        """The figures for operators."""
        return TargetFigures(
            self.requests,
            self.failed,
            quantile(self.first_token_s, 0.95),
            self.tokens_per_s_median(),
            {reason: count for reason, count in self.finish_reasons.items() if count},
            self.broken_tool_calls,
            self.tool_calls,
        )


def finish_reason_of(observation: Observation) -> str | None:
    """One of `FINISH_REASONS`; None if the answer had none."""
    if observation.finish_reason is None:
        return None
    return observation.finish_reason if observation.finish_reason in FINISH_REASONS else "other"


def share(part: int, whole: int) -> float:
    """`part / whole`; 0 of nothing."""
    return part / whole if whole else 0.0


def quantile(values: Collection[float], probability: float) -> float | None:
    """The nearest-rank quantile; None without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(probability * len(ordered)) - 1)] if ordered else None
