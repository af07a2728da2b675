"""Requests as JSON in lists: those that run, and those that ended. `telemetry/explain.py` describes a single one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gateway.telemetry.request_log import RequestLog
from gateway.telemetry.request_record import RequestRecord

__all__ = ["ended_request_json", "keys_of_alias", "live_request_json"]


def live_request_json(record: RequestRecord, now: float) -> dict[str, Any]:
    """A running request; `now` is Trio's clock in s."""
    return {
        "request_id": record.request_id,
        "path": record.path,
        "key": None if record.key_id is None else {"id": record.key_id, "name": record.key_name},
        "alias": record.routing.alias,
        "model": record.routing.model,
        "node": record.routing.node,
        "state": record.routing.state,
        **record.routing.place,
        "stream": record.stream,
        "elapsed_s": round(now - record.started_at, 3),
        "retries": record.routing.retries,
        "received_at": round(record.started_unix, 3),
        "tokens": None if record.answer.meter is None else record.answer.meter.generated,
    }


def ended_request_json(record: RequestRecord) -> dict[str, Any]:
    """A request that has ended."""
    routing, answer = record.routing, record.answer
    ended_at = record.started_at if record.ended_at is None else record.ended_at
    first_at, error = answer.first_token_at, record.error_summary
    return {
        "request_id": record.request_id,
        "path": record.path,
        "key": None if record.key_id is None else {"id": record.key_id, "name": record.key_name},
        "alias": routing.alias,
        "model": routing.model,
        "node": routing.node,
        "status": record.status or None,
        "outcome": record.outcome,
        "stream": record.stream,
        "received_at": round(record.started_unix, 3),
        "total_ms": round((ended_at - record.started_at) * 1000, 1),
        "first_token_ms": None if first_at is None else round((first_at - record.started_at) * 1000, 1),
        "prompt_tokens": None if answer.usage is None else answer.usage.prompt_tokens,
        "completion_tokens": None if answer.usage is None else answer.usage.completion_tokens,
        "retries": routing.retries,
        "hedge": routing.hedge,
        "error": None if error is None else error.code,
    }


def keys_of_alias(requests: RequestLog, alias: str) -> list[dict[str, Any]]:
    """The keys that use an alias, the busiest first, by the requests that run or are remembered."""
    records = (*requests.live.values(), *requests.recent.newest_first())
    names = Counter(record.key_name for record in records if record.routing.alias == alias and record.key_name)
    return [{"name": name, "requests": count} for name, count in names.most_common()]
