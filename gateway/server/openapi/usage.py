"""The routes that report usage, in both OpenAPI documents."""

from __future__ import annotations

from gateway.access.ledger.usage_report import GROUPINGS
from gateway.server.openapi.schemas import COUNT, STRING, Json, list_schema, object_schema

__all__ = ["USAGE_PARAMETERS", "usage_schema"]

_NUMBER: Json = {"type": "number"}
_OPTIONAL: Json = {"type": ["number", "null"]}

USAGE_PARAMETERS: list[Json] = [
    {"name": "by", "in": "query", "schema": {"enum": list(GROUPINGS)}, "description": "What each row is about."},
    {"name": "since", "in": "query", "schema": STRING, "description": "7d, 24h, 2026-11-01 or unix seconds."},
]


def usage_schema(**more: Json) -> Json:
    """The schema of a report, with further members."""
    counts = ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
    amounts = ("gpu_seconds", "energy_kwh", "cost", "energy_cost")
    prices = ("cost_per_million_tokens", "energy_cost_per_million_tokens")
    row = object_schema(
        {"name": STRING}
        | dict.fromkeys((*counts, "estimated"), COUNT)
        | dict.fromkeys(amounts, _NUMBER)
        | dict.fromkeys(prices, _OPTIONAL)
    )
    members: Json = {
        "by": STRING,
        "since": _NUMBER,
        "until": _NUMBER,
        "currency": STRING,
        "rows": list_schema(row),
    }
    return object_schema(members | more)
