"""The usage streams: what is captured and not drained, shard by shard, and the leases of who drains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis

from metering import stream_ids
from metering.redis import keys
from metering.redis.connection import Client, unavailable_on_failure
from metering.redis.scripts import Scripts

REGISTERED_TTL_MS: Final = 600 * 1000
"""How long a capture that is in the ledger is recognised: longer than anything sends it again without asking there."""

LEASE_TTL_MS: Final = 3_000
_PAGE: Final = 500

Entry = tuple[str, bytes]
"""A stream id, and the canonical bytes of a usage record."""


def entries(reply: Any) -> list[Entry]:
    """The entries of a stream, as Redis answers them."""
    return [(entry.decode(), fields[b"r"]) for entry, fields in reply]


class UsageStreams:
    """The streams of one deployment. Every method raises ``MeterUnavailable`` if Redis does not answer."""

    def __init__(self, client: Client, *, deployment: str, shards: int) -> None:
        """The caller closes ``client``."""
        self._client = client
        self._shards = shards
        self._scripts = Scripts(client, deployment, ("acquire_lease", "release_lease", "requeue", "forget"))

    @property
    def on_one_server(self) -> bool:
        """Whether one server has them all: where one stream is out of reach, so are the others."""
        return isinstance(self._client, Redis)

    async def lengths(self) -> list[int | None]:
        """How many entries every stream has: in one round trip where one server has them all, else not known yet."""
        if not isinstance(self._client, Redis):
            return [None] * self._shards
        with unavailable_on_failure():
            pipeline = self._client.pipeline(transaction=False)
            for shard in range(self._shards):
                pipeline.xlen(keys.usage(shard))
            return [int(length) for length in await pipeline.execute()]

    async def length(self, shard: int) -> int:
        """How many entries a stream has."""
        with unavailable_on_failure():
            return int(await self._client.xlen(keys.usage(shard)))

    async def oldest(self, shard: int) -> str | None:
        """The id of a stream's first entry, or None if it is empty."""
        with unavailable_on_failure():
            found = entries(await self._client.xrange(keys.usage(shard), count=1))
        return found[0][0] if found else None

    async def newest(self, shard: int) -> str | None:
        """The id of a stream's last entry, or None if it is empty."""
        with unavailable_on_failure():
            found = entries(await self._client.xrevrange(keys.usage(shard), count=1))
        return found[0][0] if found else None

    async def read(self, shard: int, after: str, *, records_max: int, bytes_max: int) -> tuple[list[Entry], bool]:
        """The entries after an id, so many at most and so many bytes, give or take a page; and if there may be more."""
        batch: list[Entry] = []
        size = 0
        while len(batch) < records_max and size < bytes_max:
            count = min(_PAGE, records_max - len(batch))
            with unavailable_on_failure():
                page = entries(await self._client.xrange(keys.usage(shard), min=f"({after}", count=count))
            batch += page
            if len(page) < count:
                return batch, False
            after = page[-1][0]
            size += sum(len(data) for _, data in page)
        return batch, True

    async def until(self, shard: int, mark: str, *, records_max: int) -> list[Entry]:
        """The first entries of a stream that are not after ``mark``."""
        with unavailable_on_failure():
            return entries(await self._client.xrange(keys.usage(shard), max=mark, count=records_max))

    async def trim(self, shard: int, last: str) -> None:
        """Delete the entries of a stream up to ``last``."""
        with unavailable_on_failure():
            await self._client.xtrim(keys.usage(shard), minid=stream_ids.following(last), approximate=False)

    async def requeue(self, shard: int, mark: str, moved: Sequence[str]) -> None:
        """Move entries to the end of their stream, where their ids are after ``mark``."""
        after = stream_ids.order(mark)[0] + 1
        await self._scripts.run("requeue", shard, [keys.usage(shard)], [after, *moved])

    async def forget(self, shard: int, records: Sequence[str]) -> None:
        """Have Redis forget soon what the ledger knows now: it would else hold a week's captures in memory."""
        for i in range(0, len(records), _PAGE):
            marks = [keys.captured(shard, record) for record in records[i : i + _PAGE]]
            await self._scripts.run("forget", shard, marks, [REGISTERED_TTL_MS])

    async def acquire_lease(self, shard: int, owner: str, fence: int) -> int | None:
        """The fencing token under which ``owner`` may drain a shard for ``LEASE_TTL_MS``; None if another one does.

        Tokens only grow: ``fence`` is the last that SQL has seen, for Redis may have lost its own.
        """
        reply = await self._scripts.run(
            "acquire_lease", shard, [keys.drainer(shard), keys.fence(shard)], [owner, LEASE_TTL_MS, fence]
        )
        return None if reply[0] == b"taken" else int(reply[1])

    async def release_lease(self, shard: int, owner: str) -> None:
        """Give a lease back, so that the next drainer need not wait until it expires."""
        await self._scripts.run("release_lease", shard, [keys.drainer(shard)], [owner])
