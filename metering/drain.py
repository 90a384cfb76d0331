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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from metering import periods, registration, stream_ids, usage_index
from metering.meter import MeterUnavailable
from metering.records import RecordError, decode_record
from metering.redis.connection import Client
from metering.redis.usage_streams import Entry, UsageStreams
from metering.usage_index import Mark
from metering.usage_log import Segment, UsageLog, parse

SEGMENT_RECORDS_MAX: Final = 5_000
SEGMENT_BYTES_MAX: Final = 32 * 1024 * 1024
"""What one segment's records take in Redis, give or take a page: the drain's memory does not grow with the lag."""


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

    def __init__(
        self,
        client: Client,
        engine: sa.Engine,
        log: UsageLog,
        *,
        deployment: str,
        shards: int,
        owns: registration.Owns | None = None,
    ) -> None:
        """The caller closes ``client`` and ``engine``; ``owns`` tells whether the database is still this process's."""
        self._owns = owns
        self._streams = UsageStreams(client, deployment=deployment, shards=shards)
        self._engine = engine
        self._log = log
        self._shards = shards
        self._owner = uuid.uuid4().hex
        self._charged: set[str] = set()
        self._exclusive: dict[int, int] = {}
        """By shard, the token under which nobody else can have written a segment; 0 where none was needed yet."""

    async def lag(self) -> Lag:
        """What is captured and not registered yet.

        Raises:
            MeterUnavailable: Redis does not answer.
        """
        records, seconds = 0, 0.0
        for shard, length in enumerate(await self._streams.lengths()):
            waiting = await self._streams.length(shard) if length is None else length
            oldest = await self._streams.oldest(shard) if waiting else None
            if oldest is not None:
                records += waiting
                seconds = max(seconds, time.time() - stream_ids.order(oldest)[0] / 1000)
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
        for shard, length in enumerate(await self._streams.lengths()):
            try:
                moved += await self._drain_shard(shard, length)
            except DrainBusy:
                continue
            except MeterUnavailable as error:
                if self._streams.on_one_server:
                    raise  # the other shards would only wait for it as well
                failed = error
            except (OSError, sa.exc.SQLAlchemyError, RecordError) as error:
                failed = error  # one shard's trouble does not hold up the others
        if failed is not None:
            raise failed
        return moved

    async def flush(self, timeout_s: float = 30.0) -> None:
        """Drain until nothing captured before this call is left, also waiting for another drainer.

        Raises:
            DrainBusy: another drainer owns a shard and does not finish it in time.
        """
        deadline = time.monotonic() + timeout_s
        tails: dict[int, str] = {}
        for shard in range(self._shards):
            newest = await self._streams.newest(shard)
            if newest is not None:
                tails[shard] = newest
        while True:
            await self.drain()
            marks = {shard: (await asyncio.to_thread(self._mark, shard)).last for shard in tails}
            behind = [s for s, tail in tails.items() if stream_ids.order(marks[s]) < stream_ids.order(tail)]
            if not behind:
                return
            if time.monotonic() > deadline:
                raise DrainBusy(
                    f"captured records of shards {behind} are not in the ledger after {timeout_s:.0f} s: "
                    "another process drains them, or cannot; its log says why"
                )
            await asyncio.sleep(0.1)

    async def release(self) -> None:
        """Give the leases back, so that the next process need not wait until they expire."""
        with suppress(MeterUnavailable):
            for shard in range(self._shards):
                await self._streams.release_lease(shard, self._owner)

    async def _drain_shard(self, shard: int, length: int | None) -> int:
        waiting = await self._streams.length(shard) if length is None else length
        if not waiting and shard in self._exclusive:
            return 0
        exclusive = self._exclusive.pop(shard, None)  # whatever fails below may leave a segment that is not registered
        mark, fence = await asyncio.to_thread(self._mark, shard)
        token = await self._take_lease(shard, fence) if waiting else 0
        moved = await self._adopt(shard, mark, fence) if exclusive is None or token != exclusive else 0
        if moved:
            mark, fence = await asyncio.to_thread(self._mark, shard)
        if waiting:
            moved += await self._drain_stream(shard, mark, fence)
        self._exclusive[shard] = token
        return moved

    async def _drain_stream(self, shard: int, mark: str, fence: int) -> int:
        moved = 0
        await self._trim_registered(shard, mark)
        tables, after = await self._tables(shard, mark)
        while tables:
            # The next batch is read and parsed while this one goes to the disk and into the database.
            ahead = asyncio.create_task(self._tables(shard, after))
            try:
                for table in tables:
                    token = await self._take_lease(shard, fence)
                    segment = await asyncio.to_thread(self._log.write, shard, table)
                    await asyncio.to_thread(self._register, segment, table, mark, token)
                    mark, fence = segment.last, token
                    moved += segment.records
                    await self._streams.forget(shard, table["id"].to_pylist())
                await self._streams.trim(shard, mark)
            except BaseException:
                ahead.cancel()
                await asyncio.wait({ahead})
                raise
            tables, after = await ahead
        return moved

    async def _tables(self, shard: int, after: str | None) -> tuple[list[pa.Table], str | None]:
        """The next entries of a stream as the columns of segments, and the last of them to go on from.

        None is the end. What comes meanwhile is for the next drain: to follow the stream would be to write a segment
        for every few records.
        """
        if after is None:
            return [], None
        batch, more = await self._streams.read(
            shard, after, records_max=SEGMENT_RECORDS_MAX, bytes_max=SEGMENT_BYTES_MAX
        )
        tables = await asyncio.to_thread(_by_period, batch) if batch else []
        return tables, batch[-1][0] if more else None

    async def _adopt(self, shard: int, mark: str, fence: int) -> int:
        """Register the segments that a drainer wrote and did not live to register: even if Redis has lost them."""
        moved = 0
        left = self._log.unregistered(shard, mark)
        while (found := await asyncio.to_thread(next, left, None)) is not None:
            segment, table = found
            token = await self._take_lease(shard, fence)
            await asyncio.to_thread(self._register, segment, table, mark, token)
            mark, fence = segment.last, token
            moved += segment.records
        return moved

    async def _trim_registered(self, shard: int, mark: str) -> None:
        """Trim what is registered; what only looks so, because its id is not after the mark, is moved to the end."""
        while old := await self._streams.until(shard, mark, records_max=SEGMENT_RECORDS_MAX):
            lost = await asyncio.to_thread(self._not_registered, old)
            if lost:
                await self._streams.requeue(shard, mark, lost)
            await self._streams.trim(shard, old[-1][0])

    def _not_registered(self, entries: Sequence[Entry]) -> list[str]:
        ids = {decode_record(data).id: entry for entry, data in entries}
        with self._engine.connect() as connection:
            known = usage_index.known(connection, ids)
        return [entry for name, entry in ids.items() if name not in known]

    async def _take_lease(self, shard: int, fence: int) -> int:
        token = await self._streams.acquire_lease(shard, self._owner, fence)
        if token is None:
            raise DrainBusy(f"shard {shard} is being drained by another process")
        return token

    def _mark(self, shard: int) -> Mark:
        with self._engine.connect() as connection:
            return usage_index.mark_of(connection, shard)

    def _register(self, segment: Segment, table: pa.Table, mark: str, token: int) -> None:
        if not registration.register(self._engine, segment, table, mark, token, self._owns):
            raise DrainBusy(f"shard {segment.shard} was taken over by another drainer")
        self._charged.update(table["account"].unique().to_pylist())


def _by_period(batch: Sequence[Entry]) -> list[pa.Table]:
    """The columns of consecutive entries, cut where the month changes: a segment has one period."""
    table = parse(batch)
    bounds = pc.min_max(table["finished_ms"]).as_py()
    if periods.of(bounds["min"]) == periods.of(bounds["max"]):
        return [table]
    months = itertools.groupby(table["finished_ms"].to_pylist(), key=periods.of)
    lengths = [len(list(run)) for _, run in months]
    starts = itertools.accumulate(lengths, initial=0)
    return [table.slice(start, length) for start, length in zip(starts, lengths, strict=False)]
