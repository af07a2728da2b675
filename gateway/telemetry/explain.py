"""`GET /admin/requests/{id}`: the story of one request, told from what was noted on its way. No I/O, nothing kept here.

Noted of every request: what it asked for, the catalogue's generation, each attempt with its beginning, end and result,
what its alias fell back to and why, phases, bytes, tokens, and how it ended. Only where something stood in the way of a
decision: a verdict on every neuron (`choices.py`). Loads are the gateway's and not a request's, so they are looked up
now, by model and time, among the last few hundred; a request whose load is forgotten still tells how long it waited.
"""

from __future__ import annotations

from typing import Any, Protocol

from catalogue.resolve import Resolution
from gateway.fleet.loading.load_history import LoadStory
from gateway.fleet.routing.decision_log import Choice
from gateway.telemetry.attempt_record import AttemptRecord, End
from gateway.telemetry.request_log import Accounts
from gateway.telemetry.request_record import Fallback, Record

__all__ = ["Loads", "stories"]

Story = dict[str, Any]


class Loads(Protocol):
    """Whoever knows of loads."""

    def loads_between(self, model: str, since: float, until: float) -> list[LoadStory]:
        """See Lifecycle."""
        ...


def stories(request_id: str, accounts: Accounts, loads: Loads, now: float) -> list[Story]:
    """Of every request with this id that is remembered or under way, the oldest first. JSON; durations in ms."""
    live = [record for record in accounts.live.values() if record.request_id == request_id]
    return [_story(record, loads, now) for record in (*accounts.recent.find(request_id), *live)]


def _story(record: Record, loads: Loads, now: float) -> Story:
    until = now if record.ended_at is None else record.ended_at
    first_token_at = record.meter.first_at if record.meter is not None else record.first_token_at
    return {
        "request_id": record.request_id,
        "state": "ended" if record.ended_at is not None else record.state,
        "received_at": record.started_unix,
        "path": record.path,
        "stream": record.stream,
        **_asked_for(record),
        "choices": [_choice(choice, record) for choice in record.choices],
        "loads": _loads(record, loads, until),
        "fallbacks": [_fallback(one, record) for one in record.fallbacks],
        "attempts": [_attempt(attempt, record, until) for attempt in record.attempts],
        "retries": record.retries,
        "phases_ms": record.phases_ms if record.phases is None else record.phases.spent_ms(now),
        "first_token_ms": None if first_token_at is None else _ms(first_token_at - record.started_at),
        "total_ms": _ms(until - record.started_at),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "tokens": _tokens(record),
        "node": record.node,
        "status": record.status or None,
        "outcome": None if record.ended_at is None else record.outcome,
        "error": _end(record.end if record.error is None else End.of(record.error)),
    }


def _asked_for(record: Record) -> Story:
    resolution = record.resolution
    return {
        "alias": record.alias,
        "target": record.target,
        "model": record.model,
        "resolved": None if resolution is None else _why(resolution),
        "generation": record.generation,
    }


def _why(resolution: Resolution) -> str:
    """Why this model, as the end of a sentence."""
    policy = resolution.policy
    if resolution.alias is None:
        return "by its own name"
    if policy is None or len(policy.targets) == 1:
        return "the target of its alias"
    total = sum(target.weight for target in policy.targets)
    mine = sum(target.weight for target in policy.targets if target.model == resolution.model)
    kept = "" if policy.sticky == "none" else f", kept by {policy.sticky}"
    return f"{mine:g} of {total:g} by weight among {len(policy.targets)} targets{kept}"


def _choice(choice: Choice, record: Record) -> Story:
    verdicts = [{"node": one.node, "state": one.state, "detail": one.detail} for one in choice.told()]
    return {
        "at_ms": _ms(choice.at - record.started_at),
        "model": choice.model,
        "decision": choice.decision,
        "node": choice.node,
        "candidates": verdicts,
    }


def _loads(record: Record, loads: Loads, until: float) -> list[Story]:
    """Those that were under way while it waited for one, of each model that it waited for."""
    waits: dict[str, list[float]] = {}
    for choice in record.choices:
        if choice.decision in _LOADS:
            waits.setdefault(choice.model, []).append(choice.at)
    found = (
        load
        for model, times in waits.items()
        for load in loads.loads_between(model, times[0], _went_on(record, model, times[-1], until))
    )
    return [_load(load, record) for load in sorted(found, key=lambda load: load.began_at)]


def _went_on(record: Record, model: str, since: float, until: float) -> float:
    """When the last wait for the model was over: it was asked then, or another in its place."""
    asked = (attempt.began_at for attempt in record.attempts if attempt.model == model)
    given_up = (fallback.at for fallback in record.fallbacks if fallback.model == model)
    return min((at for at in (*asked, *given_up) if at >= since), default=until)


_LOADS = frozenset({"load", "wait for the load"})


def _load(load: LoadStory, record: Record) -> Story:
    return {
        "model": load.model,
        "node": load.node,
        "at_ms": _ms(load.began_at - record.started_at),
        "took_ms": None if load.ended_at is None else _ms(load.ended_at - load.began_at),
        "outcome": load.outcome,
        "reason": load.reason,
        "evicted": list(load.evicted),
    }


def _fallback(fallback: Fallback, record: Record) -> Story:
    return {
        "at_ms": _ms(fallback.at - record.started_at),
        "model": fallback.model,
        "to": fallback.to,
        "passed_over": fallback.is_passed_over,
        "error": _end(fallback.end),
    }


def _attempt(attempt: AttemptRecord, record: Record, until: float) -> Story:
    ended_at = until if attempt.ended_at is None else attempt.ended_at
    return {
        "model": attempt.model,
        "node": attempt.node,
        "at_ms": _ms(attempt.began_at - record.started_at),
        "took_ms": _ms(ended_at - attempt.began_at),
        "hedge": attempt.is_hedge,
        "result": attempt.result,
        "error": _end(attempt.end),
    }


def _tokens(record: Record) -> Story | None:
    usage = record.usage
    if usage is None:
        return None
    return {
        "prompt": usage.prompt_tokens,
        "completion": usage.completion_tokens,
        "cached": usage.cached_tokens,
        "estimated": record.estimated,
    }


def _end(end: End | None) -> Story | None:
    return None if end is None else {"code": end.code, "message": end.message, "param": end.param}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
