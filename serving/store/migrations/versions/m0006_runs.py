"""What a run needs: the hours of each segment, customers' outcomes, and the transparency log."""

import sqlalchemy as sa
from alembic import op

from serving.store.migrations.versions.m0001_begin import _refuse_changes
from serving.store.migrations.versions.m0003_balances import close_ways_around

revision = "0006"
down_revision = "0003"

_ID = sa.String(200)


def upgrade() -> None:
    """Create the tables; nothing in them is ever changed."""
    op.create_table(
        "segment_hours",
        sa.Column("segment", _ID, primary_key=True),
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("records", sa.Integer, nullable=False),
    )
    op.create_table(
        "outcomes",
        sa.Column("receipt", _ID, primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("account", _ID, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=True),
        sa.Column("rating_ppm", sa.Integer, nullable=True),
    )
    op.create_table(
        "run_log",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("run_id", sa.String(64), nullable=False, unique=True),
        sa.Column("leaf", sa.String(64), nullable=False),
    )
    for table in ("segment_hours", "outcomes", "run_log"):
        _refuse_changes(table)
        close_ways_around(table)
