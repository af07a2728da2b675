"""The day and the cost of energy of each row, and the reservations that gateways tell each other."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add them. The day of a row that is there is that of UTC: the time zone is not known here."""
    op.drop_index("usage_key_at", "usage")  # each index is a fifth of what writing a row costs
    op.add_column("usage", sa.Column("energy_cost", sa.Double))
    op.add_column("usage", sa.Column("day", sa.String(10)))
    if op.get_bind().dialect.name == "sqlite":
        op.execute("UPDATE usage SET day = date(at, 'unixepoch')")
    else:
        op.execute("UPDATE usage SET day = to_char(to_timestamp(at) AT TIME ZONE 'UTC', 'YYYY-MM-DD')")
    op.add_column("usage_daily", sa.Column("energy_cost", sa.Double, nullable=False, server_default="0"))
    op.create_table(
        "reservations",
        sa.Column("gateway_id", sa.String(32), primary_key=True),
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("tokens", sa.Double, nullable=False),
        sa.Column("money", sa.Double, nullable=False),
        sa.Column("gpu_seconds", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )
