"""Where documents were read from. Of those that are there it is not known: it is noted when they are read again."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "document_sources",
        sa.Column("document", sa.String(200), primary_key=True),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("path_sha256", sa.String(64), nullable=False, index=True),
    )
