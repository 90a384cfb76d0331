"""The audit by ablation: sampled text, sealed, and what was recomputed of it."""

import sqlalchemy as sa
from alembic import op

from serving.store.migrations.versions.m0001_begin import _refuse_changes
from serving.store.migrations.versions.m0003_balances import close_ways_around

revision = "0008"
down_revision = "0007"

_ID = sa.String(200)


def upgrade() -> None:
    """Create both tables; agreements are append-only."""
    op.create_table(
        "ablation_samples",
        sa.Column("record", _ID, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("sealed", sa.LargeBinary, nullable=True),
    )
    op.create_table(
        "ablations",
        sa.Column("record", _ID, primary_key=True),
        sa.Column("period", sa.String(7), nullable=False, index=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    _refuse_changes("ablations")
    close_ways_around("ablations")
