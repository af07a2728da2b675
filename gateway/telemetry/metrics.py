"""The Prometheus metrics: names, labels, buckets and the text format. `request_log.py` counts most of them.

Dashboards depend on the names, labels and buckets, so they never change. A labelled series appears with its first
sample, and a metric's name with its first series. Gauges of the fleet are read from the fleet at each scrape, so a node
that was removed leaves no series behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.telemetry.key_metrics import KeyMetrics
from gateway.telemetry.series import CounterSeries, GaugeSeries, HistogramSeries
from gateway.telemetry.target_metrics import TargetMetrics

__all__ = ["CatalogueReadings", "FleetView", "Metrics", "NodeView", "RolloutReading"]

_OPENMETRICS = "application/openmetrics-text"
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # no annotations in the library

_DURATION_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
_FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)
_TOKENS_PER_S = (1, 2.5, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200)
_INTER_TOKEN_S = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)
_SWAP_S = (0.05, 0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800)
_OVERHEAD_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)


class Metrics:
    """All metrics of one gateway, in a registry of its own.

    Args:
        per_key: Also those with the label `key`.
        has_exemplars: Requests are traced, so that histograms can name traces.
    """

    def __init__(self, *, per_key: bool = False, has_exemplars: bool = False) -> None:
        self.has_exemplars = has_exemplars
        self.registry = registry = CollectorRegistry()
        self.by_key = KeyMetrics(registry) if per_key else None
        route = ("model", "node")

        def counter(name: str, text: str, labels: tuple[str, ...] = route) -> CounterSeries:
            return CounterSeries(name, text, labels, registry)

        def histogram(
            name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = route
        ) -> HistogramSeries:
            return HistogramSeries(name, text, labels, buckets, registry)

        self.requests = counter("cortex_requests", "Requests routed to a neuron")
        self.errors = counter("cortex_request_errors", "Requests that failed, by error code", (*route, "code"))
        self.duration = histogram("cortex_request_duration_seconds", "Whole request, to the last byte", _DURATION_S)
        self.first_token = histogram(
            "cortex_time_to_first_token_seconds", "Request read to first generated delta", _FIRST_TOKEN_S
        )
        self.tokens_per_second = histogram(
            "cortex_tokens_per_second", "Completion tokens over the first-to-last-delta window", _TOKENS_PER_S
        )
        self.inter_token = histogram(
            "cortex_inter_token_seconds",
            "Time between two tokens of a stream, the stream's mean for each, by its usage",
            _INTER_TOKEN_S,
        )
        self.overhead = histogram("cortex_overhead_seconds", "The gateway's own time", _OVERHEAD_S, ("phase",))
        self.prompt_tokens = counter("cortex_prompt_tokens", "Prompt tokens, from usage")
        self.completion_tokens = counter("cortex_completion_tokens", "Completion tokens, from usage")
        self.cached_prompt_tokens = counter(
            "cortex_cached_prompt_tokens", "Prompt tokens served from cache, from usage"
        )
        self.reasoning_tokens = counter("cortex_reasoning_tokens", "Completion tokens spent on thinking, from usage")
        self.estimated_completion_tokens = counter(
            "cortex_estimated_completion_tokens", "Completion tokens of answers without usage: one per delta"
        )
        self.cold_starts = counter("cortex_cold_starts", "Loads begun, for a request or a warm swap")
        self.evictions = counter("cortex_evictions", "Models unloaded to make room or for idleness")
        self.inflight = GaugeSeries("cortex_inflight_requests", "Requests at a neuron now", route, registry)
        self.disconnects = counter("cortex_client_disconnects", "Clients that left before their answer ended")
        self.retries = counter("cortex_retries", "Attempts given up for another neuron or connection")
        of_alias = ("alias", "model")
        self.shadows = counter("cortex_shadows", "Requests sent to a shadow as well, by result", (*of_alias, "result"))
        self.hedges = counter("cortex_hedges", "Second attempts, by result", (*of_alias, "result"))
        self.hedges_withheld = counter(
            "cortex_hedges_withheld", "Second attempts that were due but not sent, by reason", (*of_alias, "reason")
        )
        self.rollout_percent = GaugeSeries(
            "cortex_rollout_percent", "What a rollout gives its target now", ("alias",), registry
        )
        self.alias_requests = counter("cortex_alias_requests", "Requests by alias", ("alias", "model"))
        self.fallbacks = counter(
            "cortex_alias_fallbacks", "Requests handed on because a target could not serve", ("alias", "model", "to")
        )
        self.by_target = TargetMetrics(registry)
        self._limits_exceeded = counter(
            "cortex_limits_exceeded", "Requests beyond a limit of their key; refused if enforced", ("limit", "enforced")
        )
        self.swaps = counter("cortex_alias_swaps", "Changes of an alias's target, by result", ("alias", "result"))
        self.swap_duration = histogram(
            "cortex_alias_swap_duration_seconds", "Warm swaps: accepted file to moved alias", _SWAP_S, ("alias",)
        )

    def count_cold_start(self, model: str, node: str) -> None:
        """A load has begun."""
        self.cold_starts(model, node).inc()

    def count_unknown_path(self) -> None:
        """A request came for a path that does not exist: an error of no model and no node."""
        self.errors("", "", "not_found").inc()

    def count_limit_exceeded(self, limit: str, enforced: bool) -> None:
        """A request exceeded a limit of its key: "rpm", "tpm", "concurrency" or "budget"."""
        self._limits_exceeded(limit, "true" if enforced else "false").inc()

    def watch_spans_dropped(self, read: Callable[[], int]) -> None:
        """Export how many spans no collector has taken, as `read` returns it at each scrape."""
        self.registry.register(_SpansDroppedCollector(read))

    def count_eviction(self, model: str, node: str) -> None:
        """A model was unloaded."""
        self.evictions(model, node).inc()

    def watch_process(self) -> None:
        """Export the version, and the memory, CPU time and file descriptors of this process."""
        info = Gauge("cortex_build_info", "1, with the version", ("version",), registry=self.registry)
        info.labels(__version__).set(1)
        ProcessCollector(registry=self.registry)

    def watch_fleet(self, nodes: Callable[[], FleetView]) -> None:
        """Export the gauges of the nodes that `nodes` returns at each scrape."""
        self.registry.register(_FleetCollector(nodes))

    def watch_rollouts(self, read: Callable[[], Iterable[RolloutReading]]) -> None:
        """Export step and guard distances of the rollouts that `read` returns at each scrape."""
        self.registry.register(_RolloutCollector(read))

    def watch_queue(self, waiting: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Export how many requests wait for a slot, by model and priority. `waiting` is called at each scrape."""
        self.registry.register(_QueueCollector(waiting))

    def watch_catalogue(self, read: Callable[[], CatalogueReadings]) -> None:
        """Export the state of the catalogue, which `read` returns at each scrape. These series exist from the start."""
        self.registry.register(_CatalogueCollector(read))

    def expose(self) -> bytes:
        """The text format of Prometheus, without metrics that have no sample yet."""
        return prometheus_client.generate_latest(_Populated(self.registry))

    def expose_for(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type, for a scraper that sends this `accept`.

        If requests are traced it may be OpenMetrics, the only format that has exemplars.
        """
        if self.has_exemplars and _OPENMETRICS in accept:
            body: bytes = openmetrics.generate_latest(_Populated(self.registry))  # type: ignore[no-untyped-call]
            return body, openmetrics.CONTENT_TYPE_LATEST
        return self.expose(), CONTENT_TYPE


class _SpansDroppedCollector(Collector):
    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield CounterMetricFamily("cortex_spans_dropped", "Spans of traces that no collector has taken", self._read())


class DeviceView(Protocol):
    """The readings of one device in MB, percent, degrees Celsius and watts; None if unknown."""

    @property
    def index(self) -> int: ...
    @property
    def vram_used_mb(self) -> int | None: ...
    @property
    def vram_free_mb(self) -> int | None: ...
    @property
    def utilization_pct(self) -> float | None: ...
    @property
    def temp_c(self) -> float | None: ...
    @property
    def power_w(self) -> float | None: ...


class NodeView(Protocol):
    """The readings of one node."""

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class
    @property
    def healthy(self) -> bool: ...  # noqa: D102 - as above
    @property
    def draining(self) -> bool: ...  # noqa: D102 - as above
    @property
    def devices(self) -> Iterable[DeviceView] | None: ...  # noqa: D102 - as above


FleetView = Iterable[NodeView]

_MB = 2**20  # bytes of what neurons call 1 MB

# Reading of a neuron -> name, what one unit of the reading is in the unit of the metric, help text.
_DEVICE_GAUGES = {
    "vram_used_mb": ("cortex_device_vram_used_bytes", _MB, "VRAM in use, bytes"),
    "vram_free_mb": ("cortex_device_vram_free_bytes", _MB, "VRAM free, bytes"),
    "utilization_pct": ("cortex_device_utilization_ratio", 0.01, "Utilization, 0 to 1"),
    "temp_c": ("cortex_device_temperature_celsius", 1, "Temperature, degrees Celsius"),
    "power_w": ("cortex_device_power_watts", 1, "Power draw, watts"),
}


@dataclass(frozen=True, slots=True)
class RolloutReading:
    """A running rollout: the number of its step, from 1, and how far each guard is from tripping (0: it trips)."""

    alias: str
    step: int
    guards: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CatalogueReadings:
    """The state of the catalogue; `reloads` are counted by result since the start.

    `waiting` has every alias that does not point at its new target yet, and whether its warm swap has failed.
    """

    generation: int
    last_reload_succeeded: bool
    reloads: Mapping[str, int]
    waiting: Mapping[str, bool] = field(default_factory=dict)


class _RolloutCollector(Collector):
    """Reads the running rollouts at a scrape."""

    def __init__(self, read: Callable[[], Iterable[RolloutReading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        step = GaugeMetricFamily("cortex_rollout_step", "Number of a rollout's step, from 1", labels=["alias"])
        distance = GaugeMetricFamily(
            "cortex_rollout_guard_distance",
            "How far a rollout's guard is from tripping: 1 without evidence, 0 when it trips",
            labels=["alias", "guard"],
        )
        for rollout in self._read():
            step.add_metric([rollout.alias], rollout.step)
            for guard, value in rollout.guards.items():
                distance.add_metric([rollout.alias, guard], value)
        yield step
        yield distance


class _QueueCollector(Collector):
    """Reads the length of each queue at a scrape."""

    def __init__(self, waiting: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        labels = ["model", "priority"]
        family = GaugeMetricFamily("cortex_queued_requests", "Requests waiting for a place", labels=labels)
        for model_and_priority, count in self._waiting().items():
            family.add_metric(model_and_priority, count)
        yield family


class _CatalogueCollector(Collector):
    """Reads the state of the catalogue at a scrape."""

    def __init__(self, read: Callable[[], CatalogueReadings]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        readings = self._read()
        yield GaugeMetricFamily(
            "cortex_catalogue_generation", "Generation of the catalogue in force", value=readings.generation
        )
        yield GaugeMetricFamily(
            "cortex_catalogue_last_reload_success",
            "1 if the file as it is now is in force, else 0",
            value=float(readings.last_reload_succeeded),
        )
        reloads = CounterMetricFamily(
            "cortex_catalogue_reloads", "Readings of models.toml, by result", labels=["result"]
        )
        for result, times in readings.reloads.items():
            if times:
                reloads.add_metric([result], times)
        yield reloads
        yield from _waiting(readings.waiting)


def _waiting(waiting: Mapping[str, bool]) -> Iterator[Metric]:
    warming = GaugeMetricFamily("cortex_alias_warming", "1 while the new target is made ready", labels=["alias"])
    failed = GaugeMetricFamily("cortex_alias_swap_failed", "1 while an alias could not be moved", labels=["alias"])
    for alias, given_up in waiting.items():
        (failed if given_up else warming).add_metric([alias], 1.0)
    yield warming
    yield failed


class _FleetCollector(Collector):
    """Reads the state of the nodes at a scrape."""

    def __init__(self, nodes: Callable[[], FleetView]) -> None:
        self._nodes = nodes

    def collect(self) -> Iterator[Metric]:
        nodes = list(self._nodes())
        healthy = GaugeMetricFamily("cortex_node_healthy", "1 if the neuron answers", labels=["node"])
        drained = GaugeMetricFamily("cortex_node_drained", "1 if an operator has drained the neuron", labels=["node"])
        for node in nodes:
            healthy.add_metric([node.name], float(node.healthy))
            drained.add_metric([node.name], float(node.draining))
        yield healthy
        yield drained
        for reading, (name, factor, text) in _DEVICE_GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=["node", "device"])
            for node in nodes:
                for device in node.devices or ():
                    value = getattr(device, reading)
                    if value is not None:
                        family.add_metric([node.name, str(device.index)], value * factor)
            yield family


class _Populated:
    """A registry for `generate_latest` that omits families without samples."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        return (family for family in self._registry.collect() if family.samples)
