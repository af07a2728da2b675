"""When a second neuron is asked as well: how long an alias's first tokens took lately, and what it may spend. No I/O.

An alias with `hedge` is told of here, others cost nothing. Everything is sync; who asks whom is `race.py`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import ceil

from catalogue.models import Alias
from gateway.telemetry.metrics import Metrics

__all__ = ["Hedging", "RecentQuantile"]

WINDOW = 256  # first tokens that are remembered per alias, model and kind of request: 4 KiB
MINIMUM_SAMPLE = 50  # of which the p95 is the third-longest; with fewer it is little but the longest
HISTORIES = 1000  # aliases come and go in a catalogue that is edited for months
BURST_REQUESTS = 200  # a budget that was not spent on so many requests is lost: it is of recent ones
# A token that comes at the p95 has come by then; and where all take the same time, that is when it comes.
TIE_S = 0.001


class RecentQuantile:
    """A quantile over the last `window` samples, exact. Adding one takes a microsecond or two, asking nothing."""

    __slots__ = ("_in_order", "_samples", "_share", "_window")

    def __init__(self, share: float, window: int) -> None:
        self._share = share
        self._window = window
        self._samples: deque[float] = deque()
        self._in_order: list[float] = []

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: float) -> None:
        """One more; the oldest is forgotten if there are too many."""
        if len(self._samples) >= self._window:
            del self._in_order[bisect_left(self._in_order, self._samples.popleft())]
        self._samples.append(sample)
        insort(self._in_order, sample)

    @property
    def value(self) -> float:
        """The smallest sample that is not exceeded by more than the rest of the share. There must be one."""
        return self._in_order[ceil(len(self._in_order) * self._share) - 1]


class Hedging:
    """What is known of the aliases that hedge.

    The first tokens of streams and the first bytes of other answers are things apart, and so are two models: each
    combination has a history of its own. The budget is the alias's: so many hundredths of a request are put by with
    every request for it, and a hedge takes a whole one. There is nothing to begin with, so that it holds at any time.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._histories: dict[tuple[str, str, bool], RecentQuantile] = {}
        self._savings: dict[str, float] = {}

    def after_s(self, alias: Alias, model: str, *, stream: bool) -> float | None:
        """A request begins: how long to wait for its first token before another is asked; None for ever."""
        hedge = alias.hedge
        if hedge is None:
            return None
        self._save(alias.name, hedge.budget_percent / 100)
        if hedge.after_seconds is not None:
            return hedge.after_seconds
        history = self._histories.get((alias.name, model, stream))
        return None if history is None or len(history) < MINIMUM_SAMPLE else history.value + TIE_S

    def spend(self, alias: Alias) -> bool:
        """Take what one hedge costs, if there is as much."""
        saved = self._savings.get(alias.name, 0.0)
        if saved < 1.0:
            return False
        self._savings[alias.name] = saved - 1.0
        return True

    def answered(self, alias: Alias, model: str, *, stream: bool, after_s: float) -> None:
        """A first token has come so many seconds after the first neuron was asked, from whichever it was.

        One that a hedge won came after the p95, as it would have without: so hedging does not move what it waits for.
        """
        key = (alias.name, model, stream)
        history = self._histories.get(key)
        if history is None:
            while len(self._histories) >= HISTORIES:
                del self._histories[next(iter(self._histories))]
            history = self._histories[key] = RecentQuantile(0.95, WINDOW)
        history.add(after_s)

    def ended(self, alias: Alias, model: str, result: str) -> None:
        """Count a hedge by what became of it."""
        self._metrics.hedges(alias.name, model, result).inc()

    def withheld(self, alias: Alias, model: str, reason: str) -> None:
        """Count one that there was a time for, but nothing else."""
        self._metrics.hedges_withheld(alias.name, model, reason).inc()

    def _save(self, alias: str, share: float) -> None:
        saved = self._savings.pop(alias, 0.0)
        while len(self._savings) >= HISTORIES:
            del self._savings[next(iter(self._savings))]
        self._savings[alias] = min(saved + share, max(1.0, BURST_REQUESTS * share))
