"""The outbox: a clock for each endpoint, and how many calls had which result."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the tables, with what the events that are there say."""
    op.create_index("ix_deliveries_created_ms", "deliveries", ["created_ms"])
    op.create_index("ix_deliveries_account_due_ms", "deliveries", ["account", "due_ms"])
    op.create_table(
        "endpoints",
        sa.Column("account", sa.String(200), primary_key=True),
        sa.Column("next_ms", sa.BigInteger, nullable=True, index=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("proved", sa.Boolean, nullable=False),
        sa.Column("claimed_by", sa.String(40), nullable=True),
    )
    op.create_table(
        "webhook_calls",
        sa.Column("result", sa.String(20), primary_key=True),
        sa.Column("calls", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO endpoints (account, next_ms, failures, proved) "
        "SELECT account, MIN(created_ms), 0, FALSE FROM deliveries WHERE due_ms IS NOT NULL GROUP BY account"
    )
    delivered, given_up = "delivered_ms IS NOT NULL", "due_ms IS NULL AND delivered_ms IS NULL"
    for result, calls in (
        ("delivered", f"COUNT(CASE WHEN {delivered} THEN 1 END)"),
        ("abandoned", f"COUNT(CASE WHEN {given_up} THEN 1 END)"),
        ("failed", "COALESCE(SUM(attempts), 0) - COUNT(CASE WHEN due_ms IS NULL THEN 1 END)"),
    ):
        op.execute(f"INSERT INTO webhook_calls (result, calls) SELECT '{result}', {calls} FROM deliveries")
