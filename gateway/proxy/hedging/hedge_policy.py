"""When a request of an alias with `hedge` gets a second attempt, and how many the alias may have. No I/O.

Requests of other aliases never come here. Everything is synchronous; running the two attempts is `hedge_race.py`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import ceil

from catalogue.models import Alias
from gateway.telemetry.metrics import Metrics

__all__ = ["HedgePolicy", "RecentQuantile"]

WINDOW = 256  # first-token times kept per alias, model and kind of request: 4 KiB
MINIMUM_SAMPLE = 50  # the p95 of 50 is the third-longest; of fewer it is little but the longest
HISTORIES = 1000  # a catalogue that is edited for months has many aliases come and go
BURST_REQUESTS = 200  # an alias saves up budget from at most this many requests
# A token that comes at the p95 has come by then; and where every request takes the same time, that is when it comes.
TIE_S = 0.001


class RecentQuantile:
    """A quantile over the last `window` samples, exact. `add` takes one to two microseconds."""

    __slots__ = ("_in_order", "_samples", "_share", "_window")

    def __init__(self, share: float, window: int) -> None:
        self._share = share
        self._window = window
        self._samples: deque[float] = deque()
        self._in_order: list[float] = []

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: float) -> None:
        """Add a sample; drop the oldest one if the window is full."""
        if len(self._samples) >= self._window:
            del self._in_order[bisect_left(self._in_order, self._samples.popleft())]
        self._samples.append(sample)
        insort(self._in_order, sample)

    @property
    def value(self) -> float:
        """The smallest sample that at least `share` of the samples do not exceed. There must be a sample."""
        return self._in_order[ceil(len(self._in_order) * self._share) - 1]


class HedgePolicy:
    """The first-token times and the hedging budget of each alias that hedges.

    Each combination of alias, model and kind of request (stream or not) has its own history. The budget is the alias's:
    every request adds `budget_percent` hundredths of a hedge, and a hedge costs one. It starts empty, so the share of
    hedged requests never exceeds `budget_percent`.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._histories: dict[tuple[str, str, bool], RecentQuantile] = {}
        self._budgets: dict[str, float] = {}

    def delay_s(self, alias: Alias, model: str, *, stream: bool) -> float | None:
        """Add a request to the alias's budget. Returns how long to wait for its first token before hedging, in seconds.

        None if the request is not to be hedged: the alias has no `hedge`, or too few samples so far.
        """
        hedge = alias.hedge
        if hedge is None:
            return None
        self._add_to_budget(alias.name, hedge.budget_percent / 100)
        if hedge.after_seconds is not None:
            return hedge.after_seconds
        history = self._histories.get((alias.name, model, stream))
        return None if history is None or len(history) < MINIMUM_SAMPLE else history.value + TIE_S

    def spend(self, alias: Alias) -> bool:
        """Take the cost of one hedge from the alias's budget. False if the budget is too small."""
        budget = self._budgets.get(alias.name, 0.0)
        if budget < 1.0:
            return False
        self._budgets[alias.name] = budget - 1.0
        return True

    def add_first_token(self, alias: Alias, model: str, *, stream: bool, after_s: float) -> None:
        """Record the time from the start of the first attempt to the first token, whichever attempt it came from.

        A token that a hedge won comes later than the p95, as it would have without the hedge. So hedging does not move
        the p95 that triggers it.
        """
        key = (alias.name, model, stream)
        history = self._histories.get(key)
        if history is None:
            while len(self._histories) >= HISTORIES:
                del self._histories[next(iter(self._histories))]
            history = self._histories[key] = RecentQuantile(0.95, WINDOW)
        history.add(after_s)

    def count_hedge(self, alias: Alias, model: str, result: str) -> None:
        """Count a hedge by its result: `won`, `lost`, `failed` or `cancelled`."""
        self._metrics.hedges(alias.name, model, result).inc()

    def count_withheld(self, alias: Alias, model: str, reason: str) -> None:
        """Count a hedge that was due but not sent, for want of a `replica` or of `budget`."""
        self._metrics.hedges_withheld(alias.name, model, reason).inc()

    def _add_to_budget(self, alias: str, share: float) -> None:
        budget = self._budgets.pop(alias, 0.0)
        while len(self._budgets) >= HISTORIES:
            del self._budgets[next(iter(self._budgets))]
        self._budgets[alias] = min(budget + share, max(1.0, BURST_REQUESTS * share))
