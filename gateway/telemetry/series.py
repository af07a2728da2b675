"""Counters, gauges and histograms that cost a request next to nothing: numbers in cells, which a scrape reads.

prometheus_client's own take a lock and check themselves at every sample: 4 to 8 calls each, and a request has ten. The
gateway counts in one thread, so a cell is a number. The library still has the registry and writes the text format.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import inf
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

__all__ = ["CounterSeries", "GaugeSeries", "HistogramCell", "HistogramSeries", "NumberCell"]

WAITING_VALUES = 128  # of one series


class NumberCell:
    """The number of one series. The owner of a hot path may add to `value` itself."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add to it. A counter only grows."""
        self.value += amount

    def dec(self, amount: float = 1) -> None:
        """Subtract from a gauge."""
        self.value -= amount

    def set(self, value: float) -> None:
        """Set a gauge."""
        self.value = value


class HistogramCell:
    """The buckets of one series. Values wait until they are put into the buckets together, at a third of the cost."""

    __slots__ = ("_bounds", "_counts", "_total", "_waiting", "exemplars")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds  # upper ones, inclusive
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._waiting: list[float] = []
        self.exemplars: dict[int, Exemplar] = {}  # by bucket

    def observe(self, value: float) -> None:
        """Count a value."""
        self._waiting.append(value)
        if len(self._waiting) >= WAITING_VALUES:
            self._take_waiting()

    def observe_many(self, value: float, times: int) -> None:
        """Count a value so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def name_trace(self, value: float, trace_id: int) -> None:
        """Name the trace of a request whose value was counted: the newest of each bucket is kept."""
        labels = {"trace_id": f"{trace_id:032x}"}
        self.exemplars[bisect_left(self._bounds, value)] = Exemplar(labels, value, time.time())

    def read(self) -> tuple[Sequence[int], float]:
        """How many values each bucket has, and the sum of all."""
        self._take_waiting()
        return self._counts, self._total

    def _take_waiting(self) -> None:
        values = self._waiting
        self._total = sum(values, self._total)
        values.sort()
        taken = 0
        for bucket, bound in enumerate(self._bounds):
            end = bisect_right(values, bound, taken)
            self._counts[bucket] += end - taken
            taken = end
        self._counts[-1] += len(values) - taken
        values.clear()


_CellT = TypeVar("_CellT", NumberCell, HistogramCell)


class _Cells(dict[tuple[str, ...], _CellT]):
    """A plain dictionary look-up costs a request no call, and it has ten."""

    def __init__(self, new_cell: Callable[[], _CellT]) -> None:
        super().__init__()
        self._new_cell: Callable[[], _CellT] = new_cell

    def __missing__(self, labels: tuple[str, ...]) -> _CellT:
        cell: _CellT = self._new_cell()
        self[labels] = cell
        return cell


class _Series(Collector, Generic[_CellT]):
    """A metric with its labelled series; each appears with its first sample.

    Label values come from the catalogue, the fleet and a closed list of codes, never from a client, so they are few.
    """

    def __init__(self, name: str, text: str, labels: tuple[str, ...], new_cell: Callable[[], _CellT]) -> None:
        self._name = name
        self._text = text
        self._labelnames = labels
        self.cells: _Cells[_CellT] = _Cells(new_cell)
        """By label values. The first look-up creates a cell, and from then on a scrape shows it."""

    def __call__(self, *labels: str) -> _CellT:
        """The cell for these label values, as `cells` has it."""
        return self.cells[labels]

    def remove_where(self, condition: Callable[[tuple[str, ...]], bool]) -> None:
        """Remove the series whose labels satisfy the condition."""
        for labels in list(filter(condition, self.cells)):
            del self.cells[labels]


class CounterSeries(_Series[NumberCell]):
    """Counts."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        super().__init__(name, text, labels, NumberCell)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labelnames)
        for labels, cell in self.cells.items():
            family.add_metric(labels, cell.value)
        yield family


class GaugeSeries(_Series[NumberCell]):
    """Levels."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        super().__init__(name, text, labels, NumberCell)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = GaugeMetricFamily(self._name, self._text, labels=self._labelnames)
        for labels, cell in self.cells.items():
            family.add_metric(labels, cell.value)
        yield family


class HistogramSeries(_Series[HistogramCell]):
    """Distributions. `buckets` are upper bounds, sorted, without infinity. A series appears with its first value."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        super().__init__(name, text, labels, lambda: HistogramCell(buckets))
        self._les = [floatToGoString(bound) for bound in (*buckets, inf)]  # type: ignore[no-untyped-call]
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labelnames)
        for labels, cell in self.cells.items():
            counts, total = cell.read()
            if not any(counts):
                continue
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]]
            buckets = list(zip(self._les, map(float, accumulate(counts)), strict=True))
            for index, exemplar in cell.exemplars.items():
                buckets[index] = (*buckets[index][:2], exemplar)
            family.add_metric(labels, buckets, total)
        yield family
