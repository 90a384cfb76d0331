"""Running balances, withdrawals in progress, reasons of corrections, and nothing replaced by an insert."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_ACCOUNT = sa.String(220)

_ENTRIES = """
    SELECT debit AS account, at_ms / 86400000 AS day, amount AS debits, 0 AS credits,
           CASE kind WHEN 'charge' THEN amount ELSE 0 END AS charged, CASE kind WHEN 'charge' THEN 0 ELSE 1 END AS moves
    FROM transfers
    UNION ALL
    SELECT credit, at_ms / 86400000, 0, amount, 0, CASE kind WHEN 'charge' THEN 0 ELSE 1 END FROM transfers
"""

_REFUSED = ("segments", "receipts", "runs", "statements", "price_books", "policies", "versions")
"""A second row of the same key is an error, also where SQLite is told to replace the first."""
_IGNORED = ("transfers", "idempotency", "closed_periods", "credit_limits")
"""What is there stays, for ever, and saying it again is no error: these are written with ON CONFLICT DO NOTHING."""
_NEW = ("idempotency", "closed_periods")


def upgrade() -> None:
    """Create the tables, fill them from the transfers, and close the ways around the triggers."""
    _columns()
    _sums()
    op.create_table(
        "withdrawals",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        _always()
    else:
        _no_replace()


def _columns() -> None:
    op.add_column("transfers", sa.Column("reason", sa.String(500), nullable=True))
    op.add_column("transfers", sa.Column("corrects", sa.String(700), nullable=True))
    for column in ("debit", "credit"):
        op.drop_index(f"ix_transfers_{column}", "transfers")
        op.create_index(f"transfers_{column}_at", "transfers", [column, "at_ms"])
    op.create_index("transfers_at", "transfers", ["at_ms", "id"])
    some = sa.text("corrects IS NOT NULL")
    op.create_index("transfers_corrects", "transfers", ["corrects"], sqlite_where=some, postgresql_where=some)


def _sums() -> None:
    op.create_table(
        "balances",
        sa.Column("account", _ACCOUNT, primary_key=True),
        sa.Column("debits", sa.BigInteger, nullable=False),
        sa.Column("credits", sa.BigInteger, nullable=False),
        sa.Column("charged", sa.BigInteger, nullable=False),
        sa.Column("moves", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "turnover",
        sa.Column("account", _ACCOUNT, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("debits", sa.BigInteger, nullable=False),
        sa.Column("credits", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO balances SELECT account, sum(debits), sum(credits), sum(charged), sum(moves) "
        f"FROM ({_ENTRIES}) AS entries GROUP BY account"
    )
    op.execute(
        "INSERT INTO turnover SELECT account, day, sum(debits), sum(credits) "
        f"FROM ({_ENTRIES}) AS entries GROUP BY account, day"
    )


def _always() -> None:
    """Two more tables, and triggers that fire for a session that replicates too."""
    for table in _NEW:
        op.execute(
            f"CREATE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION refuse_{table}()"
        )
    for table in _REFUSED + _IGNORED:
        close_ways_around(table)


def _no_replace() -> None:
    """Two more tables, and INSERT OR REPLACE.

    It deletes the old row, and fires a trigger for that only in a connection that asks for recursive triggers:
    Patronage's does, another program's does not.
    """
    for table in _NEW:
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
    for table in _REFUSED + _IGNORED:
        close_ways_around(table)


def close_ways_around(table: str) -> None:
    """Close them for one table that has its triggers against changes."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only")
        return
    answer = "IGNORE" if table in _IGNORED else f"ABORT, '{table} is append-only'"
    op.execute(
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {_same(table)}) BEGIN SELECT RAISE({answer}); END"
    )


def _same(table: str) -> str:
    """The rows that an insert would replace: of the same primary key, unique columns or row number."""
    inspector = sa.inspect(op.get_bind())
    keys = [inspector.get_pk_constraint(table)["constrained_columns"]]
    keys += [each["column_names"] for each in inspector.get_unique_constraints(table)]
    keys.append(["rowid"])
    return " OR ".join("(" + " AND ".join(f"{name} = NEW.{name}" for name in key) + ")" for key in keys)
