"""The ledger: double entry, append-only, in SQL.

A transfer moves an amount from one account (debit) to another (credit). Transfers are never changed or deleted,
the database itself refuses that, and a transfer id is posted at most once, for ever. Balances are credit minus
debit: money that is owed to customers, contributors or the operator is positive.

Beside it stand the tables that the drain writes in the same transaction: which segments are registered,
where each record is, and usage by day.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from metering.meter import Funding

METADATA = sa.MetaData()

_ID = sa.String(200)

transfers = sa.Table(
    "transfers",
    METADATA,
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

segments = sa.Table(
    "segments",
    METADATA,
    sa.Column("name", _ID, primary_key=True),
    sa.Column("shard", sa.Integer, nullable=False),
    sa.Column("first", sa.String(40), nullable=False),
    sa.Column("last", sa.String(40), nullable=False),
    sa.Column("records", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("period", sa.String(7), nullable=False, index=True),
    sa.Column("charge", sa.BigInteger, nullable=False),
)

segment_hours = sa.Table(
    "segment_hours",
    METADATA,
    sa.Column("segment", _ID, primary_key=True),
    sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("records", sa.Integer, nullable=False),
)

shards = sa.Table(
    "shards",
    METADATA,
    sa.Column("shard", sa.Integer, primary_key=True),
    sa.Column("last", sa.String(40), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
)

receipts = sa.Table(
    "receipts",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("account", _ID, nullable=False, index=True),
    sa.Column("segment", _ID, nullable=False),
    sa.Column("row", sa.Integer, nullable=False),
)

idempotency = sa.Table(
    "idempotency",
    METADATA,
    sa.Column("account", _ID, primary_key=True),
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("record", _ID, nullable=False),
)

usage_daily = sa.Table(
    "usage_daily",
    METADATA,
    sa.Column("account", _ID, primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("model", _ID, primary_key=True),
    sa.Column("key", _ID, primary_key=True),
    sa.Column("queries", sa.BigInteger, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("charge", sa.BigInteger, nullable=False),
)

closed_periods = sa.Table(
    "closed_periods",
    METADATA,
    sa.Column("period", sa.String(7), primary_key=True),
    sa.Column("closed_ms", sa.BigInteger, nullable=False),
)

BANK: Final = "bank"
COMPUTE: Final = "operator:compute"
PLATFORM: Final = "operator:platform"
RESIDUAL: Final = "residual"

FUNDING: Final = "funding"
CHARGE: Final = "charge"
ROYALTY: Final = "royalty"


def customer(account: str) -> str:
    """The ledger account of a customer's prepayment."""
    return f"customer:{account}"


def contributor(name: str) -> str:
    """The ledger account of what a contributor is owed."""
    return f"contributor:{name}"


def pool(period: str) -> str:
    """The ledger account of a period's royalties that are not yet attributed."""
    return f"pool:{period}"


class LedgerError(Exception):
    """The ledger refused a transfer."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One movement of money, in units."""

    id: str
    at_ms: int
    debit: str
    credit: str
    amount: int
    kind: str
    reference: str


def post(connection: sa.Connection, batch: Sequence[Transfer]) -> int:
    """Post transfers that are not posted yet.

    Returns:
        How many were new.

    Raises:
        LedgerError: an id is already posted with other contents.
    """
    if not batch:
        return 0
    new = insert_new(connection, transfers, [asdict(transfer) for transfer in batch])
    if new < len(batch):
        _check_same(connection, batch)
    return new


def balance(connection: sa.Connection, account: str) -> int:
    """Credit minus debit of one account, in units."""
    return _total(connection, transfers.c.credit == account) - _total(connection, transfers.c.debit == account)


def balances(connection: sa.Connection) -> dict[str, int]:
    """Credit minus debit of every account that ever moved."""
    found: dict[str, int] = {}
    for column, sign in ((transfers.c.credit, 1), (transfers.c.debit, -1)):
        for account, amount in connection.execute(sa.select(column, sa.func.sum(transfers.c.amount)).group_by(column)):
            found[account] = found.get(account, 0) + sign * int(amount)
    return found


def funding(connection: sa.Connection, account: str) -> Funding:
    """The ledger's view of a customer's account, for the meter to converge to."""
    name = customer(account)
    count = connection.execute(
        sa.select(sa.func.count()).where(transfers.c.credit == name, transfers.c.kind == FUNDING)
    ).scalar_one()
    funded = _total(connection, sa.and_(transfers.c.credit == name, transfers.c.kind == FUNDING))
    spent = _total(connection, sa.and_(transfers.c.debit == name, transfers.c.kind == CHARGE))
    return Funding(account, int(count), funded, spent)


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, object]]) -> int:
    """Insert the rows whose primary key is not there yet, and count them."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).on_conflict_do_nothing().returning(*table.primary_key.columns)
    return len(connection.execute(statement, list(rows)).all())


def _total(connection: sa.Connection, where: sa.ColumnElement[bool]) -> int:
    total = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(transfers.c.amount), 0)).where(where))
    return int(total.scalar_one())


def _check_same(connection: sa.Connection, batch: Iterable[Transfer]) -> None:
    for transfer in batch:
        row = connection.execute(sa.select(transfers).where(transfers.c.id == transfer.id)).mappings().one()
        stored = Transfer(**row)
        if (stored.debit, stored.credit, stored.amount) != (transfer.debit, transfer.credit, transfer.amount):
            raise LedgerError(f"transfer {transfer.id} is already posted with other contents")
