"""What was used, by key, alias, model, node or day: rows of the ledger and the daily sums together. Blocking SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from sqlalchemy import Connection, case, func, select

from gateway.access.ledger.roll_up import SUMS
from gateway.access.limits.windows import day_of, zone_of
from gateway.access.store.schema import keys, usage, usage_daily

__all__ = ["GROUPINGS", "Grouping", "UsageQuery", "UsageRow", "read_usage_report"]

Grouping = Literal["key", "alias", "model", "node", "day"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)

_MILLION = 1_000_000
_NONE: Mapping[str, str] = {"key": "(no key)", "alias": "(no alias)", "model": "(no model)", "node": "(no node)"}
_COLUMN = {"key": "key_id"}


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which requests, and in which groups.

    Args:
        by: What each row is about.
        since: Requests that started at or after this time, in unix seconds. Of days that were summed, the whole day.
        until: And before this time.
        key_id: Requests of this key only; None for all.
        timezone: `[ledger] timezone`.
    """

    by: Grouping
    since: float
    until: float
    key_id: str | None = None
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One group. Money is in the ledger's currency.

    Args:
        name: The key's name, the alias, the model, the node or the day.
        requests: All of the group.
        errors: Those that an error of the gateway or of the neuron ended.
        estimated: Those whose tokens are partly estimated.
        cost: Of those whose model has a price.
        energy_cost: Of those whose neuron reports watts.
        cost_per_million_tokens: `cost` over the tokens of these requests; None if no model of the group has a price.
        energy_cost_per_million_tokens: The same for `energy_cost`.
    """

    name: str
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    estimated: int
    gpu_seconds: float
    energy_kwh: float
    cost: float
    energy_cost: float
    cost_per_million_tokens: float | None
    energy_cost_per_million_tokens: float | None


def read_usage_report(connection: Connection, query: UsageQuery) -> list[UsageRow]:
    """The rows: days in their order, other groups by tokens, most first."""
    groups: dict[str, dict[str, float]] = {}
    for name, sums in (*_of_rows(connection, query), *_of_days(connection, query)):
        group = groups.setdefault(name, dict.fromkeys(sums, 0))
        for column, value in sums.items():
            group[column] += value
    names = _key_names(connection, groups) if query.by == "key" else {}
    rows = [_row(names.get(name, name) or _NONE.get(query.by, ""), sums) for name, sums in groups.items()]
    if query.by == "day":
        return sorted(rows, key=lambda row: row.name)
    return sorted(rows, key=lambda row: (-row.prompt_tokens - row.completion_tokens, row.name))


def _of_rows(connection: Connection, query: UsageQuery) -> list[tuple[str, dict[str, float]]]:
    tokens = usage.c.prompt_tokens + usage.c.completion_tokens
    more = {
        "priced_tokens": func.sum(case((usage.c.cost.is_not(None), tokens), else_=0)),
        "metered_tokens": func.sum(case((usage.c.energy_cost.is_not(None), tokens), else_=0)),
    }
    group = usage.c[_COLUMN.get(query.by, query.by)]
    select_sums = select(group, *(SUMS | more).values()).where(usage.c.at >= query.since, usage.c.at < query.until)
    if query.key_id is not None:
        select_sums = select_sums.where(usage.c.key_id == query.key_id)
    return _named(connection.execute(select_sums.group_by(group)), [*SUMS, *more])


def _of_days(connection: Connection, query: UsageQuery) -> list[tuple[str, dict[str, float]]]:
    zone = zone_of(query.timezone)
    tokens = usage_daily.c.prompt_tokens + usage_daily.c.completion_tokens
    sums = {name: func.sum(usage_daily.c[name]) for name in SUMS}
    more = {
        "priced_tokens": func.sum(case((usage_daily.c.cost > 0, tokens), else_=0)),
        "metered_tokens": func.sum(case((usage_daily.c.energy_cost > 0, tokens), else_=0)),
    }
    group = usage_daily.c[_COLUMN.get(query.by, query.by)]
    days = usage_daily.c.day.between(day_of(query.since, zone), day_of(query.until, zone))
    select_sums = select(group, *(sums | more).values()).where(days)
    if query.key_id is not None:
        select_sums = select_sums.where(usage_daily.c.key_id == query.key_id)
    return _named(connection.execute(select_sums.group_by(group)), [*sums, *more])


def _named(result: Any, columns: list[str]) -> list[tuple[str, dict[str, float]]]:
    """PostgreSQL's sums of integers are decimals."""
    return [
        (row[0] or "", {name: _plain(value) for name, value in zip(columns, row[1:], strict=True)}) for row in result
    ]


def _plain(value: Any) -> float:
    return value if isinstance(value, float) else int(value or 0)


def _key_names(connection: Connection, ids: Mapping[str, object]) -> dict[str, str]:
    """Two keys may have had one name, one after the other: then the revoked one's id goes with it."""
    found = connection.execute(select(keys.c.id, keys.c.name, keys.c.revoked_at)).all()
    in_force = {row.name for row in found if row.revoked_at is None}
    return {
        row.id: f"{row.name} ({row.id})" if row.revoked_at is not None and row.name in in_force else row.name
        for row in found
        if row.id in ids
    }


def _row(name: str, sums: dict[str, float]) -> UsageRow:
    whole = {
        column: int(sums[column])
        for column in ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
    }
    return UsageRow(
        name,
        **cast("dict[str, Any]", whole),
        estimated=int(sums["estimated"]),
        gpu_seconds=float(sums["gpu_seconds"]),
        energy_kwh=sums["energy_wh"] / 1000,
        cost=float(sums["cost"]),
        energy_cost=float(sums["energy_cost"]),
        cost_per_million_tokens=_per_million(sums["cost"], sums["priced_tokens"]),
        energy_cost_per_million_tokens=_per_million(sums["energy_cost"], sums["metered_tokens"]),
    )


def _per_million(cost: float, tokens: float) -> float | None:
    return cost / tokens * _MILLION if tokens else None
