"""Whether a series of measurements is flat or growing: the trend of scripts/soak."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

__all__ = ["Trend", "trend_of"]

LEAST_SAMPLES = 4
"""Below that, one sample decides the slope."""


@dataclass(frozen=True)
class Trend:
    """A line through the samples after the warm-up.

    Args:
        first, last: The first and the last sample of all.
        settled, end: Where the line is at the end of the warm-up and at the end.
        per_hour: Its slope.
        tolerance: How much the line may rise from `settled` to `end`.
    """

    first: float
    last: float
    settled: float
    end: float
    per_hour: float
    tolerance: float

    @property
    def rise(self) -> float:
        """From the end of the warm-up to the end."""
        return self.end - self.settled

    @property
    def is_flat(self) -> bool:
        """The line rises by no more than the tolerance."""
        return self.rise <= self.tolerance


def trend_of(samples: Sequence[tuple[float, float]], warm_up_s: float, tolerance: float) -> Trend | None:
    """The trend of (s, value) samples, None if too few are left after the warm-up.

    The line is that of Theil and Sen: the median of the slopes between all pairs of samples, so that a few samples that
    an unlucky moment raised do not turn it.
    """
    settled = [(at, value) for at, value in samples if at >= warm_up_s]
    if len(settled) < LEAST_SAMPLES:
        return None
    slope = statistics.median(
        (later - earlier) / (then - at) for (at, earlier), (then, later) in combinations(settled, 2)
    )
    level = statistics.median(value - slope * at for at, value in settled)
    begin_s, end_s = settled[0][0], settled[-1][0]
    return Trend(
        first=samples[0][1],
        last=samples[-1][1],
        settled=level + slope * begin_s,
        end=level + slope * end_s,
        per_hour=slope * 3600,
        tolerance=tolerance,
    )
