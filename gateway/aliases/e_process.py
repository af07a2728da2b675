"""An e-process: a sequential test that is valid however often one looks at it (anytime-valid). Pure.

The null hypothesis is that a request to the new target is bad with the same odds as one to the old target. Requests are
judged in blocks. Conditional on its margins (a new requests, b old ones, k bad ones in all), the number of bad requests
among the new ones then has a hypergeometric distribution, whatever the rate of bad requests is, so no rate has to be
estimated. Under the alternative that the odds differ by a factor (the odds ratio), it has Fisher's noncentral
hypergeometric distribution.

The ratio of the two likelihoods is an e-value: it is not negative, and its expectation under the null hypothesis is 1.
The product of the e-values of successive blocks is a test martingale, and so is the average of such products over
several odds ratios, which is what `EProcess` computes. By Ville's inequality, the probability under the null hypothesis
that a test martingale ever reaches 1/alpha is at most alpha.

References: A. Ramdas, P. Grünwald, V. Vovk, G. Shafer, "Game-theoretic statistics and safe anytime-valid inference",
Statistical Science 38(4), 2023, https://arxiv.org/abs/2210.01948. R. Turner, A. Ly, P. Grünwald, "Generic E-variables
for exact sequential k-sample tests that allow for optional stopping", 2024, https://arxiv.org/abs/2106.02693. Why this
test and no other: docs/decisions/0007-guards.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["EProcess"]

_LARGEST_LOG = 700.0  # exp of more overflows a float


class EProcess:
    """A mixture of likelihood ratios, one per odds ratio, all with the same weight."""

    def __init__(self, odds_ratios: Sequence[float]) -> None:
        self._log_odds_ratios = [math.log(odds_ratio) for odds_ratio in odds_ratios]
        self._log_likelihood_ratios = [0.0] * len(odds_ratios)

    def update(self, new: int, old: int, bad_new: int, bad: int) -> None:
        """Multiply by the e-value of one block.

        Args:
            new: Requests to the new target.
            old: Requests to the old target.
            bad_new: Bad requests to the new target.
            bad: Bad requests in all.
        """
        if bad in {0, new + old}:
            return  # only one outcome was possible: the e-value is 1
        fewest, most = max(0, bad - old), min(new, bad)
        log_ways = [_log_choose(new, part) + _log_choose(old, bad - part) for part in range(fewest, most + 1)]
        log_total = _log_choose(new + old, bad)
        for index, log_odds_ratio in enumerate(self._log_odds_ratios):
            log_noncentral_total = _log_sum(
                [log_way + part * log_odds_ratio for part, log_way in enumerate(log_ways, fewest)]
            )
            self._log_likelihood_ratios[index] += bad_new * log_odds_ratio + log_total - log_noncentral_total

    @property
    def value(self) -> float:
        """The e-value of all blocks so far; 1 before the first."""
        log_mean = _log_sum(self._log_likelihood_ratios) - math.log(len(self._log_likelihood_ratios))
        return math.exp(min(log_mean, _LARGEST_LOG))


def _log_choose(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def _log_sum(logs: Sequence[float]) -> float:
    largest = max(logs)
    return largest + math.log(sum(math.exp(each - largest) for each in logs))
