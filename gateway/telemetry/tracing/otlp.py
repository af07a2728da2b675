"""Sends spans and metrics to a collector, by OTLP over HTTP, with OpenTelemetry's SDK (the extra `otel`).

The SDK batches spans in a thread of its own. A request's end only appends to its queue: when the queue is full because
the collector is away, spans are dropped, and counted.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

if TYPE_CHECKING:
    from gateway.telemetry.tracing.span_tree import SpanValues
    from gateway.telemetry.tracing.trace_context import TraceContext

__all__ = ["SpanSender"]

QUEUE_SPANS = 8192  # about 1,000 requests
BATCH_SPANS = 512
DELAY_MS = 1000
EXPORT_TIMEOUT_S = 10
LAST_EXPORT_S = 2
_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class SpanSender:
    """Queues spans for the exporter's thread.

    Args:
        endpoint: The collector's base URL, for example http://localhost:4318.
        version: Of the gateway, for the resource.
    """

    def __init__(self, endpoint: str, version: str) -> None:
        self._not_queued = 0
        self._ids = _PresetIds()
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S)
        self._exporter = _CountingExporter(exporter)
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "cortex", "service.version": version}),
            id_generator=self._ids,
            span_limits=SpanLimits(max_attribute_length=1000),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=QUEUE_SPANS,
                schedule_delay_millis=DELAY_MS,
                max_export_batch_size=BATCH_SPANS,
            )
        )
        self._tracer = self._provider.get_tracer("cortex", version)
        self._queued = 0

    @property
    def dropped(self) -> int:
        """The number of spans that did not fit into the queue, or that the collector did not take."""
        return self._not_queued + self._exporter.refused

    def send(self, spans: Sequence[SpanValues], context: TraceContext) -> None:
        """Queue the spans of one request; all or none."""
        if self._queued - self._exporter.taken + len(spans) > QUEUE_SPANS:
            self._not_queued += len(spans)
            return
        for values in spans:
            self._ids.next_span, self._ids.next_trace = values.span_id, context.trace_id
            parent = trace.set_span_in_context(NonRecordingSpan(self._parent(values, context)))
            span = self._tracer.start_span(
                values.name,
                context=parent,
                kind=_KINDS[values.kind],
                attributes=dict(values.attributes),
                start_time=values.began_ns,
            )
            if values.error is not None:
                span.set_status(Status(StatusCode.ERROR, values.error))
            span.end(end_time=values.ended_ns)
        self._queued += len(spans)

    def _parent(self, values: SpanValues, context: TraceContext) -> SpanContext:
        if not values.parent_id:
            return trace.INVALID_SPAN_CONTEXT
        is_remote = values.parent_id == context.parent_id
        return SpanContext(context.trace_id, values.parent_id, is_remote=is_remote, trace_flags=_SAMPLED)

    def close(self) -> None:
        """Send what is queued, and end the thread. Blocks for `LAST_EXPORT_S`, and then as long as one connection."""
        give_up = threading.Timer(LAST_EXPORT_S, self._exporter.shutdown)  # ends its retries
        give_up.start()
        try:
            self._provider.shutdown()
        finally:
            give_up.cancel()
            give_up.join()


class _PresetIds(IdGenerator):
    """The ids were chosen when the request began, because neurons got them."""

    next_span = 0
    next_trace = 0

    def generate_span_id(self) -> int:
        return self.next_span

    def generate_trace_id(self) -> int:
        return self.next_trace


class _CountingExporter(SpanExporter):
    """Counts what the SDK's thread takes from the queue, and what the collector did not accept."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.taken = 0
        self.refused = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.refused += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
