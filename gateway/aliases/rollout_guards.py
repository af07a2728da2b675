"""A rollout's guards: do the requests of one step show that the new target is worse than the old one? Pure.

Each guard compares one figure with a sequential test (`guard_tests.py`, `e_process.py`). When the comparison is looked
at, and what a tripped guard causes, is decided in `rollout.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Literal, TypeAlias

from gateway.aliases.guard_tests import GUARD_TESTS
from gateway.aliases.target_statistics import TargetFigures, TargetStatistics
from gateway.telemetry.observation import Observation

__all__ = ["DEFAULT_ALPHA", "DEFAULT_MINIMUM", "DEFAULT_TOLERANCES", "GuardName", "GuardTrip", "StepComparison"]

GuardName: TypeAlias = Literal["errors", "ttft", "speed", "finish", "tools"]

# A guard trips only if the new target's figure is worse by this much, however certain it is that the targets differ.
DEFAULT_TOLERANCES: Mapping[GuardName, float] = {
    "errors": 0.02,  # share of failed requests, above the old target's
    "ttft": 0.25,  # p95 time to the first token, as a fraction above the old target's
    "speed": 0.20,  # median tokens per second, as a fraction below the old target's
    "finish": 0.10,  # share of any one finish reason, above or below the old target's
    "tools": 0.02,  # share of answers with broken tool calls, above the old target's
}
DEFAULT_ALPHA = 0.01  # the probability that an equal target is ever rolled back, over all guards and steps of a rollout
DEFAULT_MINIMUM = 20  # requests to each target before a step may end, either way

LARGEST_SHOWN = 1_000_000  # larger e-values are shown as this one


@dataclass(frozen=True, slots=True)
class GuardTrip:
    """A guard that tripped: the figure of both targets, and the e-value. `str()` is the reason of the rollback."""

    guard: GuardName
    figure: str
    e_value: float

    def __str__(self) -> str:
        odds = f"{min(self.e_value, LARGEST_SHOWN):,.0f}"  # Ville: equal targets reach an e-value of E once in E steps
        return f"{self.guard}: {self.figure} (chance of a false alarm: at most 1 in {odds})"


class StepComparison:
    """Compares the requests to both targets during one step. Synchronous.

    Args:
        guards: Tolerance by guard.
        alpha: The probability that one of these guards ever trips if the targets are equal. The caller divides the
            rollout's alpha among its steps.
        minimum: No guard trips, and `has_minimum` is False, before each target has this many requests. For a guard,
            clients that left before the first token count too: of a target that never answers, there are no others.
        old, new: The names of the targets.
    """

    def __init__(self, guards: Mapping[GuardName, float], *, alpha: float, minimum: int, old: str, new: str) -> None:
        self.minimum = minimum
        self._trip_at = max(1, len(guards)) / alpha  # Ville's inequality, with alpha divided among the guards
        self._names = old, new
        self._old, self._new = TargetStatistics(), TargetStatistics()
        self._has_new_evidence = False  # since the last call of `trip`
        self._tests = {guard: GUARD_TESTS[guard](tolerance) for guard, tolerance in guards.items()}

    def add(self, observation: Observation, *, is_new: bool) -> None:
        """Count one ended request."""
        (self._new if is_new else self._old).add(observation)
        for test in self._tests.values():
            if test.add(observation, is_new=is_new):
                self._has_new_evidence = True

    @property
    def has_minimum(self) -> bool:
        """Whether each target has the minimum of requests that were answered or failed."""
        return min(self.requests) >= self.minimum

    @property
    def requests(self) -> tuple[int, int]:
        """How many requests went to the old target, and to the new one."""
        return self._old.requests, self._new.requests

    def distances(self) -> dict[str, float]:
        """How far each guard is from tripping: 1 without evidence against the new target, 0 with enough.

        On a logarithmic scale, since e-values of blocks multiply. A guard at 0 trips once the minimum is reached and
        the figure is worse by more than its tolerance.
        """
        enough = log(self._trip_at)
        return {guard: min(1.0, max(0.0, 1 - log(test.e_value) / enough)) for guard, test in self._tests.items()}

    def trip(self) -> GuardTrip | None:
        """The tripped guard with the largest e-value, or None."""
        may_trip = all(target.requests + target.abandoned >= self.minimum for target in (self._old, self._new))
        if not may_trip or not self._has_new_evidence:
            return None
        self._has_new_evidence = False
        tripped = [
            guard
            for guard, test in self._tests.items()
            if test.e_value >= self._trip_at and test.exceeds_tolerance(self._old, self._new)
        ]
        if not tripped:
            return None
        guard = max(tripped, key=lambda guard: self._tests[guard].e_value)
        test = self._tests[guard]
        return GuardTrip(guard, test.describe(self._old, self._new, *self._names), test.e_value)

    def figures(self) -> tuple[TargetFigures, TargetFigures]:
        """The figures of the old target and of the new one."""
        return self._old.figures(), self._new.figures()
