"""Old rows of the ledger become daily sums, and sums of past windows are dropped. Blocking SQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, case, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from gateway.access.store.schema import budget_sums, reservations, usage, usage_daily

__all__ = ["GROUPS", "SUMS", "drop_past", "roll_up"]

PORTION_ROWS = 20_000  # in one transaction: about half a second
PAST_WINDOWS_S = 63 * 24 * 3600.0  # sums of budgets are kept for two months, in case of a clock that is set back

GROUPS = ("key_id", "alias", "model", "node")
"""What daily sums keep apart."""

_FAILED = ("error", "upstream_error")
SUMS: dict[str, Any] = {
    "requests": func.count(),
    "errors": func.sum(case((usage.c.outcome.in_(_FAILED), 1), else_=0)),
    "prompt_tokens": func.sum(usage.c.prompt_tokens),
    "completion_tokens": func.sum(usage.c.completion_tokens),
    "cached_tokens": func.sum(usage.c.cached_tokens),
    "reasoning_tokens": func.sum(usage.c.reasoning_tokens),
    "estimated": func.sum(case((usage.c.estimated, 1), else_=0)),
    "total_ms": func.sum(usage.c.total_ms),
    "gpu_seconds": func.sum(usage.c.gpu_seconds),
    "energy_wh": func.coalesce(func.sum(usage.c.energy_wh), 0.0),
    "cost": func.coalesce(func.sum(usage.c.cost), 0.0),
    "energy_cost": func.coalesce(func.sum(usage.c.energy_cost), 0.0),
}
"""The sums of a group of rows, by the names of their columns in `usage_daily`."""


def roll_up(connection: Connection, before: float) -> bool:
    """Move a portion of the rows that are older than `before` (unix seconds, midnight) into the daily sums.

    Returns whether there may be more. Rows and sums change in one transaction, so each request counts exactly once.
    """
    last = connection.execute(
        select(usage.c.at).where(usage.c.at < before).order_by(usage.c.at).limit(1).offset(PORTION_ROWS - 1)
    ).scalar()
    old = usage.c.at < before if last is None else usage.c.at <= last
    keys: list[Any] = [usage.c.day, *(func.coalesce(usage.c[name], "") for name in GROUPS)]
    sums = select(*keys, *SUMS.values()).where(old).group_by(*keys)
    new: Any = _insert_into(connection, usage_daily).from_select(["day", *GROUPS, *SUMS], sums)
    added = {name: usage_daily.c[name] + new.excluded[name] for name in SUMS}
    connection.execute(new.on_conflict_do_update(index_elements=["day", *GROUPS], set_=added))
    connection.execute(delete(usage).where(old))
    return last is not None


def drop_past(connection: Connection, now: float) -> None:
    """Drop sums of windows, and reservations, that are of no use any more."""
    connection.execute(delete(budget_sums).where(budget_sums.c.starts_at < now - PAST_WINDOWS_S))
    connection.execute(delete(reservations).where(reservations.c.at < now - PAST_WINDOWS_S))


def _insert_into(connection: Connection, table: Table) -> Any:
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)
