"""The drain: from the Redis streams to segments and the ledger, exactly once.

For each shard: read the entries after the last registered one, write them as a segment, and in one SQL transaction
register the segment, post its transfers and move the shard's mark on. Only then is the stream trimmed. After a crash
before the transaction the next drainer registers the file that is there; after one behind it, it repeats the trim. Two
drainers cannot both register: the mark moves by compare-and-swap, and a stale fencing token is refused.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from redis.asyncio import Redis

from metering import ledger, period_gate, periods, sql, usage_index
from metering.ledger import Transfer
from metering.meter import MeterLost, MeterUnavailable
from metering.records import RecordError, decode_record
from metering.redis.connection import Client, Script, reached
from metering.redis.meter import (
    REGISTERED_TTL_MS,
    deployment_key,
    done_key,
    drainer_key,
    fence_key,
    stream_entries,
    usage_stream,
)
from metering.usage_log import Segment, UsageLog, parse, stream_order

LEASE_TTL_MS: Final = 3_000
SEGMENT_RECORDS_MAX: Final = 5_000
SEGMENT_BYTES_MAX: Final = 32 * 1024 * 1024
"""What one segment's records take in Redis, give or take a page: the drain's memory does not grow with the lag."""
_PAGE: Final = 500
_QUERY_IDS: Final = 500
_DAY_MS: Final = 24 * 3600 * 1000


class DrainBusy(Exception):
    """Another drainer owns the shard, or took it over while this one worked."""


@dataclass(frozen=True, slots=True)
class Lag:
    """What is captured and not registered yet."""

    records: int
    seconds: float
    """How long the oldest of them has waited."""


class Drain:
    """Moves captured records into the log and the ledger."""

    def __init__(self, client: Client, engine: sa.Engine, log: UsageLog, *, deployment: str, shards: int) -> None:
        """The caller closes ``client`` and ``engine``."""
        self._client = client
        self._engine = engine
        self._log = log
        self._deployment = deployment
        self._shards = shards
        self._owner = uuid.uuid4().hex
        self._lease = Script(client, "lease")
        self._release = Script(client, "release")
        self._requeue = Script(client, "requeue")
        self._forget = Script(client, "forget")
        self._charged: set[str] = set()
        self._sole: dict[int, int] = {}
        """By shard, the token under which nobody else can have written a segment; 0 where none was needed yet."""

    async def lag(self) -> Lag:
        """What is captured and not registered yet.

        Raises:
            MeterUnavailable: Redis does not answer.
        """
        records, seconds = 0, 0.0
        with reached():
            for shard, waiting in enumerate(await self._lengths()):
                if waiting != 0:
                    records += waiting or int(await self._client.xlen(usage_stream(shard)))
                    for entry, _ in stream_entries(await self._client.xrange(usage_stream(shard), count=1)):
                        seconds = max(seconds, time.time() - stream_order(entry)[0] / 1000)
        return Lag(records, seconds)

    def take_charged(self) -> set[str]:
        """The accounts whose records were registered since this was last called."""
        taken = set(self._charged)
        self._charged -= taken
        return taken

    async def drain(self) -> int:
        """Register everything that was captured before this call, on every shard that no one else owns.

        Returns:
            The number of records registered by this call.

        Raises:
            MeterUnavailable: Redis does not answer.
            OSError, SQLAlchemyError: a disk or the database refuses; the records stay in Redis.
        """
        moved = 0
        failed: Exception | None = None
        with reached():
            lengths = await self._lengths()
        for shard, length in enumerate(lengths):
            try:
                with reached():
                    moved += await self._drain_shard(shard, length)
            except DrainBusy:
                continue
            except MeterUnavailable as error:
                if isinstance(self._client, Redis):
                    raise  # there is one server: the other shards would only wait for it as well
                failed = error
            except (OSError, sa.exc.SQLAlchemyError, RecordError) as error:
                failed = error  # one shard's trouble does not hold up the others
        if failed is not None:
            raise failed
        return moved

    async def settle(self, timeout_s: float = 30.0) -> None:
        """Drain until nothing captured before this call is left, also waiting for another drainer.

        Raises:
            DrainBusy: another drainer owns a shard and does not finish it in time.
        """
        deadline = time.monotonic() + timeout_s
        tails: dict[int, str] = {}
        with reached():
            for shard in range(self._shards):
                newest = stream_entries(await self._client.xrevrange(usage_stream(shard), count=1))
                if newest:
                    tails[shard] = newest[0][0]
        while True:
            await self.drain()
            marks = {shard: (await asyncio.to_thread(self._mark, shard))[0] for shard in tails}
            behind = [shard for shard, tail in tails.items() if stream_order(marks[shard]) < stream_order(tail)]
            if not behind:
                return
            if time.monotonic() > deadline:
                raise DrainBusy(
                    f"captured records of shards {behind} are not in the ledger after {timeout_s:.0f} s: "
                    "another process drains them, or cannot; its log says why"
                )
            await asyncio.sleep(0.1)

    async def release(self) -> None:
        """Give the leases back, so that the next process need not wait until they lapse."""
        with suppress(MeterUnavailable), reached():
            for shard in range(self._shards):
                keys = [deployment_key(shard), drainer_key(shard)]
                await self._release(keys=keys, args=[self._deployment, self._owner])

    async def _lengths(self) -> list[int | None]:
        """How many entries every stream has: in one round trip where one server has them all, else not known yet."""
        if not isinstance(self._client, Redis):
            return [None] * self._shards
        pipeline = self._client.pipeline(transaction=False)
        for shard in range(self._shards):
            pipeline.xlen(usage_stream(shard))
        return [int(length) for length in await pipeline.execute()]

    async def _drain_shard(self, shard: int, length: int | None) -> int:
        stream = usage_stream(shard)
        waiting = await self._client.xlen(stream) if length is None else length
        if not waiting and shard in self._sole:
            return 0
        sole = self._sole.pop(shard, None)  # whatever fails below may leave a segment that is not registered
        mark, fence = await asyncio.to_thread(self._mark, shard)
        token = await self._take_lease(shard, fence) if waiting else 0
        moved = await self._adopt(shard, mark, fence) if sole is None or token != sole else 0
        if moved:
            mark, fence = await asyncio.to_thread(self._mark, shard)
        if waiting:
            moved += await self._drain_stream(shard, mark, fence)
        self._sole[shard] = token
        return moved

    async def _drain_stream(self, shard: int, mark: str, fence: int) -> int:
        stream, moved = usage_stream(shard), 0
        await self._clear(shard, mark)
        tables, after = await self._tables(stream, mark)
        while tables:
            # The next batch is read and parsed while this one goes to the disk and into the database.
            ahead = asyncio.create_task(self._tables(stream, after))
            try:
                for table in tables:
                    token = await self._take_lease(shard, fence)
                    segment = await asyncio.to_thread(self._log.write, shard, table)
                    await asyncio.to_thread(self._register, shard, mark, token, segment, table)
                    mark, fence = segment.last, token
                    moved += segment.records
                    await self._let_go(shard, table["id"].to_pylist())
                await self._client.xtrim(stream, minid=_after(mark), approximate=False)
            except BaseException:
                ahead.cancel()
                await asyncio.wait({ahead})
                raise
            tables, after = await ahead
        return moved

    async def _let_go(self, shard: int, records: Sequence[str]) -> None:
        """Have Redis forget soon what the ledger knows now: it would else hold a week's captures in memory."""
        for i in range(0, len(records), _PAGE):
            marks = [done_key(shard, record) for record in records[i : i + _PAGE]]
            await self._forget(keys=[deployment_key(shard), *marks], args=[self._deployment, REGISTERED_TTL_MS])

    async def _tables(self, stream: str, after: str | None) -> tuple[list[pa.Table], str | None]:
        """The next entries of a stream as the columns of segments, and the last of them to go on from.

        None is the end. What comes meanwhile is for the next drain: to follow the stream would be to write a segment
        for every few records.
        """
        if after is None:
            return [], None
        batch, more = await self._batch(stream, after)
        tables = await asyncio.to_thread(_by_period, batch) if batch else []
        return tables, batch[-1][0] if more else None

    async def _batch(self, stream: str, after: str) -> tuple[list[tuple[str, bytes]], bool]:
        """The next entries of a stream, as many as a segment may hold, and whether there may be more."""
        batch: list[tuple[str, bytes]] = []
        size = 0
        while len(batch) < SEGMENT_RECORDS_MAX and size < SEGMENT_BYTES_MAX:
            count = min(_PAGE, SEGMENT_RECORDS_MAX - len(batch))
            page = stream_entries(await self._client.xrange(stream, min=f"({after}", count=count))
            batch += page
            if len(page) < count:
                return batch, False
            after = page[-1][0]
            size += sum(len(data) for _, data in page)
        return batch, True

    async def _adopt(self, shard: int, mark: str, fence: int) -> int:
        """Register the segments that a drainer wrote and did not live to register: even if Redis has lost them."""
        moved = 0
        left = self._log.unregistered(shard, mark)
        while (found := await asyncio.to_thread(next, left, None)) is not None:
            segment, table = found
            token = await self._take_lease(shard, fence)
            await asyncio.to_thread(self._register, shard, mark, token, segment, table)
            mark, fence = segment.last, token
            moved += segment.records
        return moved

    async def _clear(self, shard: int, mark: str) -> None:
        """Trim what is registered; what only looks so, because its id is not after the mark, is moved to the end."""
        stream = usage_stream(shard)
        old = stream_entries(await self._client.xrange(stream, max=mark, count=SEGMENT_RECORDS_MAX))
        while old:
            lost = await asyncio.to_thread(self._not_registered, old)
            if lost:
                keys = [deployment_key(shard), stream]
                after = stream_order(mark)[0] + 1
                await self._requeue(keys=keys, args=[self._deployment, after, *lost])
            await self._client.xtrim(stream, minid=_after(old[-1][0]), approximate=False)
            old = stream_entries(await self._client.xrange(stream, max=mark, count=SEGMENT_RECORDS_MAX))

    def _not_registered(self, entries: Sequence[tuple[str, bytes]]) -> list[str]:
        ids = {decode_record(data).id: entry for entry, data in entries}
        table = usage_index.receipts
        with self._engine.connect() as connection:
            known: set[str] = set()
            names = list(ids)
            for i in range(0, len(names), _QUERY_IDS):
                query = sa.select(table.c.id).where(table.c.id.in_(names[i : i + _QUERY_IDS]))
                known |= set(connection.execute(query).scalars())
        return [entry for name, entry in ids.items() if name not in known]

    async def _take_lease(self, shard: int, fence: int) -> int:
        reply = await self._lease(
            keys=[deployment_key(shard), drainer_key(shard), fence_key(shard)],
            args=[self._deployment, self._owner, LEASE_TTL_MS, fence],
        )
        if reply[0] == b"lost":
            raise MeterLost("Redis does not hold this deployment's accounts (flushed, or another server)")
        if reply[0] == b"taken":
            raise DrainBusy(f"shard {shard} is being drained by another process")
        return int(reply[1])

    def _mark(self, shard: int) -> tuple[str, int]:
        """The last registered stream id of a shard, and the fencing token of who registered it."""
        with self._engine.connect() as connection:
            table = usage_index.shards
            row = connection.execute(sa.select(table.c.last, table.c.fence).where(table.c.shard == shard)).one()
            return row.last, row.fence

    def _register(self, shard: int, mark: str, token: int, segment: Segment, table: pa.Table) -> None:
        shards = usage_index.shards
        with self._engine.begin() as connection:
            moved = connection.execute(
                sa.update(shards)
                .where(shards.c.shard == shard, shards.c.last == mark, shards.c.fence <= token)
                .values(last=segment.last, fence=token)
            )
            if moved.rowcount != 1:
                raise DrainBusy(f"shard {shard} was taken over by another drainer")
            period = period_gate.first_open(connection, periods.of(table["finished_ms"][0].as_py()))
            _insert(connection, segment, period, table)
            ledger.post(connection, _transfers(segment, period, table))
        self._charged.update(table["account"].unique().to_pylist())


def _after(stream_id: str) -> str:
    milliseconds, _, sequence = stream_id.partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"


def _by_period(batch: Sequence[tuple[str, bytes]]) -> list[pa.Table]:
    """The columns of consecutive entries, cut where the month changes: a segment has one period."""
    table = parse(batch)
    bounds = pc.min_max(table["finished_ms"]).as_py()
    if periods.of(bounds["min"]) == periods.of(bounds["max"]):
        return [table]
    months = itertools.groupby(table["finished_ms"].to_pylist(), key=periods.of)
    lengths = [len(list(run)) for _, run in months]
    starts = itertools.accumulate(lengths, initial=0)
    return [table.slice(start, length) for start, length in zip(starts, lengths, strict=False)]


def _insert(connection: sa.Connection, segment: Segment, period: str, table: pa.Table) -> None:
    connection.execute(
        sa.insert(usage_index.segments).values(
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
        sa.insert(usage_index.segment_hours),
        [{"segment": segment.name, "hour": hour, "records": records} for hour, records in segment.hours],
    )
    connection.execute(
        sa.insert(usage_index.receipts),
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
        sql.insert_new(connection, usage_index.idempotency, seen)
    _count_usage(connection, table)


def _count_usage(connection: sa.Connection, table: pa.Table) -> None:
    sums = ("queries", "input_tokens", "output_tokens", "charge", "free")
    days = pc.divide(table["finished_ms"], _DAY_MS)
    counted = table.append_column("day", days).append_column("queries", pa.repeat(1, table.num_rows))
    rows = [
        row | {"day": periods.day_of(row["day"] * _DAY_MS)}
        for row in _sums(counted, ("account", "day", "model", "key"), sums)
    ]
    usage = usage_index.usage_daily
    keys = tuple(column.name for column in usage.primary_key.columns)
    sql.insert_new(connection, usage, [{key: row[key] for key in keys} | dict.fromkeys(sums, 0) for row in rows])
    connection.execute(
        sa.update(usage)
        .where(*(usage.c[key] == sa.bindparam(f"at_{key}") for key in keys))
        .values({name: usage.c[name] + sa.bindparam(f"add_{name}") for name in sums}),
        [{f"at_{key}": row[key] for key in keys} | {f"add_{name}": row[name] for name in sums} for row in rows],
    )


def _sums(table: pa.Table, keys: Sequence[str], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The sums of some columns for each combination of ``keys``, in the order of their first appearance."""
    summed = table.group_by(list(keys), use_threads=False).aggregate([(name, "sum") for name in names])
    for row in summed.to_pylist():
        yield {name.removesuffix("_sum"): value for name, value in row.items()}


def _transfers(segment: Segment, period: str, table: pa.Table) -> list[Transfer]:
    """One transfer per payer and destination for the whole segment; the log has the detail.

    What is free is paid by the operator: first its own part, then the computing, then the documents.
    """
    destinations = {"platform": ledger.PLATFORM, "cost": ledger.COMPUTE, "royalty": ledger.pool(period)}
    free, parts = table["free"], {"account": table["account"]}
    for part in destinations:
        parts[f"given {part}"] = pc.min_element_wise(free, table[part])
        parts[f"paid {part}"] = pc.subtract(table[part], parts[f"given {part}"])
        free = pc.subtract(free, parts[f"given {part}"])
    amounts: dict[tuple[str, str], int] = defaultdict(int)
    for row in _sums(pa.table(parts), ("account",), [name for name in parts if name != "account"]):
        for part, destination in destinations.items():
            amounts[ledger.customer(row["account"]), destination] += row[f"paid {part}"]
            amounts[ledger.PROMOTIONS, destination] += row[f"given {part}"]
    at_ms = table["finished_ms"][-1].as_py()
    return [
        Transfer(
            id=f"{segment.name}/{payer}/{destination}",
            at_ms=at_ms,
            debit=payer,
            credit=destination,
            amount=amount,
            kind=ledger.CHARGE,
            reference=segment.name,
        )
        for (payer, destination), amount in amounts.items()
        if amount
    ]
