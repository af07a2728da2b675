"""Entries of the ledger, and what the tables of a store have."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import func, select

from gateway.access.ledger.entry import LedgerEntry, LedgerRow, row_ids
from gateway.access.store.database import Database
from gateway.access.store.schema import usage, usage_daily

_new_id = row_ids()


def an_entry(at: float, key_id: str | None = "k1", prompt: int = 10, completion: int = 20, **more: object) -> LedgerRow:
    """One entry with an id of its own."""
    values = {
        "alias": "helexa/small",
        "model": "Qwen/Qwen3-1.7B",
        "node": "beast",
        "endpoint": "/v1/chat/completions",
        "dialect": "openai",
        "status": 200,
        "outcome": "ok",
        "estimated": False,
        "total_ms": 12.5,
        "id": _new_id(),
        **more,
    }
    return LedgerEntry(at=at, key_id=key_id, prompt_tokens=prompt, completion_tokens=completion, **values).row()


def open_store(url: str) -> Database:
    """A database with its tables."""
    database = Database(url, Path("/nonexistent"))  # the URLs of tests are absolute
    database.upgrade()
    return database


def totals(database: Database) -> tuple[int, int]:
    """How many requests the store has, rows and daily sums together, and their tokens."""

    def read(connection):
        tokens = func.coalesce(func.sum(usage.c.prompt_tokens + usage.c.completion_tokens), 0)
        rows = connection.execute(select(func.count(), tokens)).one()
        days = usage_daily.c
        of_days = (
            func.coalesce(func.sum(days.requests), 0),
            func.coalesce(func.sum(days.prompt_tokens + days.completion_tokens), 0),
        )
        summed = connection.execute(select(*of_days)).one()
        return int(rows[0] + summed[0]), int(rows[1] + summed[1])

    return database.read(read)
