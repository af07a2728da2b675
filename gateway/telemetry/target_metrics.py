"""Metrics by alias, target and catalogue generation, to compare targets before and after a swap or rollout.

Every accepted file is a new generation, so the number of series would grow without limit. Only the last few generations
keep theirs; a request that ends under an older one (a stream may take hours) is counted under `older`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry

from gateway.telemetry.series import CounterSeries, HistogramCell, HistogramSeries, NumberCell

__all__ = ["GENERATIONS_KEPT", "TargetCells", "TargetMetrics"]

GENERATIONS_KEPT = 8  # with requests: enough for a rollout of four steps with its swaps
OLDER = "older"


class TargetCells:
    """The series of one target in one generation."""

    __slots__ = ("_duration", "_errors", "_first_token", "_requests")

    def __init__(
        self,
        requests: NumberCell,
        duration: HistogramCell,
        first_token: HistogramCell,
        errors: Callable[[str], NumberCell],
    ) -> None:
        self._requests = requests
        self._duration = duration
        self._first_token = first_token
        self._errors = errors

    def record(self, code: str | None, duration_s: float | None, first_token_s: float | None) -> None:
        """Count a request that has ended: with a `code` if it failed, a `duration_s` if it was sent to a neuron."""
        self._requests.value += 1
        if code is not None:
            self._errors(code).inc()
        if duration_s is not None:
            self._duration.observe(duration_s)
        if first_token_s is not None:
            self._first_token.observe(first_token_s)


_DURATION_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
_FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)


class TargetMetrics:
    """The metrics, in the registry of all others."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("alias", "target", "generation")
        self._kept: list[int] = []  # sorted
        self._label_of: dict[int, str] = {}  # of those
        self._requests = CounterSeries("cortex_alias_target_requests", "Requests by alias and target", labels, registry)
        self._errors = CounterSeries(
            "cortex_alias_target_errors",
            "Requests by alias and target that failed, by error code",
            (*labels, "code"),
            registry,
        )
        self._first_token = HistogramSeries(
            "cortex_alias_target_first_token_seconds",
            "Request read to first generated delta",
            labels,
            _FIRST_TOKEN_S,
            registry,
        )
        self._duration = HistogramSeries(
            "cortex_alias_target_duration_seconds", "Whole request, to the last byte", labels, _DURATION_S, registry
        )

    def cells_of(self, alias: str, target: str, generation: int) -> TargetCells:
        """The series of one target. They are valid until a request of another generation is counted."""
        label = self._label_of[generation] if generation in self._label_of else self._label(generation)
        labels = (alias, target, label)
        requests, duration = self._requests.cells[labels], self._duration.cells[labels]
        return TargetCells(requests, duration, self._first_token.cells[labels], partial(self._errors, *labels))

    def _label(self, generation: int) -> str:
        if len(self._kept) >= GENERATIONS_KEPT:
            if generation < self._kept[0]:
                return OLDER
            self._forget(self._label_of.pop(self._kept.pop(0)))
        insort(self._kept, generation)
        label = self._label_of[generation] = str(generation)
        return label

    def _forget(self, generation: str) -> None:
        for series in (self._requests, self._errors, self._first_token, self._duration):
            series.remove_where(lambda labels: labels[_GENERATION] == generation)


_GENERATION = 2  # the index of this label
