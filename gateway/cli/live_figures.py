"""Requests, tokens and waiting times per neuron over the last seconds, from two scrapes of `/metrics`. No I/O."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

__all__ = ["LiveFigures", "NeuronFigures", "Scrape", "parse_scrape"]

WINDOW_S = 30.0  # a shorter one has too few requests for a p95, a longer one hides what happens now

_REQUESTS = "cortex_requests_total"
_TOKENS = ("cortex_completion_tokens_total", "cortex_estimated_completion_tokens_total")
_FIRST_TOKEN = "cortex_time_to_first_token_seconds_bucket"  # noqa: S105 - the name of a metric
_UTILIZATION = "cortex_device_utilization_ratio"
_HEALTHY = "cortex_node_healthy"


@dataclass(slots=True)
class _NeuronCounts:
    """What one scrape says of one neuron. `first_token` is a cumulative count by upper bound in seconds."""

    requests: float = 0.0
    tokens: float = 0.0
    first_token: dict[float, float] = field(default_factory=lambda: defaultdict(float))
    utilization: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Scrape:
    """One scrape. `at` is in seconds, monotonic."""

    at: float
    neurons: Mapping[str, _NeuronCounts]


@dataclass(frozen=True, slots=True)
class NeuronFigures:
    """One neuron's figures. None where there is nothing to measure. `utilization` is by device, 0 to 1."""

    node: str
    requests_per_s: float
    tokens_per_s: float
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    utilization: tuple[float, ...]


def parse_scrape(text: str, at: float) -> Scrape:
    """The counts of every neuron. Raises ValueError if the text is not in the Prometheus format."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - takes 80 ms to import

    neurons: dict[str, _NeuronCounts] = defaultdict(_NeuronCounts)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not (node := sample.labels.get("node")):
                continue
            if sample.name == _REQUESTS:
                neurons[node].requests += sample.value
            elif sample.name in _TOKENS:
                neurons[node].tokens += sample.value
            elif sample.name == _FIRST_TOKEN:
                neurons[node].first_token[float(sample.labels["le"])] += sample.value
            elif sample.name == _UTILIZATION:
                neurons[node].utilization.append(sample.value)
            elif sample.name == _HEALTHY:
                neurons.setdefault(node, _NeuronCounts())
    return Scrape(at, neurons)


class LiveFigures:
    """Keeps the scrapes of the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._scrapes: deque[Scrape] = deque()

    def add(self, scrape: Scrape) -> None:
        """Add the newest scrape, and forget those before the window but one."""
        self._scrapes.append(scrape)
        while len(self._scrapes) > 2 and self._scrapes[1].at <= scrape.at - WINDOW_S:
            self._scrapes.popleft()

    @property
    def window_s(self) -> float:
        """The time that the figures are about; 0 before the second scrape."""
        return self._scrapes[-1].at - self._scrapes[0].at if self._scrapes else 0.0

    def by_neuron(self) -> list[NeuronFigures]:
        """The figures of every neuron, by name."""
        if not self._scrapes:
            return []
        old, new = self._scrapes[0], self._scrapes[-1]
        return [
            _compare(node, old.neurons.get(node, _NeuronCounts()), counts, self.window_s)
            for node, counts in sorted(new.neurons.items())
        ]


def _compare(node: str, old: _NeuronCounts, new: _NeuronCounts, window_s: float) -> NeuronFigures:
    buckets = sorted((bound, count - old.first_token.get(bound, 0.0)) for bound, count in new.first_token.items())
    return NeuronFigures(
        node,
        _rate(old.requests, new.requests, window_s),
        _rate(old.tokens, new.tokens, window_s),
        _quantile(buckets, 0.5),
        _quantile(buckets, 0.95),
        tuple(new.utilization),
    )


def _rate(old: float, new: float, window_s: float) -> float:
    """Per second. A counter that is smaller than before began again: the gateway was restarted."""
    grown = new if new < old else new - old
    return grown / window_s if window_s > 0 else 0.0


def _quantile(buckets: Sequence[tuple[float, float]], probability: float) -> float | None:
    """From a cumulative histogram, linear within a bucket, as Prometheus does it; None without values."""
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0:
        return None
    rank, lower, below = probability * total, 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == inf:
                return lower  # beyond the last bound, which is all that is known
            share = (rank - below) / (count - below) if count > below else 0.0
            return lower + (bound - lower) * share
        lower, below = bound, count
    return lower
