"""The statistical test behind each guard of a rollout: is the new target worse in one figure? Pure.

Each test collects a block of values of both targets, decides which of them are bad, and updates its e-process. When a
guard trips is decided in `rollout_guards.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from gateway.aliases.e_process import EProcess
from gateway.aliases.target_statistics import (
    FINISH_REASONS,
    KEPT_VALUES,
    TargetStatistics,
    finish_reason_of,
    quantile,
    share,
)
from gateway.telemetry.observation import Observation

__all__ = ["GUARD_TESTS", "GuardTest"]

BLOCK_REQUESTS = 5  # at least, of each target; smaller blocks give less evidence per request, larger ones delay it
BLOCK_LIMIT = 1000  # at most, of either target
CALIBRATION_REQUESTS = 20  # to the old target; they set the first threshold of a time or speed
_WORSE = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # the alternative odds ratios
_DIFFERENT = (*_WORSE, *(1 / odds_ratio for odds_ratio in _WORSE))


class GuardTest(ABC):
    """One guard's test.

    Args:
        tolerance: How much worse the new target's figure may be; see `rollout_guards.DEFAULT_TOLERANCES`.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        # If one target gets many more requests, its oldest are dropped. That is fair: the choice ignores their values.
        self._old: deque[Any] = deque(maxlen=BLOCK_LIMIT)
        self._new: deque[Any] = deque(maxlen=BLOCK_LIMIT)

    def add(self, observation: Observation, *, is_new: bool) -> bool:
        """Add one request; True if it completed a block, so that `e_value` changed."""
        value = self.value_of(observation)
        return value is not None and self.add_value(value, is_new=is_new)

    def add_value(self, value: Any, *, is_new: bool) -> bool:
        """Add one request's value; True if it completed a block."""
        (self._new if is_new else self._old).append(value)
        if len(self._new) < BLOCK_REQUESTS or len(self._old) < BLOCK_REQUESTS:
            return False
        old, new = list(self._old), list(self._new)
        self._old.clear()
        self._new.clear()
        self.update(old, new)
        return True

    @abstractmethod
    def value_of(self, observation: Observation) -> Any:
        """The request's value; None if the request does not count for this guard."""

    @abstractmethod
    def update(self, old: list[Any], new: list[Any]) -> None:
        """Update the e-process with one block of values."""

    @property
    @abstractmethod
    def e_value(self) -> float:
        """The evidence against equal targets; see `e_process.py`."""

    @abstractmethod
    def exceeds_tolerance(self, old: TargetStatistics, new: TargetStatistics) -> bool:
        """Whether the new target's figure is worse by more than the tolerance."""

    @abstractmethod
    def describe(self, old: TargetStatistics, new: TargetStatistics, old_name: str, new_name: str) -> str:
        """The figure of both targets, for operators."""


class _ShareTest(GuardTest):
    """Compares shares of requests that are bad by themselves."""

    def __init__(self, tolerance: float) -> None:
        super().__init__(tolerance)
        self._e_process = EProcess(_WORSE)

    def update(self, old: list[bool], new: list[bool]) -> None:
        self._e_process.update(len(new), len(old), sum(new), sum(new) + sum(old))

    @property
    def e_value(self) -> float:
        return self._e_process.value

    @abstractmethod
    def counts(self, target: TargetStatistics) -> tuple[int, int]:
        """The bad requests, and all."""

    def exceeds_tolerance(self, old: TargetStatistics, new: TargetStatistics) -> bool:
        return share(*self.counts(new)) - share(*self.counts(old)) >= self.tolerance


class _ErrorTest(_ShareTest):
    """The share of failed requests."""

    def value_of(self, observation: Observation) -> bool | None:
        return observation.failed

    def counts(self, target: TargetStatistics) -> tuple[int, int]:
        return target.failed, target.requests

    def describe(self, old: TargetStatistics, new: TargetStatistics, old_name: str, new_name: str) -> str:
        most_frequent = max(new.errors, key=lambda error: new.errors[error])
        return (
            f"{new.failed} of {new.requests} requests failed at {new_name} (most often: {most_frequent}),"
            f" {old.failed} of {old.requests} at {old_name}"
        )


class _ToolCallTest(_ShareTest):
    """The share of answers whose tool calls a client cannot parse."""

    def value_of(self, observation: Observation) -> bool | None:
        return None if observation.tool_calls_valid is None else not observation.tool_calls_valid

    def counts(self, target: TargetStatistics) -> tuple[int, int]:
        return target.broken_tool_calls, target.tool_calls

    def describe(self, old: TargetStatistics, new: TargetStatistics, old_name: str, new_name: str) -> str:
        return (
            f"{new.broken_tool_calls} of {new.tool_calls} answers with tool calls cannot be parsed at {new_name},"
            f" {old.broken_tool_calls} of {old.tool_calls} at {old_name}"
        )


class _Measurement(NamedTuple):
    """A time or a speed; `is_lower_bound` if the client left before it was known."""

    value: float
    is_lower_bound: bool = False


class _ThresholdTest(GuardTest):
    """Compares shares of requests beyond a threshold on a time or a speed.

    The threshold comes from earlier requests to the old target, so it is fixed before the block that it judges; that is
    what keeps the e-process valid.
    """

    def __init__(self, tolerance: float) -> None:
        super().__init__(tolerance)
        self._e_process = EProcess(_WORSE)
        self._earlier_old: deque[float] = deque(maxlen=KEPT_VALUES)

    def add_value(self, value: _Measurement, *, is_new: bool) -> bool:
        if is_new or len(self._earlier_old) >= CALIBRATION_REQUESTS:
            return super().add_value(value, is_new=is_new)
        if not value.is_lower_bound:
            self._earlier_old.append(value.value)
        return False

    def update(self, old: list[_Measurement], new: list[_Measurement]) -> None:
        threshold = self.threshold(self._earlier_old)
        old_bad = [bad for value in old if (bad := self.is_bad(value, threshold)) is not None]
        new_bad = [bad for value in new if (bad := self.is_bad(value, threshold)) is not None]
        self._e_process.update(len(new_bad), len(old_bad), sum(new_bad), sum(new_bad) + sum(old_bad))
        self._earlier_old.extend(value.value for value in old if not value.is_lower_bound)

    @property
    def e_value(self) -> float:
        return self._e_process.value

    @abstractmethod
    def threshold(self, earlier_old: Collection[float]) -> float:
        """The value beyond which a request is bad, from earlier values of the old target."""

    @abstractmethod
    def is_bad(self, value: _Measurement, threshold: float) -> bool | None:
        """Whether the value is beyond the threshold; None if that is unknown."""


class _FirstTokenTest(_ThresholdTest):
    """The p95 of the time to the first token."""

    def value_of(self, observation: Observation) -> _Measurement | None:
        if observation.first_token_s is not None:
            return _Measurement(observation.first_token_s)
        return None if observation.waited_s is None else _Measurement(observation.waited_s, is_lower_bound=True)

    def threshold(self, earlier_old: Collection[float]) -> float:
        return (quantile(earlier_old, 0.95) or 0.0) * (1 + self.tolerance)

    def is_bad(self, value: _Measurement, threshold: float) -> bool | None:
        if value.is_lower_bound and value.value <= threshold:
            return None
        return value.value > threshold

    def exceeds_tolerance(self, old: TargetStatistics, new: TargetStatistics) -> bool:
        old_p95_s, new_p95_s = old.wait_for_first_token_p95_s(), new.wait_for_first_token_p95_s()
        return old_p95_s is not None and new_p95_s is not None and new_p95_s > old_p95_s * (1 + self.tolerance)

    def describe(self, old: TargetStatistics, new: TargetStatistics, old_name: str, new_name: str) -> str:
        old_p95_s, new_p95_s = (_three_digits(target.wait_for_first_token_p95_s() or 0.0) for target in (old, new))
        return f"p95 of the time to the first token is {new_p95_s} s at {new_name}, {old_p95_s} s at {old_name}"


class _SpeedTest(_ThresholdTest):
    """The median of the tokens per second."""

    def value_of(self, observation: Observation) -> _Measurement | None:
        return None if observation.tokens_per_s is None else _Measurement(observation.tokens_per_s)

    def threshold(self, earlier_old: Collection[float]) -> float:
        return (quantile(earlier_old, 0.5) or 0.0) * (1 - self.tolerance)

    def is_bad(self, value: _Measurement, threshold: float) -> bool | None:
        return value.value < threshold

    def exceeds_tolerance(self, old: TargetStatistics, new: TargetStatistics) -> bool:
        old_median, new_median = old.tokens_per_s_median(), new.tokens_per_s_median()
        return old_median is not None and new_median is not None and new_median < old_median * (1 - self.tolerance)

    def describe(self, old: TargetStatistics, new: TargetStatistics, old_name: str, new_name: str) -> str:
        old_median, new_median = (_three_digits(target.tokens_per_s_median() or 0.0) for target in (old, new))
        return f"median speed is {new_median} tokens/s at {new_name}, {old_median} at {old_name}"


class _FinishReasonTest(GuardTest):
    """The shares of the finish reasons; each may have become smaller or larger. Averages one e-process per reason."""

    def __init__(self, tolerance: float) -> None:
        super().__init__(tolerance)
        self._e_processes = {reason: EProcess(_DIFFERENT) for reason in FINISH_REASONS}

    def value_of(self, observation: Observation) -> str | None:
        return finish_reason_of(observation)

    def update(self, old: list[str], new: list[str]) -> None:
        for reason, e_process in self._e_processes.items():
            count_new = new.count(reason)
            e_process.update(len(new), len(old), count_new, count_new + old.count(reason))

    @property
    def e_value(self) -> float:
        return sum(e_process.value for e_process in self._e_processes.values()) / len(self._e_processes)

    def exceeds_tolerance(self, old: TargetStatistics, new: TargetStatistics) -> bool:
        reason = _most_different_reason(old, new)
        return abs(new.finish_reason_share(reason) - old.finish_reason_share(reason)) >= self.tolerance

    def describe(self, old: TargetStatistics, new: TargetStatistics, old_name: str, new_name: str) -> str:
        reason = _most_different_reason(old, new)
        return (
            f"{new.finish_reason_share(reason):.0%} of answers end with '{reason}' at {new_name},"
            f" {old.finish_reason_share(reason):.0%} at {old_name}"
        )


GUARD_TESTS: Mapping[str, type[GuardTest]] = {
    "errors": _ErrorTest,
    "ttft": _FirstTokenTest,
    "speed": _SpeedTest,
    "finish": _FinishReasonTest,
    "tools": _ToolCallTest,
}


def _most_different_reason(old: TargetStatistics, new: TargetStatistics) -> str:
    return max(
        FINISH_REASONS, key=lambda reason: abs(new.finish_reason_share(reason) - old.finish_reason_share(reason))
    )


def _three_digits(figure: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"
