"""The neuron's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from neuron.agent.devices.devices import DeviceUsage
from neuron.agent.supervision.host import ModelHost
from neuron.agent.supervision.model_status import ModelStatus

__all__ = ["NeuronMetrics"]

LOAD_BUCKETS_S = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)
BYTES_PER_MB = 2**20


class NeuronMetrics:
    """Counts loads; everything else is read from the host at each scrape."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # no annotations in the library
        self._registry = CollectorRegistry()
        self._loads = Histogram(
            "neuron_load_seconds",
            "Duration of successful loads",
            ["model"],
            buckets=LOAD_BUCKETS_S,
            registry=self._registry,
        )

    def loaded(self, model_id: str, took_s: float) -> None:
        """A model has been loaded."""
        self._loads.labels(model_id).observe(took_s)

    def read_from(self, host: ModelHost) -> None:
        """Expose the state of this host too."""
        self._registry.register(_HostCollector(host))

    def expose(self) -> bytes:
        """In Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)


class _HostCollector(Collector):
    def __init__(self, host: ModelHost) -> None:
        self._host = host

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("neuron_engine_up", "Whether the engine of a model can serve", labels=["model"])
        restarts = CounterMetricFamily("neuron_engine_restarts", "Restarts after crashes", labels=["model"])
        for supervisor in self._host.models.values():
            up.add_metric([supervisor.id], float(supervisor.is_in(ModelStatus.LOADED)))
            restarts.add_metric([supervisor.id], supervisor.restarts)
        yield up
        yield restarts
        yield from self._devices()

    def _devices(self) -> Iterator[Metric]:
        for name, read in _READINGS.items():
            gauge = GaugeMetricFamily(f"neuron_device_{name}", "By the driver", labels=["device"])
            for index, usage in sorted(self._host.memory.usage.items()):
                value = read(usage)
                if value is not None:
                    gauge.add_metric([str(index)], value)
            yield gauge


_READINGS: dict[str, Callable[[DeviceUsage], float | None]] = {
    "memory_used_bytes": lambda usage: usage.memory_used_mb * BYTES_PER_MB,
    "memory_free_bytes": lambda usage: usage.memory_free_mb * BYTES_PER_MB,
    "utilization_ratio": lambda usage: usage.utilization_percent / 100,
    "temperature_celsius": lambda usage: usage.temperature_c,
    "power_watts": lambda usage: usage.power_w,
}
