"""Is the new target worse than the old one? Sequential tests over the requests of one step of a rollout. Pure.

Two groups of requests, those that went to the old target and those that went to the new one, and of each request a few
figures. Each guard asks one question of them, and bets on the answer (`evidence.py`); one that has won enough is sure.
When a rollout looks, what it does then, and what it does meanwhile is `rollout.py`'s part.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from gateway.aliases.e_process import Evidence
from gateway.telemetry.observation import Observation

__all__ = ["DEFAULTS", "DEFAULT_ALPHA", "DEFAULT_MINIMUM", "Comparison", "Figures", "GuardName", "Trip"]

GuardName: TypeAlias = Literal["errors", "ttft", "speed", "finish", "tools"]

# How much worse the new target may look before a guard can trip, however sure it is that there is *some* difference.
DEFAULTS: Mapping[GuardName, float] = {
    "errors": 0.02,  # its share of failed requests, above the old one's
    "ttft": 0.25,  # its p95 time to first token, beyond the old one's, as a fraction of that
    "speed": 0.20,  # its median tokens per second, below the old one's, as a fraction of that
    "finish": 0.10,  # its share of any one finish reason, on either side of the old one's
    "tools": 0.02,  # its share of answers with broken tool calls, above the old one's
}
DEFAULT_ALPHA = 0.01  # the chance that an equal target is ever rolled back, by any guard at any step
DEFAULT_MINIMUM = 20  # requests at the new target, and at the old, before a step may end either way

BLOCK_REQUESTS = 5  # of each group at least; smaller blocks waste evidence, larger ones keep it waiting
BLOCK_LIMIT = 1000  # of either group at most
CALIBRATION_REQUESTS = 20  # of the old group, from which the first thresholds come
SURE = 1_000_000  # beyond this nobody counts
KEPT_VALUES = 1000  # of either group, for thresholds and for what people are told
_WORSE = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # the odds ratios that are betted on
_DIFFERENT = (*_WORSE, *(1 / ratio for ratio in _WORSE))
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "other")


@dataclass(frozen=True, slots=True)
class Trip:
    """A guard that is sure: which, in words with figures, and how sure."""

    guard: GuardName
    words: str
    evidence: float

    def __str__(self) -> str:
        steps = f"{self.evidence:,.0f}" if self.evidence < SURE else f"more than {SURE:,}"
        return f"{self.guard}: {self.words} (between equals once in {steps} steps)"


@dataclass(frozen=True, slots=True)
class Figures:
    """One group of requests, for people. None where there is nothing to tell."""

    requests: int
    failed: int
    first_token_p95_s: float | None
    tokens_per_s_median: float | None
    finish_reasons: Mapping[str, int]
    broken_tool_calls: int
    tool_calls: int


class Comparison:
    """The evidence of one step, request by request. Sync throughout.

    Args:
        guards: What is watched, and how much worse each may look.
        alpha: The chance that one of these guards ever trips between equals; the caller divides it among steps.
        minimum: No guard trips, and nothing is `enough`, before each group has so many requests. Those whose clients
            have left count for the first: they may be all there are of a target that never answers.
        old, new: What to call the targets.
    """

    def __init__(self, guards: Mapping[GuardName, float], *, alpha: float, minimum: int, old: str, new: str) -> None:
        self.minimum = minimum
        self._limit = max(1, len(guards)) / alpha
        self._names = old, new
        self._groups = _Group(), _Group()
        self._undecided = False  # there is evidence that was not looked at
        self._tests: list[_Test] = [_TESTS[guard](guard, tolerance) for guard, tolerance in guards.items()]

    def add(self, seen: Observation, *, is_new: bool) -> None:
        """One request has ended."""
        self._groups[is_new].add(seen)
        for test in self._tests:
            self._undecided = test.add(seen, is_new=is_new) or self._undecided

    @property
    def enough(self) -> bool:
        """Whether both groups have the minimum of requests that came to an end."""
        return all(group.requests >= self.minimum for group in self._groups)

    @property
    def _may_trip(self) -> bool:
        return all(group.requests + group.left >= self.minimum for group in self._groups)

    @property
    def requests(self) -> tuple[int, int]:
        """How many went to the old target, and to the new."""
        return self._groups[0].requests, self._groups[1].requests

    def trip(self) -> Trip | None:
        """The guard that is surest that the new target is worse, if any is sure enough."""
        if not self._may_trip or not self._undecided:
            return None
        self._undecided = False
        sure = [test for test in self._tests if test.evidence >= self._limit and test.matters(*self._groups)]
        if not sure:
            return None
        surest = max(sure, key=lambda test: test.evidence)
        return Trip(surest.guard, surest.words(*self._groups, *self._names), surest.evidence)

    def figures(self) -> tuple[Figures, Figures]:
        """Old and new, side by side."""
        return self._groups[0].figures(), self._groups[1].figures()


# One group of requests...


class _Group:
    """What is known of the requests to one target. Values are kept up to a limit, counts for ever."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.left = 0  # clients that had waited in vain
        self.errors: Counter[str] = Counter()
        self.waited_s: deque[float] = deque(maxlen=KEPT_VALUES)
        self.first_token_s: deque[float] = deque(maxlen=KEPT_VALUES)
        self.tokens_per_s: deque[float] = deque(maxlen=KEPT_VALUES)
        self.reasons = dict.fromkeys(FINISH_REASONS, 0)
        self.tool_calls = 0
        self.broken = 0

    def add(self, seen: Observation) -> None:
        if seen.failed is not None:
            self.requests += 1
            self.failed += seen.failed
        if seen.error is not None:
            self.errors[seen.error] += 1  # from a closed list
        if seen.waited_s is not None:
            self.left += 1
            self.waited_s.append(seen.waited_s)
        if seen.first_token_s is not None:
            self.first_token_s.append(seen.first_token_s)
        if seen.tokens_per_s is not None:
            self.tokens_per_s.append(seen.tokens_per_s)
        if (reason := _reason(seen)) is not None:
            self.reasons[reason] += 1
        if seen.tool_calls_valid is not None:
            self.tool_calls += 1
            self.broken += not seen.tool_calls_valid

    def share(self, reason: str) -> float:
        return _share(self.reasons[reason], sum(self.reasons.values()))

    def figures(self) -> Figures:
        return Figures(
            self.requests,
            self.failed,
            _quantile(self.first_token_s, 0.95),
            _quantile(self.tokens_per_s, 0.5),
            {reason: count for reason, count in self.reasons.items() if count},
            self.broken,
            self.tool_calls,
        )


def _reason(seen: Observation) -> str | None:
    if seen.finish_reason is None:
        return None
    return seen.finish_reason if seen.finish_reason in FINISH_REASONS else "other"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _quantile(values: Sequence[float] | deque[float], quantile: float) -> float | None:
    """The nearest of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(quantile * len(ordered)) - 1)] if ordered else None


def _told(figure: float) -> str:
    """Three digits, or all before the point."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


# The tests...


class _Test(ABC):
    """One guard: gathers a block of values of each group, and bets on it once it is large enough."""

    def __init__(self, guard: GuardName, tolerance: float) -> None:
        self.guard = guard
        self.tolerance = tolerance
        # A group that runs ahead of the other forgets its oldest: whichever those are, they say nothing.
        self._old: deque[Any] = deque(maxlen=BLOCK_LIMIT)
        self._new: deque[Any] = deque(maxlen=BLOCK_LIMIT)

    def add(self, seen: Observation, *, is_new: bool) -> bool:
        """One request; True if there is new evidence because of it."""
        value = self.value_of(seen)
        return value is not None and self.take(value, is_new=is_new)

    def take(self, value: Any, *, is_new: bool) -> bool:
        (self._new if is_new else self._old).append(value)
        if len(self._new) < BLOCK_REQUESTS or len(self._old) < BLOCK_REQUESTS:
            return False
        old, new = list(self._old), list(self._new)
        self._old.clear()
        self._new.clear()
        self.judge(old, new)
        return True

    @abstractmethod
    def value_of(self, seen: Observation) -> Any:
        """What the guard looks at; None if this request has none."""

    @abstractmethod
    def judge(self, old: list[Any], new: list[Any]) -> None:
        """Bet on a block."""

    @property
    @abstractmethod
    def evidence(self) -> float:
        """What the bets have made of 1."""

    @abstractmethod
    def matters(self, old: _Group, new: _Group) -> bool:
        """Whether the new group looks worse by more than the tolerance."""

    @abstractmethod
    def words(self, old: _Group, new: _Group, old_name: str, new_name: str) -> str:
        """The figure, of both."""


class _Share(_Test):
    """Of requests that are simply good or bad."""

    def __init__(self, guard: GuardName, tolerance: float) -> None:
        super().__init__(guard, tolerance)
        self._bets = Evidence(_WORSE)

    def judge(self, old: list[bool], new: list[bool]) -> None:
        self._bets.take(len(new), len(old), sum(new), sum(new) + sum(old))

    @property
    def evidence(self) -> float:
        return self._bets.wealth

    @abstractmethod
    def counts(self, group: _Group) -> tuple[int, int]:
        """The bad ones, and all."""

    def matters(self, old: _Group, new: _Group) -> bool:
        return _share(*self.counts(new)) - _share(*self.counts(old)) >= self.tolerance


class _Errors(_Share):
    def value_of(self, seen: Observation) -> bool | None:
        return seen.failed

    def counts(self, group: _Group) -> tuple[int, int]:
        return group.failed, group.requests

    def words(self, old: _Group, new: _Group, old_name: str, new_name: str) -> str:
        most = max(new.errors, key=lambda error: new.errors[error])
        return (
            f"{new.failed} of {new.requests} requests failed at {new_name} (most often: {most}),"
            f" {old.failed} of {old.requests} at {old_name}"
        )


class _Tools(_Share):
    def value_of(self, seen: Observation) -> bool | None:
        return None if seen.tool_calls_valid is None else not seen.tool_calls_valid

    def counts(self, group: _Group) -> tuple[int, int]:
        return group.broken, group.tool_calls

    def words(self, old: _Group, new: _Group, old_name: str, new_name: str) -> str:
        return (
            f"{new.broken} of {new.tool_calls} answers with tool calls cannot be parsed at {new_name},"
            f" {old.broken} of {old.tool_calls} at {old_name}"
        )


class _Quantile(_Test):
    """Of a time or a speed: bad is what lies beyond a threshold, which comes from earlier requests to the old target.

    Any threshold that is fixed before a block is fair to both groups; one from the old group's own figures also notices
    what matters.
    """

    def __init__(self, guard: GuardName, tolerance: float) -> None:
        super().__init__(guard, tolerance)
        self._bets = Evidence(_WORSE)
        self._earlier: deque[float] = deque(maxlen=KEPT_VALUES)

    def take(self, value: _Figure, *, is_new: bool) -> bool:
        if is_new or len(self._earlier) >= CALIBRATION_REQUESTS:
            return super().take(value, is_new=is_new)
        if not value.is_at_least:
            self._earlier.append(value.figure)
        return False

    def judge(self, old: list[_Figure], new: list[_Figure]) -> None:
        threshold = self.threshold(self._earlier)
        bad_old, bad_new = ([self.is_bad(value, threshold) for value in values] for values in (old, new))
        counted_old, counted_new = ([bad for bad in each if bad is not None] for each in (bad_old, bad_new))
        self._bets.take(len(counted_new), len(counted_old), sum(counted_new), sum(counted_new) + sum(counted_old))
        self._earlier.extend(value.figure for value in old if not value.is_at_least)

    @property
    def evidence(self) -> float:
        return self._bets.wealth

    @abstractmethod
    def threshold(self, earlier: Sequence[float] | deque[float]) -> float:
        """Beyond what a request is bad; `earlier` are figures of the old target."""

    @abstractmethod
    def is_bad(self, value: _Figure, threshold: float) -> bool | None:
        """None if that cannot be known."""


class _Figure(NamedTuple):
    """A time or a speed; `is_at_least` if a client left before it was known."""

    figure: float
    is_at_least: bool = False


class _FirstToken(_Quantile):
    def value_of(self, seen: Observation) -> _Figure | None:
        if seen.first_token_s is not None:
            return _Figure(seen.first_token_s)
        return None if seen.waited_s is None else _Figure(seen.waited_s, is_at_least=True)

    def threshold(self, earlier: Sequence[float] | deque[float]) -> float:
        return (_quantile(earlier, 0.95) or 0.0) * (1 + self.tolerance)

    def is_bad(self, value: _Figure, threshold: float) -> bool | None:
        if value.is_at_least and value.figure <= threshold:
            return None
        return value.figure > threshold

    def matters(self, old: _Group, new: _Group) -> bool:
        """Of those who left, too, since they may be all that is left of a target that never answers."""
        before, after = (_quantile([*group.first_token_s, *group.waited_s], 0.95) for group in (old, new))
        return before is not None and after is not None and after > before * (1 + self.tolerance)

    def words(self, old: _Group, new: _Group, old_name: str, new_name: str) -> str:
        before, after = (_quantile([*group.first_token_s, *group.waited_s], 0.95) or 0.0 for group in (old, new))
        return f"p95 of the time to the first token is {_told(after)} s at {new_name}, {_told(before)} s at {old_name}"


class _Speed(_Quantile):
    def value_of(self, seen: Observation) -> _Figure | None:
        return None if seen.tokens_per_s is None else _Figure(seen.tokens_per_s)

    def threshold(self, earlier: Sequence[float] | deque[float]) -> float:
        return (_quantile(earlier, 0.5) or 0.0) * (1 - self.tolerance)

    def is_bad(self, value: _Figure, threshold: float) -> bool | None:
        return value.figure < threshold

    def matters(self, old: _Group, new: _Group) -> bool:
        before, after = (_quantile(group.tokens_per_s, 0.5) for group in (old, new))
        return before is not None and after is not None and after < before * (1 - self.tolerance)

    def words(self, old: _Group, new: _Group, old_name: str, new_name: str) -> str:
        before, after = (_quantile(group.tokens_per_s, 0.5) or 0.0 for group in (old, new))
        return f"median speed is {_told(after)} tokens/s at {new_name}, {_told(before)} at {old_name}"


class _Finish(_Test):
    """Of why answers end: each reason may have become rarer or more frequent. The stake is divided among them."""

    def __init__(self, guard: GuardName, tolerance: float) -> None:
        super().__init__(guard, tolerance)
        self._bets = {reason: Evidence(_DIFFERENT) for reason in FINISH_REASONS}

    def value_of(self, seen: Observation) -> str | None:
        return _reason(seen)

    def judge(self, old: list[str], new: list[str]) -> None:
        for reason, bets in self._bets.items():
            here = new.count(reason)
            bets.take(len(new), len(old), here, here + old.count(reason))

    @property
    def evidence(self) -> float:
        return sum(bets.wealth for bets in self._bets.values()) / len(self._bets)

    def _most_different(self, old: _Group, new: _Group) -> str:
        return max(FINISH_REASONS, key=lambda reason: abs(new.share(reason) - old.share(reason)))

    def matters(self, old: _Group, new: _Group) -> bool:
        reason = self._most_different(old, new)
        return abs(new.share(reason) - old.share(reason)) >= self.tolerance

    def words(self, old: _Group, new: _Group, old_name: str, new_name: str) -> str:
        reason = self._most_different(old, new)
        return (
            f"{new.share(reason):.0%} of answers end with '{reason}' at {new_name},"
            f" {old.share(reason):.0%} at {old_name}"
        )


_TESTS: Mapping[GuardName, type[_Test]] = {
    "errors": _Errors,
    "ttft": _FirstToken,
    "speed": _Speed,
    "finish": _Finish,
    "tools": _Tools,
}
