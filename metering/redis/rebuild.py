"""Rebuilding the meter's books in Redis after Redis lost them: the steps, which ``serving.upkeep`` takes.

The books carry an id, and every script compares it. A rebuild gives them the next one, under which nobody is served
until SQL says so as well, in one step: a rebuild that dies half-way is begun again, and a Redis with the books from
before can never be served from again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final

from metering import stream_ids
from metering.redis import keys
from metering.redis.connection import Client, unavailable_on_failure
from metering.redis.meter import CAPTURED_TTL_MS, same_deployment
from metering.redis.scripts import Scripts

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
    with unavailable_on_failure():
        for shard in range(shards):
            reply: Any = await client.get(keys.deployment(shard))
            found.append(_state(reply, deployment))
    return found


def _state(reply: bytes | None, deployment: str) -> State:
    if reply is None:
        return State.LOST
    if reply.decode() == deployment:
        return State.HELD
    return State.OLD if same_deployment(reply.decode(), deployment) else State.FOREIGN


async def clear(client: Client, shards: Iterable[int]) -> None:
    """Delete everything of some shards but whose they are, and what was captured and is not drained."""
    kept = {
        key.encode()
        for shard in shards
        for key in (keys.deployment(shard), keys.instance(shard), keys.usage(shard), keys.fence(shard))
    }
    tags = {keys.tag(shard).encode() for shard in shards}
    doomed: dict[bytes, list[bytes]] = defaultdict(list)
    with unavailable_on_failure():
        async for key in client.scan_iter(match=keys.EVERY, count=_BATCH):
            tag = key.partition(b":")[0]
            if tag in tags and key not in kept:
                doomed[tag].append(key)
                if len(doomed[tag]) == _BATCH:  # of one shard at a time: a cluster takes no others together
                    await client.unlink(*doomed.pop(tag))
        for batch in doomed.values():
            await client.unlink(*batch)


async def stamp(client: Client, deployment: str, shards: int) -> None:
    """Let every shard carry the id: from here on the scripts of whoever knows another one are refused."""
    with unavailable_on_failure():
        for shard in range(shards):
            await client.set(keys.deployment(shard), deployment)
            await client.delete(keys.drainer(shard))  # who had this lease cannot use it any more


async def advance_streams(client: Client, deployment: str, marks: Mapping[int, str]) -> None:
    """Let the stream of every shard go on after what is registered of it: its mark.

    Raises:
        MeterLost: the shard does not carry the id.
    """
    scripts = Scripts(client, deployment, ["advance"])
    for shard, mark in marks.items():
        if mark != stream_ids.BEFORE_ALL:
            await scripts.run("advance", shard, [keys.usage(shard)], stream_ids.order(mark))


async def mark_captured(client: Client, shards: int, registered: Iterable[tuple[str, str, str]]) -> None:
    """Mark records as captured, so that a capture that is sent again charges nothing.

    ``registered`` are the id and the account of each, and the stream id by which it was captured at the latest.
    """
    pipeline: Any = client.pipeline(transaction=False)
    for record, account, entry in registered:
        expires = stream_ids.order(entry)[0] + CAPTURED_TTL_MS
        pipeline.set(keys.captured(keys.shard_of(account, shards), record), entry, pxat=expires)
    with unavailable_on_failure():
        await pipeline.execute()
