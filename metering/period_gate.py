"""The gate of a period: what belongs to it comes in until it is closed, and nothing after.

A transaction that lets something into a period, and the one that closes it, both write a shard's mark first: so each
comes wholly before the other or wholly after, and whoever comes after sees what the other did.
"""

from __future__ import annotations

import sqlalchemy as sa

from metering import periods
from metering.sql import insert_new
from metering.usage_index import shards

METADATA = sa.MetaData()

closed_periods = sa.Table(
    "closed_periods",
    METADATA,
    sa.Column("period", sa.String(7), primary_key=True),
    sa.Column("closed_ms", sa.BigInteger, nullable=False),
)


def close(connection: sa.Connection, period: str, now_ms: int) -> int:
    """Let nothing more into ``period``, in a transaction that begins with this call. Repeating it changes nothing.

    Returns:
        When it was closed first, in milliseconds since the epoch.
    """
    connection.execute(sa.update(shards).values(fence=shards.c.fence))
    insert_new(connection, closed_periods, [{"period": period, "closed_ms": now_ms}])
    closed = sa.select(closed_periods.c.closed_ms).where(closed_periods.c.period == period)
    return int(connection.execute(closed).scalar_one())


def lock(connection: sa.Connection) -> None:
    """Let no period be closed until the transaction that begins with this call has ended."""
    connection.execute(sa.update(shards).where(shards.c.shard == 0).values(fence=shards.c.fence))


def is_closed(connection: sa.Connection, period: str) -> bool:
    """Whether ``period`` is closed."""
    closed = sa.select(closed_periods.c.period).where(closed_periods.c.period == period)
    return connection.execute(closed).first() is not None


def first_open(connection: sa.Connection, period: str) -> str:
    """``period``, or the first one after it that is not closed: a closed period never changes."""
    closed = set(connection.execute(sa.select(closed_periods.c.period)).scalars())
    while period in closed:
        period = periods.following(period)
    return period
