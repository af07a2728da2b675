"""The metrics of a Prometheus registry, by OTLP over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Family

__all__ = ["MetricSender", "otlp_metrics"]

EXPORT_TIMEOUT_S = 10
Labels = tuple[tuple[str, str], ...]


class MetricSender:
    """Sends the present values of a registry.

    Args:
        endpoint: The collector's base URL.
        version: Of the gateway, for the resource.
        registry: What to send.
    """

    def __init__(self, endpoint: str, version: str, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._version = version
        self._resource = Resource.create({"service.name": "cortex", "service.version": version})
        self._began_ns = time.time_ns()
        self._exporter = OTLPMetricExporter(endpoint=f"{endpoint.rstrip('/')}/v1/metrics", timeout=EXPORT_TIMEOUT_S)

    def read(self) -> MetricsData:
        """The present values. Call it in the event loop's thread, which changes them."""
        metrics = otlp_metrics(self._registry.collect(), self._began_ns, time.time_ns())
        scope = ScopeMetrics(InstrumentationScope("cortex", self._version), metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def send(self, data: MetricsData) -> bool:
        """Whether the collector has them. Blocks for at most `EXPORT_TIMEOUT_S`, its retries included."""
        return self._exporter.export(data) is MetricExportResult.SUCCESS

    def close(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


def otlp_metrics(families: Iterable[Family], began_ns: int, now_ns: int) -> list[Metric]:
    """Prometheus metrics as those of OTLP. Counters and histograms are cumulative since `began_ns`."""
    return [_metric(family, began_ns, now_ns) for family in families if family.samples]


def _metric(family: Family, began_ns: int, now_ns: int) -> Metric:
    data: Any
    if family.type == "histogram":
        data = Histogram(_histogram_points(family, began_ns, now_ns), AggregationTemporality.CUMULATIVE)
    else:
        points = [
            NumberDataPoint(dict(sample.labels), began_ns, now_ns, float(sample.value))
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]
        data = (
            Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
            if family.type == "counter"
            else Gauge(points)
        )
    return Metric(family.name, family.documentation, "", data)


def _histogram_points(family: Family, began_ns: int, now_ns: int) -> list[HistogramDataPoint]:
    bounds: dict[Labels, list[tuple[float, float]]] = {}
    sums: dict[Labels, float] = {}
    for sample in family.samples:
        labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
        if sample.name.endswith("_bucket"):
            bounds.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    points = []
    for labels, cumulative in bounds.items():
        cumulative.sort()
        counts = [int(count - before) for (_, count), (_, before) in zip(cumulative, [(0.0, 0.0), *cumulative])]  # noqa: B905
        points.append(
            HistogramDataPoint(
                attributes=dict(labels),
                start_time_unix_nano=began_ns,
                time_unix_nano=now_ns,
                count=int(cumulative[-1][1]),
                sum=sums.get(labels, 0.0),
                bucket_counts=counts,
                explicit_bounds=[bound for bound, _ in cumulative[:-1]],
                min=0.0,
                max=0.0,
            )
        )
    return points
