"""Rebuilding the meter: after Redis was flushed or lost, its books are made anew from the ledger and the log.

What is registered is all there: accounts, what they spent, revocations, and the marks that let a capture that is sent
again charge nothing. What Redis alone knew is gone with it: queries that were captured and not drained, running holds,
and responses kept for replays.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from metering import usage_index
from metering.redis import keys
from metering.redis import rebuild as books_in_redis
from metering.redis.connection import Client
from metering.redis.instance import Mark
from metering.redis.meter import CAPTURED_TTL_MS
from metering.redis.rebuild import State
from serving.assembly import lease_on, metering_on, open_redis
from serving.books import Books
from serving.store import deployment, instance
from serving.store.deployment import Deployment
from serving.store.instance import InstanceError, StillServed
from serving.store.leases import Lease

Progress = Callable[[str], None]


class RebuildError(RuntimeError):
    """The meter must not be rebuilt; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did."""

    shards: int
    """Shards that were made anew; the others had kept their books."""
    accounts: int
    drained: int
    """Records that were still in Redis, or in segments that no drainer had registered."""
    marked: int
    """Registered records that are recognised if they are captured again."""


async def look(books: Books) -> dict[str, Any]:
    """The meter as it is, also where it would be refused: its servers, whose books they carry, what waits.

    Raises:
        RedisUnfit, MeterUnavailable: Redis cannot be used, or does not answer.
    """
    async with open_redis(books) as (client, servers):
        shards = Counter(state.value for state in await _states(client, books))
        lag = await metering_on(client, books, books.deployment.meter, servers).drain.lag()
        return {
            "servers": [server.summary() for server in servers],
            "warnings": [warning for server in servers for warning in server.warnings()],
            "shards": {state.value: shards[state.value] for state in State},
            "waiting": {"records": lag.records, "seconds": round(lag.seconds, 3)},
            "rebuilds": books.deployment.rebuilds,
            "server": await asyncio.to_thread(_server, books),
        }


def _server(books: Books) -> dict[str, Any] | None:
    """Who used the books last, and for how long its lease lasts yet."""
    with books.engine.connect() as connection:
        last = instance.load(connection)
    if last is None:
        return None
    mark = last.mark
    return {"host": mark.place.host, "folder": mark.place.folder, "lease_seconds": round(mark.left_ms / 1000, 1)}


async def rebuild(books: Books, *, force: bool = False, progress: Progress | None = None) -> Rebuilt:
    """Make the meter's books anew, with the server stopped. What is captured and still there is drained first.

    Whoever used the books before, at any place, is refused by every script from then on. All shards are made anew where
    the database and Redis do not belong together, and with ``force``, also while a server lives elsewhere.

    Raises:
        RebuildError: Redis has not lost the books, or holds another deployment's, or a server elsewhere uses them.
        DataDirError: a server uses the data directory.
        MeterUnavailable: Redis does not answer.
        OSError, SQLAlchemyError: what is captured cannot be drained; run it again when it can.
    """
    say = progress or (lambda _: None)
    found = books.deployment
    with books.directory.serving({"pid": os.getpid(), "url": "patronage meter rebuild"}):
        async with open_redis(books) as (client, servers):
            lease = lease_on(client, books)
            diverged = await _diverged(lease, books, force=force)
            states = await _states(client, books)
            anew = force or diverged
            _refuse(states, found.meter, force=anew)
            lost = [shard for shard, state in enumerate(states) if anew or state is not State.HELD]
            generation = lease.new_generation()
            rebuilt = replace(found, rebuilds=found.rebuilds + 1, fence=generation)
            meter = rebuilt.meter
            metering = metering_on(client, books, meter, servers)
            await books_in_redis.stamp(client, meter, found.shards)
            mark = await lease.replace_mark(meter, generation)
            say("draining what is captured")
            with books.engine.connect() as connection:
                marks = {shard: mark.last for shard, mark in usage_index.marks(connection).items()}
            await books_in_redis.advance_streams(client, meter, marks)
            drained = await metering.drain.drain()
            await metering.drain.flush()
            say("clearing what is left over")
            await books_in_redis.clear(client, lost)
            say("opening the accounts")
            await metering.catch_up()
            say("marking what is registered")
            marked = await _mark_captured(client, books)
            await metering.meter.check()
            await metering.drain.release()
            await asyncio.to_thread(_count, books, rebuilt, mark)
            accounts = await asyncio.to_thread(books.identities.customers)
            return Rebuilt(len(lost), len(accounts), drained, marked)


async def _diverged(lease: Lease, books: Books, *, force: bool) -> bool:
    """Whether the database and Redis do not belong together, because one is a backup or a copy."""
    try:
        await lease.examine(books.deployment)
    except StillServed as error:
        if not force:
            raise RebuildError(f"{error}. --force takes its books away from it: it is refused from then on") from error
    except InstanceError:
        return True
    return False


def _count(books: Books, rebuilt: Deployment, mark: Mark) -> None:
    """From here on this database and this data directory count, and the books in Redis that were made from them."""
    books.directory.keep_generation(mark.generation)
    with books.engine.begin() as connection:
        deployment.rebuilt_meter(connection, rebuilt.rebuilds, rebuilt.fence)
        instance.replace(connection, mark)


async def _states(client: Client, books: Books) -> list[State]:
    return await books_in_redis.states(client, books.deployment.meter, books.deployment.shards)


async def _mark_captured(client: Client, books: Books) -> int:
    """Have the meter recognise the records that were registered lately, and give how many they are."""
    marked, since_ms = 0, time.time_ns() // 1_000_000 - CAPTURED_TTL_MS
    with books.engine.connect() as connection:
        for batch in usage_index.since(connection, since_ms):
            await books_in_redis.mark_captured(client, books.deployment.shards, batch)
            marked += len(batch)
    return marked


def _refuse(states: list[State], meter: str, *, force: bool) -> None:
    if State.FOREIGN in states:
        raise RebuildError(
            f"Redis holds another deployment's accounts ({keys.deployment(states.index(State.FOREIGN))} is not "
            f"{meter[:8]}...): check PATRONAGE_REDIS_URL and --data-dir; they are never overwritten"
        )
    if not force and all(state is State.HELD for state in states):
        raise RebuildError(
            "Redis has not lost this deployment's accounts: there is nothing to rebuild. --force makes them anew all "
            "the same: queries in progress and responses kept for replays are forgotten, and every account has spent "
            "what the ledger says"
        )
