"""`GET /admin/requests/{id}`: what happened to a request, from what was recorded on its way. No I/O, no state.

Recorded of every request: its model, the catalogue's generation, each attempt with its times and result, each fallback
and its reason, phases, bytes, tokens and outcome. Only where something stood in the way of a routing decision, every
neuron's state is recorded, too (`fleet/routing/decision_log.py`). Loads belong to the gateway and not to a request, so
they are looked up now, by model and time, among the last few hundred.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from catalogue.models import Resolution
from gateway.fleet.loading.load_history import LoadRecord
from gateway.fleet.routing.decision_log import NotedDecision
from gateway.telemetry.attempt_record import AttemptRecord, ErrorSummary
from gateway.telemetry.request_log import RequestLog
from gateway.telemetry.request_record import RequestRecord
from gateway.telemetry.routing_record import FallbackRecord

__all__ = ["LoadsBetween", "explain_requests"]

Json: TypeAlias = dict[str, Any]
LoadsBetween: TypeAlias = Callable[[str, float, float], list[LoadRecord]]
"""The loads of a model that were running between two times by Trio's clock, in s."""


def explain_requests(request_id: str, request_log: RequestLog, loads_between: LoadsBetween, now: float) -> list[Json]:
    """Every running or remembered request with this id, the oldest first. JSON; durations in ms."""
    live = [record for record in request_log.live.values() if record.request_id == request_id]
    return [_request(record, loads_between, now) for record in (*request_log.recent.find(request_id), *live)]


def _request(record: RequestRecord, loads_between: LoadsBetween, now: float) -> Json:
    routing, answer = record.routing, record.answer
    until = now if record.ended_at is None else record.ended_at
    first_token_at = answer.first_token_at
    return {
        "request_id": record.request_id,
        "state": "ended" if record.ended_at is not None else routing.state,
        **routing.place,
        "received_at": record.started_unix,
        "path": record.path,
        "key": None if record.key_id is None else {"id": record.key_id, "name": record.key_name},
        "stream": record.stream,
        "alias": routing.alias,
        "target": routing.target,
        "model": routing.model,
        "resolved": None if routing.resolution is None else _why(routing.resolution),
        "generation": routing.generation,
        "choices": [_decision(choice, record.started_at) for choice in routing.decisions],
        "loads": _loads(record, loads_between, until),
        "fallbacks": [_fallback(fallback, record.started_at) for fallback in routing.fallbacks],
        "attempts": [_attempt(attempt, record.started_at, until) for attempt in routing.attempts],
        "retries": routing.retries,
        "phases_ms": record.phases_ms if record.phases is None else record.phases.spent_ms(now),
        "first_token_ms": None if first_token_at is None else _ms(first_token_at - record.started_at),
        "total_ms": _ms(until - record.started_at),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "tokens": _tokens(record),
        "ignored": record.ignored.decode() or None,
        "node": routing.node,
        "status": record.status or None,
        "outcome": None if record.ended_at is None else record.outcome,
        "error": _error(record.error_summary if record.error is None else ErrorSummary.of(record.error)),
    }


def _why(resolution: Resolution) -> str:
    """Why the request went to this model, as the end of a sentence."""
    policy = resolution.policy
    if resolution.alias is None:
        return "by its own name"
    if policy is None or len(policy.targets) == 1:
        return "the target of its alias"
    total = sum(target.weight for target in policy.targets)
    weight = sum(target.weight for target in policy.targets if target.model == resolution.model)
    kept = "" if policy.sticky == "none" else f", kept by {policy.sticky}"
    return f"{weight:g} of {total:g} by weight among {len(policy.targets)} targets{kept}"


def _decision(choice: NotedDecision, started_at: float) -> Json:
    verdicts = [
        {"node": verdict.node, "state": verdict.state, "detail": verdict.detail} for verdict in choice.node_verdicts()
    ]
    return {
        "at_ms": _ms(choice.at - started_at),
        "model": choice.model,
        "decision": choice.decision,
        "node": choice.node,
        "candidates": verdicts,
    }


_LOAD_DECISIONS = frozenset({"load", "wait for the load"})


def _loads(record: RequestRecord, loads_between: LoadsBetween, until: float) -> list[Json]:
    """The loads that were running while the request waited for one, of each model that it waited for."""
    waits: dict[str, list[float]] = {}
    for choice in record.routing.decisions:
        if choice.decision in _LOAD_DECISIONS:
            waits.setdefault(choice.model, []).append(choice.at)
    found = (
        load
        for model, times in waits.items()
        for load in loads_between(model, times[0], _wait_end(record, model, times[-1], until))
    )
    return [_load(load, record.started_at) for load in sorted(found, key=lambda load: load.began_at)]


def _wait_end(record: RequestRecord, model: str, since: float, until: float) -> float:
    """When the last wait for the model ended: an attempt began, or the request fell back to another model."""
    attempts = (attempt.began_at for attempt in record.routing.attempts if attempt.model == model)
    fallbacks = (fallback.at for fallback in record.routing.fallbacks if fallback.model == model)
    return min((at for at in (*attempts, *fallbacks) if at >= since), default=until)


def _load(load: LoadRecord, started_at: float) -> Json:
    return {
        "model": load.model,
        "node": load.node,
        "at_ms": _ms(load.began_at - started_at),
        "took_ms": None if load.ended_at is None else _ms(load.ended_at - load.began_at),
        "outcome": load.outcome,
        "reason": load.reason,
        "evicted": list(load.evicted),
        "woke": load.woke,
    }


def _fallback(fallback: FallbackRecord, started_at: float) -> Json:
    return {
        "at_ms": _ms(fallback.at - started_at),
        "model": fallback.model,
        "to": fallback.to,
        "passed_over": fallback.is_skipped,
        "error": _error(fallback.error),
    }


def _attempt(attempt: AttemptRecord, started_at: float, until: float) -> Json:
    ended_at = until if attempt.ended_at is None else attempt.ended_at
    return {
        "model": attempt.model,
        "node": attempt.node,
        "at_ms": _ms(attempt.began_at - started_at),
        "took_ms": _ms(ended_at - attempt.began_at),
        "hedge": attempt.is_hedge,
        "result": attempt.result,
        "error": _error(attempt.error),
    }


def _tokens(record: RequestRecord) -> Json | None:
    usage = record.answer.usage
    if usage is None:
        return None
    return {
        "prompt": usage.prompt_tokens,
        "completion": usage.completion_tokens,
        "cached": usage.cached_tokens,
        "estimated": record.answer.is_estimated,
    }


def _error(error: ErrorSummary | None) -> Json | None:
    return None if error is None else {"code": error.code, "message": error.message, "param": error.param}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
