"""Rebuilding the meter's books in Redis after Redis lost them: the part that knows the keys.

The books carry an id, and every script compares it. A rebuild gives them the next one, under which nobody is served
until SQL says so as well, in one step: a rebuild that dies half-way is begun again, and a Redis with the books from
before can never be served from again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, Final

import sqlalchemy as sa

from metering import usage_index
from metering.meter import MeterLost
from metering.redis.connection import Client, Script, reached
from metering.redis.meter import (
    DONE_TTL_MS,
    deployment_key,
    done_key,
    drainer_key,
    fence_key,
    same_deployment,
    shard_of,
    shard_tag,
    usage_stream,
)
from metering.usage_log import NOTHING, stream_order

_BATCH: Final = 1_000


class State(Enum):
    """Whose books a shard carries."""

    HELD = "held"
    """This deployment's, and they are served from."""
    OLD = "old"
    """This deployment's from before a rebuild, or of one that was not finished."""
    LOST = "lost"
    """Nobody's."""
    FOREIGN = "foreign"
    """Another deployment's."""


async def states(client: Client, deployment: str, shards: int) -> list[State]:
    """The state of every shard; ``deployment`` is the id that the books should carry.

    Raises:
        MeterUnavailable: Redis does not answer.
    """
    found = []
    with reached():
        for shard in range(shards):
            reply: Any = await client.get(deployment_key(shard))
            found.append(_state(reply, deployment))
    return found


def _state(reply: bytes | None, deployment: str) -> State:
    if reply is None:
        return State.LOST
    if reply.decode() == deployment:
        return State.HELD
    return State.OLD if same_deployment(reply.decode(), deployment) else State.FOREIGN


async def clear(client: Client, shards: Iterable[int]) -> None:
    """Delete everything of some shards but what was captured and is not drained."""
    kept = {key.encode() for shard in shards for key in (deployment_key(shard), usage_stream(shard), fence_key(shard))}
    tags = {shard_tag(shard).encode() for shard in shards}
    doomed: dict[bytes, list[bytes]] = defaultdict(list)
    with reached():
        async for key in client.scan_iter(match="{s*}:*", count=_BATCH):
            tag = key.partition(b":")[0]
            if tag in tags and key not in kept:
                doomed[tag].append(key)
                if len(doomed[tag]) == _BATCH:  # of one shard at a time: a cluster takes no others together
                    await client.unlink(*doomed.pop(tag))
        for keys in doomed.values():
            await client.unlink(*keys)


async def carry(client: Client, deployment: str, shards: int) -> None:
    """Let every shard carry the id: from here on the scripts of whoever knows another one are refused."""
    with reached():
        for shard in range(shards):
            await client.set(deployment_key(shard), deployment)
            await client.delete(drainer_key(shard))  # who had this lease cannot use it any more


async def advance(client: Client, engine: sa.Engine, deployment: str) -> None:
    """Let the stream of every shard go on after what is registered of it.

    Raises:
        MeterLost: the shard does not carry the id.
    """
    script = Script(client, "advance")
    with engine.connect() as connection:
        marks = {row.shard: row.last for row in connection.execute(sa.select(usage_index.shards))}
    with reached():
        for shard, mark in marks.items():
            if mark == NOTHING:
                continue
            keys = [deployment_key(shard), usage_stream(shard)]
            if (await script(keys=keys, args=[deployment, *stream_order(mark)]))[0] == b"lost":
                raise MeterLost("the books in Redis changed while they were rebuilt")


async def remember(client: Client, engine: sa.Engine, shards: int) -> int:
    """Mark what was registered lately as captured, so that a capture that is sent again charges nothing.

    Returns:
        How many records were marked.
    """
    marked = 0
    with reached():
        for batch in _registered(engine, time.time_ns() // 1_000_000 - DONE_TTL_MS):
            pipeline: Any = client.pipeline(transaction=False)
            for record, account, entry in batch:
                lapses = stream_order(entry)[0] + DONE_TTL_MS
                pipeline.set(done_key(shard_of(account, shards), record), entry, pxat=lapses)
            await pipeline.execute()
            marked += len(batch)
    return marked


def _registered(engine: sa.Engine, since_ms: int) -> Iterator[list[tuple[str, str, str]]]:
    """The id and account of each record registered since, and an entry of its segment, a batch at a time."""
    receipts, segments = usage_index.receipts, usage_index.segments
    # Stream ids begin with milliseconds, which have 13 digits until the year 2286: text order is time order.
    query = (
        sa.select(receipts.c.id, receipts.c.account, segments.c.last)
        .join(segments, segments.c.name == receipts.c.segment)
        .where(segments.c.last >= f"{since_ms}-0")
    )
    with engine.connect() as connection:
        rows = connection.execution_options(yield_per=_BATCH).execute(query)
        for batch in rows.partitions():
            yield [(row.id, row.account, row.last) for row in batch]
