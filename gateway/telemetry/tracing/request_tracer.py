"""Begins and ends the trace of each request."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from gateway.asgi import Headers
from gateway.telemetry.request_record import RequestRecord
from gateway.telemetry.tracing.span_tree import SpanValues, span_tree
from gateway.telemetry.tracing.trace_context import TraceContext

__all__ = ["RequestTracer"]

log = structlog.get_logger("cortex.tracing")


class RequestTracer:
    """Decides which requests are traced, and hands on their spans.

    Args:
        sample: The share of requests that are traced where the client does not say; 0 to 1.
        send: Takes the spans of one request; must not block.
    """

    def __init__(self, sample: float, send: Callable[[Sequence[SpanValues], TraceContext], None]) -> None:
        self._sample = sample
        self._send = send

    def begin(self, record: RequestRecord, headers: Headers) -> None:
        """Set the record's trace, if the request is traced."""
        record.trace = TraceContext.begin(headers, self._sample)

    def end(self, record: RequestRecord, now: float) -> None:
        """Hand on the spans of a request that ends at `now` (Trio's clock). A failure is only logged."""
        if record.trace is None:
            return
        try:
            self._send(span_tree(record, record.trace, now), record.trace)
        except Exception:
            log.exception("trace_failed", request_id=record.request_id)
