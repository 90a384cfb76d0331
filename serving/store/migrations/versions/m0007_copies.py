"""Passages know since when they are registered, and which earlier passage they are a copy of."""

import sqlalchemy as sa
from alembic import op

from retrieval.near_duplicates import sketch
from retrieval.passage_table import load, mark_copies, passages_table, sketches

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add them, and decide for the passages that are there."""
    connection = op.get_bind()
    with op.batch_alter_table("passages", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.add_column(sa.Column("registered_ms", sa.BigInteger, nullable=True))
        batch.add_column(sa.Column("original", sa.Integer, nullable=True))
        batch.create_index("ix_passages_original", ["original"])
    op.execute(
        "UPDATE passages SET registered_ms = (SELECT v.added_ms FROM versions v JOIN documents d ON d.id = v.document "
        "WHERE d.number = passages.document AND v.sha256 = passages.version)"
    )
    with op.batch_alter_table("passages", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.alter_column("registered_ms", existing_type=sa.BigInteger, nullable=False)
    op.create_table(
        "sketches",
        sa.Column("hash", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("passage", sa.Integer, primary_key=True, autoincrement=False, index=True),
    )
    ids = list(connection.execute(sa.select(passages_table.c.id)).scalars())
    for passage in load(connection, passages_table.c.id, ids):
        parts = [{"hash": part, "passage": passage.id} for part in sketch(passage.wording.runs)]
        if parts:
            connection.execute(sa.insert(sketches), parts)
    mark_copies(connection, ids)
