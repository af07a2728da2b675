"""The record of one request, from its first byte to its last, and for a while after that.

`request_log.py` opens it, and takes it at its end. By then the record has released everything large, because a client
may have sent 64 MiB.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeAlias

from gateway.asgi import Headers
from gateway.errors import GatewayError
from gateway.fleet.lease import GpuUse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.telemetry.answer_record import AnswerRecord
from gateway.telemetry.attempt_record import ErrorSummary
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.routing_record import RoutingRecord
from gateway.telemetry.tracing.trace_context import TraceContext

__all__ = ["Outcome", "RequestRecord"]

Outcome: TypeAlias = Literal["ok", "error", "upstream_error", "client_disconnected", "cancelled"]


class RequestRecord:
    """One request. Synchronous throughout.

    Attributes (times are Trio's clock in seconds, unless the name says otherwise; None is "not yet"):
        now: The method of Trio's clock that returns its time, in s.
        started_at: When the request's head had been read.
        started_unix: The same in Unix time.
        read_at: When the body had been read, or as much of a form as routing needs.
        first_byte_at: When the first bytes of an answer that is not a stream arrived.
        sent_first_at: When the first bytes of the answer had been written to the client.
        ended_at: When the request ended.
        phases: The phases of the running request, once it is resolved.
        phases_ms: How long each phase took in ms, once the request has ended.
        routing: How the request was routed, and its attempts.
        answer: What was measured of the answer.
        stream: The answer is an event stream, or the client asked for one.
        status: The status that the client got; 0 for none.
        upstream_status: The status of the neuron that answered or refused.
        outcome: How the request ended; `cancelled` until anything else is known.
        error: The error that the client gets, while the request runs; then `error_summary` has it.
        key_id, key_name: The key of the client; None without one.
        gpu_use: What the request takes of devices; None if it is not accounted for.
        limit_headers: Returns the rate-limit headers of a response that begins now; None for a key without such limits.
        ignored: The value of `x-cortex-ignored`: what a translation left out of the request; empty for nothing.
        trace: The trace that the request belongs to; None if it is not traced.
        cancel: Ends the running request; its client gets the error if its response can still carry it.
    """

    __slots__ = (
        "answer", "bytes_in", "bytes_out", "cancel", "ended_at", "error", "error_summary", "first_byte_at",
        "gpu_use", "ignored", "key_id", "key_name", "limit_headers", "now", "outcome", "path", "phases", "phases_ms",
        "read_at", "request_id", "routing", "sent_first_at", "started_at", "started_unix", "status",
        "stream", "trace", "upstream_status",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        path: str,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self.now = now
        self.request_id = request_id
        self.path = path
        self.started_at = now()
        self.started_unix = time.time()
        self.read_at: float | None = None
        self.first_byte_at: float | None = None
        self.sent_first_at: float | None = None
        self.ended_at: float | None = None
        self.phases: PhaseDeadlines | None = None
        self.phases_ms: dict[str, float] = {}
        self.routing = RoutingRecord(metrics, request_id)
        self.answer = AnswerRecord()
        self.stream = False
        self.status = 0
        self.upstream_status: int | None = None
        self.outcome: Outcome = "cancelled"
        self.error: GatewayError | None = None
        self.error_summary: ErrorSummary | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.ignored = b""
        self.key_id: str | None = None
        self.key_name: str | None = None
        self.gpu_use: GpuUse | None = None
        self.limit_headers: Callable[[], Headers] | None = None
        self.trace: TraceContext | None = None
        self.cancel: Callable[[GatewayError], None] = _nothing_to_cancel

    def failed(self, error: GatewayError) -> None:
        """The client gets an error of the gateway."""
        self.outcome, self.error = "error", error

    def release(self, now: float) -> None:
        """The request has ended at `now` (Trio's clock): keep only what is small."""
        self.ended_at = now
        self.phases = None
        self.routing.release(now)
        if self.answer.meter is not None or self.answer.is_observed:
            self.answer.release()
        self.cancel = _nothing_to_cancel
        self.limit_headers = self.gpu_use = None
        if self.error is not None:
            self.error_summary, self.error = ErrorSummary.of(self.error), None


def _nothing_to_cancel(_: GatewayError) -> None:
    """While a request is being read, its deadline ends it."""
