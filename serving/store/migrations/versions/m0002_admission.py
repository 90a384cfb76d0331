"""Limits and revocation of API keys, credit limits, free amounts, low-balance alerts and their webhooks."""

import sqlalchemy as sa
from alembic import op

from serving.store.migrations.versions.m0001_begin import _refuse_changes

revision = "0002"
down_revision = "0001"

_ID = sa.String(200)


def upgrade() -> None:
    """Add the columns and tables."""
    for name in ("requests_per_minute", "tokens_per_minute", "concurrent_requests", "day_cap", "month_cap"):
        op.add_column("api_keys", sa.Column(name, sa.BigInteger, nullable=True))
    op.add_column("api_keys", sa.Column("revoked_ms", sa.BigInteger, nullable=True))
    op.add_column("usage_daily", sa.Column("free", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "credit_limits",
        sa.Column("account", _ID, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    _refuse_changes("credit_limits")
    op.create_table(
        "alerts",
        sa.Column("account", _ID, primary_key=True),
        sa.Column("threshold", sa.BigInteger, nullable=True),
        sa.Column("url", sa.String(2000), nullable=True),
        sa.Column("secret", sa.LargeBinary, nullable=True),
        sa.Column("low_ms", sa.BigInteger, nullable=True, index=True),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("account", _ID, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_ms", sa.BigInteger, nullable=True, index=True),
        sa.Column("delivered_ms", sa.BigInteger, nullable=True),
        sa.Column("error", sa.String(500), nullable=False),
    )
