"""The ledger with a million transfers: balances against summing them, and what keeping the sums costs a post."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import sqlalchemy as sa

from metering import ledger, sql
from metering.ledger import DAY_MS, Transfer
from serving.store.database import open_database, sqlite_url
from tests.benchmarks.measure import Result, rates

SIZES = (10_000, 1_000_000)
CUSTOMERS, DAYS, BATCH = 100, 30, 3_000
BEGAN_MS = 1_767_225_600_000
LOOKS = 50
DESTINATIONS = (ledger.COMPUTE, ledger.PLATFORM, ledger.pool("2026-01"))


def charges(start: int, count: int, total: int) -> list[Transfer]:
    """What the drain posts: for every customer three transfers a segment."""
    return [
        Transfer(
            f"s00/{i // BATCH}/{i % BATCH}",
            BEGAN_MS + i * DAYS * DAY_MS // total,
            ledger.customer(f"c{i // 3 % CUSTOMERS}"),
            DESTINATIONS[i % 3],
            1_000,
            ledger.CHARGE,
            "segment",
        )
        for i in range(start, start + count)
    ]


def summed(engine: sa.Engine, account: str) -> int:
    """The rival: add up every transfer of the account."""
    table = ledger.transfers
    with engine.connect() as connection:
        credit, debit = (
            connection.execute(sa.select(sa.func.coalesce(sa.func.sum(table.c.amount), 0)).where(column == account))
            for column in (table.c.credit, table.c.debit)
        )
        return int(credit.scalar_one()) - int(debit.scalar_one())


def looked_up(engine: sa.Engine, account: str, at_ms: int | None = None) -> int:
    with engine.connect() as connection:
        return ledger.balance(connection, account, at_ms)


def posted(engine: sa.Engine, batches: Iterator[list[Transfer]]) -> None:
    with engine.begin() as connection:
        ledger.post(connection, next(batches))


def inserted(engine: sa.Engine, batches: Iterator[list[Transfer]]) -> None:
    """The rival: the transfers alone, without their sums."""
    with engine.begin() as connection:
        sql.insert_new(connection, ledger.transfers, [asdict(each) for each in next(batches)])


def measured(engine: sa.Engine, size: int) -> Iterator[Result]:
    for start in range(0, size, BATCH):
        posted(engine, iter([charges(start, min(BATCH, size - start), size)]))
    account, middle = ledger.customer("c7"), BEGAN_MS + DAYS * DAY_MS // 2
    assert looked_up(engine, account) == summed(engine, account)
    (now,) = rates(LOOKS, lambda: [looked_up(engine, account) for _ in range(LOOKS)])
    (then,) = rates(LOOKS, lambda: [looked_up(engine, account, middle) for _ in range(LOOKS)])
    (theirs,) = rates(1, lambda: summed(engine, account))
    rival = f"sum of its transfers, {size:,} in all"
    yield Result("balance of a customer now", now, rival, theirs, "a second")
    yield Result("balance at a moment", then, rival, theirs, "a second")
    fresh = (charges(size + n * BATCH, BATCH, size) for n in range(20))
    ours, alone = rates(BATCH, lambda: posted(engine, fresh), lambda: inserted(engine, fresh))
    yield Result("post of 3,000 transfers", ours, "insert without the sums", alone, "transfers/s")


def run() -> Iterator[Result]:
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            engine = open_database(sqlite_url(Path(folder) / "books.sqlite3"))
            yield from measured(engine, size)
            engine.dispose()
