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
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import sqlalchemy as sa
from redis.exceptions import RedisError

from metering import ledger, periods
from metering.ledger import Transfer
from metering.meter import MeterLost, MeterUnavailable
from metering.records import RecordError, UsageRecord, decode_record
from metering.redis_meter import Client, deployment_key, load_script, shard_name, stream_entries, usage_stream
from metering.usage_log import Segment, UsageLog, stream_order

LEASE_TTL_MS: Final = 10_000
SEGMENT_RECORDS_MAX: Final = 5_000
_QUERY_IDS: Final = 500


class DrainBusy(Exception):
    """Another drainer owns the shard, or took it over while this one worked."""


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
        self._lease = load_script(client, "lease")
        self._release = load_script(client, "release")
        self._requeue = load_script(client, "requeue")

    async def lag(self) -> int:
        """How many captured records are not registered yet."""
        try:
            return sum([int(await self._client.xlen(usage_stream(shard))) for shard in range(self._shards)])
        except RedisError as error:
            raise MeterUnavailable(f"Redis does not answer: {error}") from error

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
        for shard in range(self._shards):
            try:
                moved += await self._drain_shard(shard)
            except DrainBusy:
                continue
            except RedisError as error:
                raise MeterUnavailable(f"Redis does not answer: {error}") from error
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
        try:
            for shard in range(self._shards):
                newest = stream_entries(await self._client.xrevrange(usage_stream(shard), count=1))
                if newest:
                    tails[shard] = newest[0][0]
        except RedisError as error:
            raise MeterUnavailable(f"Redis does not answer: {error}") from error
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
        with suppress(RedisError):
            for shard in range(self._shards):
                keys = [deployment_key(shard), f"{{{shard_name(shard)}}}:drainer"]
                await self._release(keys=keys, args=[self._deployment, self._owner])

    async def _drain_shard(self, shard: int) -> int:
        stream = usage_stream(shard)
        mark, fence = await asyncio.to_thread(self._mark, shard)
        moved = await self._adopt(shard, mark, fence)
        if moved:
            mark, fence = await asyncio.to_thread(self._mark, shard)
        if not await self._client.xlen(stream):
            return moved
        await self._take_lease(shard, fence)
        await self._clear(shard, mark)
        while True:
            batch = stream_entries(await self._client.xrange(stream, min=f"({mark}", count=SEGMENT_RECORDS_MAX))
            if not batch:
                return moved
            for part in _by_period(batch):
                token = await self._take_lease(shard, fence)
                await asyncio.to_thread(self._register, shard, mark, token, part)
                mark, fence = part[-1][0], token
                moved += len(part)
            await self._client.xtrim(stream, minid=_after(mark), approximate=False)

    async def _adopt(self, shard: int, mark: str, fence: int) -> int:
        """Register the segments that a drainer wrote and did not live to register: even if Redis has lost them."""
        moved = 0
        for entries in await asyncio.to_thread(list, self._log.unregistered(shard, mark)):
            token = await self._take_lease(shard, fence)
            await asyncio.to_thread(self._register, shard, mark, token, entries)
            mark, fence = entries[-1][0], token
            moved += len(entries)
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
        table = ledger.receipts
        with self._engine.connect() as connection:
            known: set[str] = set()
            names = list(ids)
            for i in range(0, len(names), _QUERY_IDS):
                query = sa.select(table.c.id).where(table.c.id.in_(names[i : i + _QUERY_IDS]))
                known |= set(connection.execute(query).scalars())
        return [entry for name, entry in ids.items() if name not in known]

    async def _take_lease(self, shard: int, fence: int) -> int:
        tag = f"{{{shard_name(shard)}}}"
        reply = await self._lease(
            keys=[deployment_key(shard), f"{tag}:drainer", f"{tag}:fence"],
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
            query = sa.select(ledger.shards.c.last, ledger.shards.c.fence).where(ledger.shards.c.shard == shard)
            row = connection.execute(query).one()
            return row.last, row.fence

    def _register(self, shard: int, mark: str, token: int, entries: Sequence[tuple[str, bytes]]) -> None:
        segment, batch = self._log.write(shard, entries)
        shards = ledger.shards
        with self._engine.begin() as connection:
            moved = connection.execute(
                sa.update(shards)
                .where(shards.c.shard == shard, shards.c.last == mark, shards.c.fence <= token)
                .values(last=segment.last, fence=token)
            )
            if moved.rowcount != 1:
                raise DrainBusy(f"shard {shard} was taken over by another drainer")
            period = first_open(connection, periods.of(batch[0].finished_ms))
            _insert(connection, segment, period, batch)
            ledger.post(connection, _transfers(segment, period, batch))


def _after(stream_id: str) -> str:
    milliseconds, _, sequence = stream_id.partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"


def _by_period(batch: Sequence[tuple[str, bytes]]) -> list[list[tuple[str, bytes]]]:
    """Runs of consecutive entries of the same month, so that a segment has one period."""
    return [
        list(run)
        for _, run in itertools.groupby(batch, key=lambda entry: periods.of(decode_record(entry[1]).finished_ms))
    ]


def close_period(connection: sa.Connection, period: str, now_ms: int) -> None:
    """Let no more segments into ``period``, in a transaction that begins with this call.

    Every shard's mark is locked first, so a drainer registers its segment either wholly before or wholly after.
    """
    connection.execute(sa.update(ledger.shards).values(fence=ledger.shards.c.fence))
    ledger.insert_new(connection, ledger.closed_periods, [{"period": period, "closed_ms": now_ms}])


def first_open(connection: sa.Connection, period: str) -> str:
    """``period``, or the first one after it that is not closed: a closed period never changes."""
    closed = set(connection.execute(sa.select(ledger.closed_periods.c.period)).scalars())
    while period in closed:
        period = periods.following(period)
    return period


def _insert(connection: sa.Connection, segment: Segment, period: str, batch: Sequence[UsageRecord]) -> None:
    connection.execute(
        sa.insert(ledger.segments).values(
            name=segment.name,
            shard=segment.shard,
            first=segment.first,
            last=segment.last,
            records=segment.records,
            sha256=segment.sha256,
            period=period,
            charge=sum(record.charge for record in batch),
        )
    )
    connection.execute(
        sa.insert(ledger.segment_hours),
        [{"segment": segment.name, "hour": hour, "records": records} for hour, records in segment.hours],
    )
    connection.execute(
        sa.insert(ledger.receipts),
        [
            {"id": record.id, "account": record.account, "segment": segment.name, "row": row}
            for row, record in enumerate(batch)
        ],
    )
    seen: list[dict[str, object]] = [
        {"account": record.account, "fingerprint": record.idempotency, "record": record.id}
        for record in batch
        if record.idempotency
    ]
    if seen:
        ledger.insert_new(connection, ledger.idempotency, seen)
    _count_usage(connection, batch)


def _count_usage(connection: sa.Connection, batch: Sequence[UsageRecord]) -> None:
    totals: dict[tuple[str, str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for record in batch:
        total = totals[record.account, periods.day_of(record.finished_ms), record.model, record.key]
        for i, amount in enumerate((1, record.input_tokens, record.output_tokens, record.charge)):
            total[i] += amount
    table = ledger.usage_daily
    names = ("queries", "input_tokens", "output_tokens", "charge")
    keys = ("account", "day", "model", "key")
    rows = [dict(zip(keys, key, strict=True)) for key in totals]
    ledger.insert_new(connection, table, [row | dict.fromkeys(names, 0) for row in rows])
    connection.execute(
        sa.update(table)
        .where(*(table.c[key] == sa.bindparam(f"at_{key}") for key in keys))
        .values({name: table.c[name] + sa.bindparam(f"add_{name}") for name in names}),
        [
            {f"at_{key}": value for key, value in row.items()}
            | {f"add_{name}": amount for name, amount in zip(names, total, strict=True)}
            for row, total in zip(rows, totals.values(), strict=True)
        ],
    )


def _transfers(segment: Segment, period: str, batch: Sequence[UsageRecord]) -> list[Transfer]:
    """One transfer per customer and destination for the whole segment; the log has the detail."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for record in batch:
        sums[record.account, ledger.COMPUTE] += record.cost
        sums[record.account, ledger.PLATFORM] += record.platform
        sums[record.account, ledger.pool(period)] += record.royalty
    at_ms = batch[-1].finished_ms
    return [
        Transfer(
            id=f"{segment.name}/{account}/{destination}",
            at_ms=at_ms,
            debit=ledger.customer(account),
            credit=destination,
            amount=amount,
            kind=ledger.CHARGE,
            reference=segment.name,
        )
        for (account, destination), amount in sums.items()
        if amount
    ]
