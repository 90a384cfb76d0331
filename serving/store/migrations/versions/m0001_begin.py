"""The first schema: catalogue, ledger, identities, rules and runs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.String(200)

APPEND_ONLY = (
    "transfers",
    "segments",
    "receipts",
    "runs",
    "statements",
    "price_books",
    "policies",
    "versions",
)


def upgrade() -> None:
    """Create every table, and the triggers that keep the append-only ones append-only."""
    _catalogue()
    _ledger()
    _application()
    for table in APPEND_ONLY:
        _refuse_changes(table)


def _catalogue() -> None:
    op.create_table(
        "contributors",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", sa.String(500), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "documents",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", _ID, nullable=False, unique=True),
        sa.Column("contributor", _ID, nullable=False, index=True),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("title", sa.String(500), nullable=False),
        sa.Column("url", sa.String(2000), nullable=True),
        sa.Column("splits", sa.Text, nullable=False),
        sa.Column("purposes", sa.Text, nullable=True),
        sa.Column("floor", sa.BigInteger, nullable=False),
        sa.Column("added_ms", sa.BigInteger, nullable=False),
        sa.Column("withdrawn_ms", sa.BigInteger, nullable=True),
        sa.Column("changed", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "versions",
        sa.Column("document", _ID, primary_key=True),
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("added_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "passages",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("document", sa.Integer, nullable=False, index=True),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("start", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("sentences", sa.LargeBinary, nullable=False),
        sa.Column("terms", sa.LargeBinary, nullable=False),
        sa.Column("sentence_terms", sa.LargeBinary, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.Column("sentence_vectors", sa.LargeBinary, nullable=False),
        sa.Column("embedder", sa.String(200), nullable=False),
        sqlite_autoincrement=True,
    )
    clock = op.create_table(
        "catalogue_clock",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(clock, [{"id": 1, "value": 0}])


def _ledger() -> None:
    op.create_table(
        "transfers",
        sa.Column("id", sa.String(700), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("debit", sa.String(220), nullable=False, index=True),
        sa.Column("credit", sa.String(220), nullable=False, index=True),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("reference", sa.String(400), nullable=False),
        sa.CheckConstraint("amount > 0", name="transfers_amount_positive"),
        sa.CheckConstraint("debit <> credit", name="transfers_two_accounts"),
    )
    op.create_table(
        "segments",
        sa.Column("name", _ID, primary_key=True),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("first", sa.String(40), nullable=False),
        sa.Column("last", sa.String(40), nullable=False),
        sa.Column("records", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("period", sa.String(7), nullable=False, index=True),
        sa.Column("charge", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "shards",
        sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last", sa.String(40), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "receipts",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("account", _ID, nullable=False, index=True),
        sa.Column("segment", _ID, nullable=False),
        sa.Column("row", sa.Integer, nullable=False),
    )
    op.create_table(
        "idempotency",
        sa.Column("account", _ID, primary_key=True),
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("record", _ID, nullable=False),
    )
    op.create_table(
        "usage_daily",
        sa.Column("account", _ID, primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("model", _ID, primary_key=True),
        sa.Column("key", _ID, primary_key=True),
        sa.Column("queries", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("charge", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "closed_periods",
        sa.Column("period", sa.String(7), primary_key=True),
        sa.Column("closed_ms", sa.BigInteger, nullable=False),
    )


def _application() -> None:
    op.create_table(
        "deployment",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("value", sa.String(400), nullable=False),
    )
    for table in ("customers", "operators"):
        op.create_table(
            table,
            sa.Column("id", _ID, primary_key=True),
            sa.Column("name", sa.String(500), nullable=False),
            sa.Column("created_ms", sa.BigInteger, nullable=False),
        )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("owner", _ID, nullable=False, index=True),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    for table in ("price_books", "policies"):
        op.create_table(
            table,
            sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("body", sa.Text, nullable=False),
            sa.Column("created_ms", sa.BigInteger, nullable=False),
        )
    op.create_table(
        "runs",
        sa.Column("period", sa.String(7), primary_key=True),
        sa.Column("run_id", sa.String(64), nullable=False, unique=True),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("checkpoint", sa.Text, nullable=False),
    )
    op.create_table(
        "statements",
        sa.Column("period", sa.String(7), primary_key=True),
        sa.Column("contributor", _ID, primary_key=True),
        sa.Column("bundle", sa.Text, nullable=False),
    )


def _refuse_changes(table: str) -> None:
    """UPDATE and DELETE fail in the database itself, whoever asks."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION refuse_{table}()"
        )
        return
    for action in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
