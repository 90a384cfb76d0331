"""Withdrawals: transfers that take money out of a customer's prepayment, from under the queries that spend it.

The meter alone knows what is not spent and not held, the ledger alone may say what is owed, and the process may die
between the two. So the money is reserved in the meter first, where no query can have it and it does not expire; then
the transfer is posted; then the meter hears the ledger's new view, and only then is the reserve given up.
At no moment does the meter let more be spent than both will agree on; between the last two steps it lets less.

Whoever finds the reserve of a process that is gone deletes the withdrawal's row in SQL, and then goes through the
last two steps. The row is the permission to post: its owner deletes it in the transaction of the transfer, so a
process that was only asleep finds the row gone and posts nothing.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Final

import sqlalchemy as sa

from metering import ledger
from metering.credit import funding_of
from metering.ledger import Transfer
from metering.meter import Meter

METADATA = sa.MetaData()

withdrawals = sa.Table(
    "withdrawals",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("started_ms", sa.BigInteger, nullable=False),
)
"""The withdrawals in progress: only one whose row is there may be posted."""

EXPIRY_MS: Final = 60_000
"""How long a withdrawal may take before another process ends it."""


class WithdrawalExpired(Exception):
    """The withdrawal took too long and was ended by another process; nothing was posted."""


async def withdraw(engine: sa.Engine, meter: Meter, account: str, transfer: Transfer) -> None:
    """Post ``transfer``, which debits the customer ``account``, if it leaves what is spent and held covered.

    Raises:
        InsufficientFunds: it does not; nothing was posted.
        LedgerError: the transfer's id is posted already, with other contents.
        WithdrawalExpired: nothing was posted.
        MeterUnavailable: if the transfer was posted, the meter hears of it when it is back.
    """
    name = uuid.uuid4().hex
    await asyncio.to_thread(_begin, engine, name)
    try:
        await meter.reserve(account, name, transfer.amount)
        await asyncio.to_thread(_post, engine, name, transfer)
    finally:
        await asyncio.to_thread(_end, engine, name)
        await _finish(engine, meter, account, name)


async def recover(engine: sa.Engine, meter: Meter) -> None:
    """End the withdrawals of processes that are gone."""
    for account, name in await meter.reserves():
        if await asyncio.to_thread(_expire, engine, name):
            await _finish(engine, meter, account, name)


async def _finish(engine: sa.Engine, meter: Meter, account: str, name: str) -> None:
    await meter.fund(await asyncio.to_thread(funding_of, engine, account))
    await meter.unreserve(account, name)


def _begin(engine: sa.Engine, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(withdrawals).values(name=name, started_ms=_now_ms()))


def _post(engine: sa.Engine, name: str, transfer: Transfer) -> None:
    with engine.begin() as connection:
        if not _delete(connection, withdrawals.c.name == name):
            raise WithdrawalExpired("it took too long, and nothing was booked; repeat it")
        ledger.post(connection, [transfer])


def _end(engine: sa.Engine, name: str) -> None:
    with engine.begin() as connection:
        _delete(connection, withdrawals.c.name == name)


def _expire(engine: sa.Engine, name: str) -> bool:
    """Whether the withdrawal is over: ended now if it is old, or before."""
    table = withdrawals
    with engine.begin() as connection:
        _delete(connection, table.c.started_ms < _now_ms() - EXPIRY_MS)
        return connection.execute(sa.select(table.c.name).where(table.c.name == name)).first() is None


def _delete(connection: sa.Connection, where: sa.ColumnElement[bool]) -> int:
    return connection.execute(sa.delete(withdrawals).where(where)).rowcount


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
