"""Credit: how far below zero a customer's account may go, and the view of its funds that the meter converges to."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import sqlalchemy as sa

from metering.ledger import LedgerError, balances_table, customer, paid_in
from metering.meter import Funding, KeySpending, Position
from metering.money import MAX_UNITS
from metering.sql import insert_new
from metering.usage_index import usage_daily

METADATA = sa.MetaData()

credit_limits = sa.Table(
    "credit_limits",
    METADATA,
    sa.Column("account", sa.String(200), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
)


def funding_view(connection: sa.Connection, account: str) -> Funding:
    """The ledger's view of a customer's account, for the meter to converge to.

    The meter counts exactly up to ``MAX_UNITS``: the credit limit is at most what the payments leave of that.
    """
    limits = _credit_limits(connection, account)  # before what they count for: a view may be newer than its version
    table = balances_table
    row = connection.execute(sa.select(table).where(table.c.account == customer(account))).one_or_none()
    funded = paid_in(row) if row else 0
    month, free_used, keys = _used(connection, account)
    return Funding(
        account=account,
        version=len(limits) + (row.moves if row else 0),
        funded=funded,
        spent=row.charged if row else 0,
        credit_limit=min(limits[-1], max(0, MAX_UNITS - funded)) if limits else 0,
        month=month,
        free_used=free_used,
        keys=keys,
    )


def funding_of(engine: sa.Engine, account: str) -> Funding:
    """:func:`funding_view` as it is now."""
    with engine.connect() as connection:
        return funding_view(connection, account)


def positions(connection: sa.Connection, since_month: str) -> dict[str, Position]:
    """How far the ledger is with every account that ever moved; of free amounts, since a month (``YYYY-MM``).

    Read in three passes, whatever the number of accounts.
    """
    found: dict[str, list[Any]] = defaultdict(lambda: [0, 0, "", 0])
    table = balances_table
    customers = sa.select(table.c.account, table.c.moves, table.c.charged).where(
        table.c.account.startswith(customer(""))
    )
    for account, moves, charged in connection.execute(customers):
        found[account.removeprefix(customer(""))][:2] = [int(moves), int(charged)]
    limits = sa.select(credit_limits.c.account, sa.func.count()).group_by(credit_limits.c.account)
    for account, count in connection.execute(limits):
        found[account][0] += count
    days = usage_daily.c
    used = sa.select(days.account, days.day, sa.func.sum(days.free)).where(days.day >= f"{since_month}-01")
    for account, day, free in connection.execute(used.group_by(days.account, days.day).order_by(days.day)):
        month = day[: len("YYYY-MM")]
        before = found[account][3] if found[account][2] == month else 0
        found[account][2:] = [month, before + int(free)]
    return {account: Position(*values) for account, values in found.items()}


def set_limit(engine: sa.Engine, account: str, amount: int, at_ms: int) -> None:
    """Let an account go ``amount`` units below zero from now on; setting the limit that it has changes nothing.

    Raises:
        LedgerError: it was changed by another at the same moment.
    """
    with engine.connect() as connection:
        limits = _credit_limits(connection, account)
    if amount == (limits[-1] if limits else 0):
        return
    row = {"account": account, "version": len(limits) + 1, "amount": amount, "at_ms": at_ms}
    with engine.begin() as connection:  # not the transaction that read: see open_database
        inserted = insert_new(connection, credit_limits, [row])
    if not inserted:
        raise LedgerError(f"the credit limit of {account} was changed at the same moment: look, and set it again")


def limit_max(connection: sa.Connection, account: str) -> int:
    """The highest credit limit that an account ever had: how far below zero its balance may be."""
    return max(_credit_limits(connection, account), default=0)


def _credit_limits(connection: sa.Connection, account: str) -> list[int]:
    query = sa.select(credit_limits.c.amount).where(credit_limits.c.account == account)
    return [int(amount) for amount in connection.execute(query.order_by(credit_limits.c.version)).scalars()]


def _used(connection: sa.Connection, account: str) -> tuple[str, int, tuple[KeySpending, ...]]:
    """The last month in which an account was used, what was free in it, and what each of its keys spent in it."""
    table = usage_daily
    last = connection.execute(sa.select(sa.func.max(table.c.day)).where(table.c.account == account)).scalar_one()
    if last is None:
        return "", 0, ()
    month = str(last)[: len("YYYY-MM")]
    days = connection.execute(
        sa.select(table.c.key, table.c.day, sa.func.sum(table.c.charge - table.c.free), sa.func.sum(table.c.free))
        .where(table.c.account == account, table.c.day >= f"{month}-01")
        .group_by(table.c.key, table.c.day)
        .order_by(table.c.day)
    ).all()
    keys: dict[str, KeySpending] = {}
    for key, day, paid, _ in days:
        before = keys[key].month_spent if key in keys else 0
        keys[key] = KeySpending(key, day, int(paid), before + int(paid))
    return month, sum(int(free) for *_, free in days), tuple(keys.values())
