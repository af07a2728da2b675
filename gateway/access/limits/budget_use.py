"""How much of one budget is used: what the store has counted, and what this gateway has not written yet. Pure."""

from __future__ import annotations

from gateway.access.limits.amounts import UNIT_INDEX, AmountTuple
from gateway.access.limits.limit import Budget
from gateway.access.limits.windows import Windows

__all__ = ["BudgetUse"]


class BudgetUse:
    """One budget of one key in its current window.

    Usage counts in the window in which its request started: there it was reserved.

    Attributes:
        stored: The sum of all gateways, as last read from the store.
        unwritten: What requests of this gateway used and the store does not count yet.
    """

    __slots__ = ("_windows", "budget", "end", "index", "start", "stored", "unwritten")

    def __init__(self, budget: Budget, windows: Windows, now: float) -> None:
        self.budget = budget
        self.index = UNIT_INDEX[budget.unit]
        self._windows = windows
        self.stored = self.unwritten = 0.0
        self.start, self.end = windows.at(budget.window, now)

    def spent(self, now: float) -> float:
        """What is used of the window that contains `now`, in unix seconds; without reservations."""
        if not self.start <= now < self.end:
            self.start, self.end = self._windows.at(self.budget.window, now)
            self.stored = self.unwritten = 0.0
        return self.stored + self.unwritten

    def add(self, used: AmountTuple, at: float) -> None:
        """A request that started at `at` has ended."""
        if self.start <= at < self.end:
            self.unwritten += used[self.index]

    def written(self, used: AmountTuple, at: float) -> None:
        """The store counts now what a request used that started at `at`."""
        if self.start <= at < self.end:
            self.unwritten = max(0.0, self.unwritten - used[self.index])
