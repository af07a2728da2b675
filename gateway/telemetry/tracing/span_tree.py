"""The spans of one request, made from its record when it ends.

    request (server)
      queue, load            waiting for a replica
      attempt (client)       one per neuron that was asked; hedges overlap
        connect, first_byte, relay

Names and attributes follow OpenTelemetry's semantic conventions for HTTP and for generative AI. Prompts, answers and
keys are never in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from gateway.telemetry.attempt_record import AttemptRecord
from gateway.telemetry.request_record import RequestRecord
from gateway.telemetry.tracing.trace_context import TraceContext, new_span_id

__all__ = ["SpanValues", "span_tree"]

AttributeValue: TypeAlias = str | int | float | bool | tuple[str, ...]

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_RELAY = "idle"  # the phase in which chunks come; "relay" says more to the reader of a trace
_WAITING = ("queue", "load")
_CANCELLED = ("lost", "cancelled")  # another attempt answered first; the request ended


@dataclass(frozen=True, slots=True)
class SpanValues:
    """One span. Times are nanoseconds since the epoch; `error` is None for a span that succeeded."""

    name: str
    kind: Literal["server", "client", "internal"]
    span_id: int
    parent_id: int
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    error: str | None = None


def span_tree(record: RequestRecord, context: TraceContext, now: float) -> list[SpanValues]:
    """All spans of a request that ends at `now` (Trio's clock, in s), parents before children."""
    offset_s = record.started_unix - record.started_at

    def ns(at: float) -> int:
        return int((at + offset_s) * 1e9)

    spans = [_request_span(record, context, ns(record.started_at), ns(now))]
    attempts: list[tuple[float, int]] = []
    for attempt in record.routing.attempts:
        ended_at = now if attempt.ended_at is None else attempt.ended_at
        span_id = attempt.span_id or new_span_id()
        attributes, error = _describe_attempt(record, attempt)
        name = f"{attributes['gen_ai.operation.name']} {attempt.model}"
        times = ns(attempt.began_at), ns(ended_at)
        spans.append(SpanValues(name, "client", span_id, context.span_id, *times, attributes, error))
        if attempt.result != "lost":
            attempts.append((attempt.began_at, span_id))
    for name, began_at, ended_at in _phases(record, now):
        inside = [span_id for attempt_began_at, span_id in attempts if attempt_began_at <= began_at]
        parent_id = inside[-1] if inside and name not in _WAITING else context.span_id
        spans.append(SpanValues(name, "internal", new_span_id(), parent_id, ns(began_at), ns(ended_at)))
    return spans


def _phases(record: RequestRecord, now: float) -> list[tuple[str, float, float]]:
    phases = record.phases
    entered = [] if phases is None else phases.entered
    ends = [began_at for _, began_at in entered[1:]] + [now]
    return [
        ("relay" if phase == _RELAY else phase, began_at, ended_at)
        for (phase, began_at), ended_at in zip(entered, ends, strict=False)
    ]


def _request_span(record: RequestRecord, context: TraceContext, began_ns: int, ended_ns: int) -> SpanValues:
    routing, usage = record.routing, record.answer.usage
    attributes: dict[str, AttributeValue] = {
        "http.request.method": "POST",
        "http.route": record.path,
        "url.path": record.path,
        "cortex.request_id": record.request_id,
        "cortex.outcome": record.outcome,
        "gen_ai.operation.name": _operation(record),
    }
    optional = {
        "http.response.status_code": record.status or None,
        "gen_ai.request.model": _asked_for(record),
        "gen_ai.response.model": None if routing.is_unknown_model else routing.model,
        "gen_ai.usage.input_tokens": None if usage is None else usage.prompt_tokens,
        "gen_ai.usage.output_tokens": None if usage is None else usage.completion_tokens,
        "cortex.alias": routing.alias,
        "cortex.node": routing.node,
        "cortex.key.name": record.key_name,
        "cortex.retries": routing.retries or None,
    }
    attributes |= {name: value for name, value in optional.items() if value is not None}
    if record.answer.finish_reason is not None:
        attributes["gen_ai.response.finish_reasons"] = (record.answer.finish_reason,)
    if record.answer.first_token_at is not None:
        attributes["gen_ai.server.time_to_first_token"] = record.answer.first_token_at - record.started_at
    error = _error_of(record)
    if error is not None:
        attributes["error.type"] = error
    return SpanValues(
        f"POST {record.path}", "server", context.span_id, context.parent_id, began_ns, ended_ns, attributes, error
    )


def _asked_for(record: RequestRecord) -> str | None:
    """The name that the client asked for; None if no model has it: then it may be anything."""
    return None if record.routing.is_unknown_model else record.routing.alias or record.routing.target


def _error_of(record: RequestRecord) -> str | None:
    if record.error is not None:
        return record.error.code or "bad_request"
    if record.outcome == "upstream_error":
        return str(record.upstream_status)
    return None if record.outcome == "ok" else record.outcome


def _describe_attempt(record: RequestRecord, attempt: AttemptRecord) -> tuple[Mapping[str, AttributeValue], str | None]:
    """The attributes of an attempt's span, and its error."""
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": _operation(record),
        "gen_ai.request.model": attempt.model,
        "cortex.node": attempt.node,
        "cortex.attempt.result": attempt.result or "cancelled",
        "cortex.attempt.hedge": attempt.is_hedge,
    }
    error = None if attempt.error is None else attempt.error.code or "error"
    if attempt.result in _CANCELLED:
        error = "cancelled"
    if error is not None:
        attributes["error.type"] = error
    return attributes, error


def _operation(record: RequestRecord) -> str:
    return _OPERATIONS.get(record.path, record.path.rsplit("/", 1)[1])
