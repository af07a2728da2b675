"""Bets against "these two groups do not differ": an e-process for one question with two answers. Pure.

If nothing distinguishes two groups of requests, they are one group that was divided without regard to how each request
went. So of the k bad ones in a block of a + b, the number that falls to the a is hypergeometric, whatever the rate of
bad ones is: nothing has to be estimated, and nothing can be estimated wrongly. A bet that one group is worse by some
odds ratio pays the likelihood ratio of the noncentral hypergeometric to that. Between equals its wealth is a
martingale, so the chance that it *ever* exceeds 1/alpha, however often one looks, is at most alpha (Ville's
inequality). Why this and no other test: docs/decisions/0007-guards.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["Evidence"]

_LARGEST_LOG = 700.0  # beyond that a float ends


class Evidence:
    """One bet per odds ratio, each beginning with an equal part of a stake of 1."""

    def __init__(self, ratios: Sequence[float]) -> None:
        self._log_ratios = [math.log(ratio) for ratio in ratios]
        self._log_wealth = [0.0] * len(ratios)

    def take(self, new: int, old: int, bad_new: int, bad: int) -> None:
        """A block of so many new and old requests, of which so many were bad, and so many of those new."""
        if bad in {0, new + old}:
            return  # says nothing of who is worse
        fewest, most = max(0, bad - old), min(new, bad)
        ways = [_log_ways(new, part) + _log_ways(old, bad - part) for part in range(fewest, most + 1)]
        ways_in_all = _log_ways(new + old, bad)
        for index, log_ratio in enumerate(self._log_ratios):
            weighed = _log_sum([way + part * log_ratio for part, way in enumerate(ways, fewest)])
            self._log_wealth[index] += bad_new * log_ratio + ways_in_all - weighed

    @property
    def wealth(self) -> float:
        """What the stake has become: 1 in expectation between equals, and beyond 1/alpha with chance alpha at most."""
        total = _log_sum(self._log_wealth) - math.log(len(self._log_wealth))
        return math.exp(min(total, _LARGEST_LOG))


def _log_ways(whole: int, part: int) -> float:
    return math.lgamma(whole + 1) - math.lgamma(part + 1) - math.lgamma(whole - part + 1)


def _log_sum(logs: Sequence[float]) -> float:
    largest = max(logs)
    return largest + math.log(sum(math.exp(each - largest) for each in logs))
