"""What jobs are to do, in a table of its own: a job's row is rewritten each time it gets further."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Move the requests."""
    op.create_table(
        "job_requests",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("request", sa.Text, nullable=False),
    )
    op.execute("INSERT INTO job_requests SELECT number, request FROM jobs WHERE request IS NOT NULL")
    op.drop_column("jobs", "request")
