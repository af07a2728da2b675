"""Spans and metrics arrive at a collector by OTLP; a collector that is away costs requests nothing."""

import threading
import time

import pytest
from fakes.collector import Collector
from fakes.operator import wait_until

from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing.otlp import QUEUE_SPANS, SpanSender
from gateway.telemetry.tracing.otlp_metrics import MetricSender
from gateway.telemetry.tracing.span_tree import SpanValues
from gateway.telemetry.tracing.trace_context import TraceContext

CONTEXT = TraceContext(0xABC, 1, 7)
SPANS = [
    SpanValues("POST /v1/chat/completions", "server", 1, 7, 1_000, 9_000, {"http.response.status_code": 200}),
    SpanValues("chat m", "client", 2, 1, 2_000, 8_000, {"cortex.node": "a"}, "cancelled"),
]


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


def test_tree_arrives_with_its_ids_times_and_status(collector):
    sender = SpanSender(collector.url, "1.2.3")
    sender.send(SPANS, CONTEXT)
    sender.close()

    root, attempt = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert (root.trace_id, root.span_id, root.parent_span_id) == (
        (0xABC).to_bytes(16),
        (1).to_bytes(8),
        (7).to_bytes(8),
    )
    assert (attempt.trace_id, attempt.span_id, attempt.parent_span_id) == (root.trace_id, (2).to_bytes(8), root.span_id)
    assert (root.kind, attempt.kind) == (root.SPAN_KIND_SERVER, root.SPAN_KIND_CLIENT)
    assert (attempt.start_time_unix_nano, attempt.end_time_unix_nano) == (2_000, 8_000)
    assert root.status.code == root.status.STATUS_CODE_UNSET
    assert (attempt.status.code, attempt.status.message) == (root.status.STATUS_CODE_ERROR, "cancelled")
    assert collector.resource["service.name"] == "cortex"
    assert collector.resource["service.version"] == "1.2.3"
    assert sender.dropped == 0


def test_queue_is_bounded_while_the_collector_hangs(collector):
    """No call blocks; what does not fit is counted."""
    collector.release.clear()
    sender = SpanSender(collector.url, "1")
    for _ in range(2 * QUEUE_SPANS):
        sender.send(SPANS, CONTEXT)
    assert sender.dropped >= 2 * QUEUE_SPANS  # half of them, less what the thread has taken
    collector.release.set()
    sender.close()
    assert len(collector.spans) + sender.dropped == 4 * QUEUE_SPANS


def test_collector_that_is_away_costs_only_spans():
    """The exporter gives up, and its spans are counted."""
    sender = SpanSender("http://127.0.0.1:1", "1")
    sender.send(SPANS, CONTEXT)
    closer = threading.Thread(target=sender.close)
    closer.start()
    wait_until(lambda: sender.dropped == 2)
    closer.join()


def test_metrics_arrive_as_counters_gauges_and_histograms(collector):
    metrics = Metrics()
    metrics.requests("m", "a").inc(3)
    metrics.duration("m", "a").observe(0.7)
    metrics.duration("m", "a").observe(2000)
    metrics.inflight("m", "a").set(2)
    sender = MetricSender(collector.url, "1", metrics.registry)
    began = time.time_ns()
    assert sender.send(sender.read())
    sender.close()

    by_name = {metric["name"]: metric for metric in collector.metrics}
    [requests] = by_name["cortex_requests"]["sum"]["dataPoints"]
    assert by_name["cortex_requests"]["sum"]["isMonotonic"]
    assert requests["asDouble"] == 3
    assert {each["key"]: each["value"]["stringValue"] for each in requests["attributes"]} == {"model": "m", "node": "a"}
    assert int(requests["timeUnixNano"]) >= began
    assert by_name["cortex_inflight_requests"]["gauge"]["dataPoints"][0]["asDouble"] == 2
    [duration] = by_name["cortex_request_duration_seconds"]["histogram"]["dataPoints"]
    assert (duration["count"], duration["sum"]) == ("2", 2000.7)
    assert duration["explicitBounds"][:3] == [0.1, 0.5, 1]
    assert duration["bucketCounts"][2] == "1"
    assert duration["bucketCounts"][-1] == "1"
    assert len(duration["bucketCounts"]) == len(duration["explicitBounds"]) + 1


def test_exemplars_name_traces_only_where_requests_are_traced():
    """OpenMetrics has them; the text format does not."""
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    metrics = Metrics(has_exemplars=True)
    metrics.duration("m", "a").observe(0.7)
    metrics.duration("m", "a").name_trace(0.7, int("ab" * 16, 16))
    body, content_type = metrics.expose_for(accept)
    assert b'# {trace_id="' + b"ab" * 16 in body
    assert content_type.startswith("application/openmetrics-text")
    assert b"trace_id" not in metrics.expose_for("text/plain")[0]
    assert Metrics().expose_for(accept)[1].startswith("text/plain")
