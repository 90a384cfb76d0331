"""The format of a document's terms: what was stored before has format 1. All else says its format in its body."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the column."""
    op.add_column("documents", sa.Column("terms_format", sa.Integer, nullable=False, server_default="1"))
