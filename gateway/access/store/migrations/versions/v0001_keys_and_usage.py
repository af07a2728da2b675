"""Keys, the ledger, its daily sums, and the sums of budgets."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("old_hash", sa.String(64)),
        sa.Column("old_until", sa.Double),
        sa.Column("may", sa.JSON, nullable=False),
        sa.Column("verbs", sa.JSON, nullable=False),
        sa.Column("rpm", sa.Integer),
        sa.Column("tpm", sa.Integer),
        sa.Column("concurrency", sa.Integer),
        sa.Column("budgets", sa.JSON, nullable=False),
        sa.Column("observe", sa.JSON, nullable=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
        sa.Column("end_streams", sa.Boolean, nullable=False),
    )
    active = sa.text("revoked_at IS NULL")
    op.create_index("keys_name", "keys", ["name"], unique=True, sqlite_where=active, postgresql_where=active)
    op.create_table(
        "counters",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO counters (name, value) VALUES ('keys', 0)")
    op.create_table(
        "usage",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("key_id", sa.String(32)),
        sa.Column("alias", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("node", sa.Text),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("dialect", sa.String(32), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("queue_ms", sa.Double),
        sa.Column("load_ms", sa.Double),
        sa.Column("first_token_ms", sa.Double),
        sa.Column("total_ms", sa.Double, nullable=False),
        sa.Column("gpu_seconds", sa.Double, nullable=False),
        sa.Column("energy_wh", sa.Double),
        sa.Column("cost", sa.Double),
    )
    op.create_index("usage_at", "usage", ["at"])
    op.create_index("usage_key_at", "usage", ["key_id", "at"])
    op.create_table(
        "usage_daily",
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("alias", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.BigInteger, nullable=False),
        sa.Column("total_ms", sa.Double, nullable=False),
        sa.Column("gpu_seconds", sa.Double, nullable=False),
        sa.Column("energy_wh", sa.Double, nullable=False),
        sa.Column("cost", sa.Double, nullable=False),
    )
    op.create_table(
        "budget_sums",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("unit", sa.String(16), primary_key=True),
        sa.Column("window", sa.String(16), primary_key=True),
        sa.Column("starts_at", sa.Double, primary_key=True),
        sa.Column("used", sa.Double, nullable=False),
    )
