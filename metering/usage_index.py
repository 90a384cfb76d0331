"""The usage index: in SQL, which segments are registered, where each record is, and what was used by day.

The drain alone writes it, in the transaction that posts a segment's transfers: a record is in the index if and only if
its charge is in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from metering import periods
from metering.sql import add_to_sums, insert_new
from metering.stream_ids import BEFORE_ALL
from metering.usage_log import Segment

METADATA = sa.MetaData()

_ID = sa.String(200)
_DAY_MS: Final = 24 * 3600 * 1000
_QUERY_IDS: Final = 500
_ROWS: Final = 1_000

shards = sa.Table(
    "shards",
    METADATA,
    sa.Column("shard", sa.Integer, primary_key=True),
    sa.Column("last", sa.String(40), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
)
"""How far each shard is registered: ``last`` is the stream id of its last registered record, its mark, and ``fence``
the fencing token of the drainer that registered it."""

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
"""The registered segments, see :class:`metering.usage_log.Segment`, each in one period; ``charge`` is their sum."""

segment_hours = sa.Table(
    "segment_hours",
    METADATA,
    sa.Column("segment", _ID, primary_key=True),
    sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("records", sa.Integer, nullable=False),
)
"""How many of a segment's records were answered in each hour since the epoch."""

receipts = sa.Table(
    "receipts",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("account", _ID, nullable=False, index=True),
    sa.Column("segment", _ID, nullable=False),
    sa.Column("row", sa.Integer, nullable=False),
)
"""Where each record is: the row of a segment."""

idempotency = sa.Table(
    "idempotency",
    METADATA,
    sa.Column("account", _ID, primary_key=True),
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("record", _ID, nullable=False),
)
"""The record of each Idempotency-Key that a client sent, by its fingerprint: never charged a second time."""

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
    sa.Column("free", sa.BigInteger, nullable=False, server_default="0"),
)
"""The sums of the records of a day (UTC), in units and tokens."""


class Mark(NamedTuple):
    """How far a shard is registered."""

    last: str
    """The stream id of the last registered record."""
    fence: int
    """The fencing token of the drainer that registered it."""


class Registered(NamedTuple):
    """A registered record, as a capture that is sent again must be told from a new one."""

    record: str
    account: str
    last: str
    """The last stream id of its segment."""


def begin(connection: sa.Connection, count: int) -> None:
    """Begin the index, with so many shards of which nothing is registered."""
    connection.execute(sa.insert(shards), [{"shard": shard, "last": BEFORE_ALL, "fence": 0} for shard in range(count)])


def marks(connection: sa.Connection) -> dict[int, Mark]:
    """The mark of every shard."""
    return {row.shard: Mark(row.last, row.fence) for row in connection.execute(sa.select(shards))}


def mark_of(connection: sa.Connection, shard: int) -> Mark:
    """The mark of a shard."""
    row = connection.execute(sa.select(shards.c.last, shards.c.fence).where(shards.c.shard == shard)).one()
    return Mark(row.last, row.fence)


def newest_segments(connection: sa.Connection) -> list[str]:
    """The segment that was registered last of each shard that has one. No mark moves until the transaction ends."""
    marks = connection.execute(sa.select(shards.c.shard, shards.c.last).order_by(shards.c.shard).with_for_update())
    keys = [tuple(row) for row in marks]
    query = sa.select(segments.c.name).where(sa.tuple_(segments.c.shard, segments.c.last).in_(keys))
    return list(connection.execute(query).scalars())


def move_mark(connection: sa.Connection, shard: int, before: str, after: Mark) -> bool:
    """Move a shard's mark on, in a transaction that begins with this call.

    Returns:
        False, and nothing is changed, if it is not ``before`` any more, or was moved under a later token.
    """
    moved = connection.execute(
        sa.update(shards)
        .where(shards.c.shard == shard, shards.c.last == before, shards.c.fence <= after.fence)
        .values(last=after.last, fence=after.fence)
    )
    return moved.rowcount == 1


def charged_under(connection: sa.Connection, account: str, fingerprint: str) -> str | None:
    """The record that an account was charged under an Idempotency-Key, given by its fingerprint, or None."""
    query = sa.select(idempotency.c.record).where(
        idempotency.c.account == account, idempotency.c.fingerprint == fingerprint
    )
    return connection.execute(query).scalar_one_or_none()


def known(connection: sa.Connection, records: Iterable[str]) -> set[str]:
    """Those of the records that are in the index."""
    names, found = list(records), set[str]()
    for i in range(0, len(names), _QUERY_IDS):
        query = sa.select(receipts.c.id).where(receipts.c.id.in_(names[i : i + _QUERY_IDS]))
        found |= set(connection.execute(query).scalars())
    return found


def since(connection: sa.Connection, moment_ms: int) -> Iterator[list[Registered]]:
    """The records of every segment whose last one was captured since a moment, a batch at a time."""
    # Stream ids begin with milliseconds, which have 13 digits until the year 2286: text order is time order.
    query = (
        sa.select(receipts.c.id, receipts.c.account, segments.c.last)
        .join(segments, segments.c.name == receipts.c.segment)
        .where(segments.c.last >= f"{moment_ms}-0")
    )
    for batch in connection.execution_options(yield_per=_ROWS).execute(query).partitions():
        yield [Registered(*row) for row in batch]


def add(connection: sa.Connection, segment: Segment, period: str, table: pa.Table) -> None:
    """Add a segment, whose records are in ``table``, to a period."""
    connection.execute(
        sa.insert(segments).values(
            name=segment.name,
            shard=segment.shard,
            first=segment.first,
            last=segment.last,
            records=segment.records,
            sha256=segment.sha256,
            period=period,
            charge=pc.sum(table["charge"]).as_py(),
        )
    )
    ids, accounts = table["id"].to_pylist(), table["account"].to_pylist()
    connection.execute(
        sa.insert(segment_hours),
        [{"segment": segment.name, "hour": hour, "records": records} for hour, records in segment.hours],
    )
    connection.execute(
        sa.insert(receipts),
        [
            {"id": name, "account": account, "segment": segment.name, "row": row}
            for row, (name, account) in enumerate(zip(ids, accounts, strict=True))
        ],
    )
    seen: list[dict[str, object]] = [
        {"account": account, "fingerprint": fingerprint, "record": name}
        for account, fingerprint, name in zip(accounts, table["idempotency"].to_pylist(), ids, strict=True)
        if fingerprint
    ]
    if seen:
        insert_new(connection, idempotency, seen)
    _count_usage(connection, table)


def _count_usage(connection: sa.Connection, table: pa.Table) -> None:
    days = pc.divide(table["finished_ms"], _DAY_MS)
    counted = table.append_column("day", days).append_column("queries", pa.repeat(1, table.num_rows))
    order = [column.name for column in usage_daily.columns]
    sums = [name for name in order if name not in usage_daily.primary_key.columns]
    rows = [
        row | {"day": periods.day_of(row["day"] * _DAY_MS)}
        for row in sums_by(counted, ("account", "day", "model", "key"), sums)
    ]
    add_to_sums(connection, usage_daily, [tuple(row[name] for name in order) for row in rows])


def sums_by(table: pa.Table, keys: Sequence[str], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The sums of some columns for each combination of ``keys``, in the order of their first appearance."""
    summed = table.group_by(list(keys), use_threads=False).aggregate([(name, "sum") for name in names])
    for row in summed.to_pylist():
        yield {name.removesuffix("_sum"): value for name, value in row.items()}
