"""The tables of the store. A change here needs a migration in `migrations/versions` and a new `SCHEMA_VERSION`.

All times are unix seconds. A text that may be absent is NULL in `usage`, and empty in the primary key of `usage_daily`.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

__all__ = ["SCHEMA_VERSION", "budget_sums", "counters", "keys", "metadata", "reservations", "usage", "usage_daily"]

SCHEMA_VERSION = "0002"  # the newest revision in migrations/versions

metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_hash", String(64), nullable=False),  # SHA-256 of the whole secret, in hexadecimal digits
    Column("old_hash", String(64)),  # of the secret before the last rotation, valid until `old_until`
    Column("old_until", Double),
    Column("may", JSON, nullable=False),  # [glob]
    Column("verbs", JSON, nullable=False),  # [verb]
    Column("rpm", Integer),
    Column("tpm", Integer),
    Column("concurrency", Integer),
    Column("budgets", JSON, nullable=False),  # [{"unit", "amount", "window", "enforce"}]
    Column("observe", JSON, nullable=False),  # [limit]
    Column("weight", Integer, nullable=False),
    Column("priority", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("end_streams", Boolean, nullable=False),  # revoked with --now: gateways end its running requests
)
# A revoked key keeps its row, so that the ledger can name it, but not its name.
Index(
    "keys_name",
    keys.c.name,
    unique=True,
    sqlite_where=text("revoked_at IS NULL"),
    postgresql_where=text("revoked_at IS NULL"),
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""`keys`: grows by 1 with each change of `keys`, so that a gateway reads the table only when it changed."""

usage = Table(
    "usage",
    metadata,
    Column("id", String(64), primary_key=True),  # made when the request ends: inserting a row again changes nothing
    Column("at", Double, nullable=False),  # when the request started
    Column("key_id", String(32)),
    Column("alias", Text),
    Column("model", Text),
    Column("node", Text),
    Column("endpoint", Text, nullable=False),
    Column("dialect", String(32), nullable=False),
    Column("status", Integer, nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),  # the tokens were estimated, because the engine reported none
    Column("queue_ms", Double),
    Column("load_ms", Double),
    Column("first_token_ms", Double),
    Column("total_ms", Double, nullable=False),
    Column("gpu_seconds", Double, nullable=False),
    Column("energy_wh", Double),  # NULL: the neuron reports no watts
    Column("cost", Double),  # NULL: the model has no price
    Column("energy_cost", Double),  # NULL: no watts, or no tariff
    Column("day", String(10)),  # of `at`: 2026-01-31, in the ledger's time zone
)
Index("usage_at", usage.c.at)

usage_daily = Table(
    "usage_daily",
    metadata,
    Column("day", String(10), nullable=False),  # 2026-01-31, in the ledger's time zone
    Column("key_id", String(32), nullable=False),
    Column("alias", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("estimated", BigInteger, nullable=False),  # requests whose tokens were estimated
    Column("total_ms", Double, nullable=False),
    Column("gpu_seconds", Double, nullable=False),
    Column("energy_wh", Double, nullable=False),
    Column("cost", Double, nullable=False),
    Column("energy_cost", Double, nullable=False, server_default="0"),
    PrimaryKeyConstraint("day", "key_id", "alias", "model", "node"),
)

budget_sums = Table(
    "budget_sums",
    metadata,
    Column("key_id", String(32), nullable=False),
    Column("unit", String(16), nullable=False),
    Column("window", String(16), nullable=False),
    Column("starts_at", Double, nullable=False),  # the beginning of the window
    Column("used", Double, nullable=False),
    PrimaryKeyConstraint("key_id", "unit", "window", "starts_at"),
)

reservations = Table(
    "reservations",
    metadata,
    Column("gateway_id", String(32), nullable=False),  # another one at each start of a gateway
    Column("key_id", String(32), nullable=False),
    Column("tokens", Double, nullable=False),
    Column("money", Double, nullable=False),
    Column("gpu_seconds", Double, nullable=False),
    Column("at", Double, nullable=False),  # when the gateway wrote it last: one that is gone counts no more
    PrimaryKeyConstraint("gateway_id", "key_id"),
)
"""What the running requests of each gateway have reserved of their keys' budgets."""
