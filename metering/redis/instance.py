"""The mark of the one server that the books in Redis have: who it is, and until when it is sure to be alone.

It lies on the first shard, because one script must decide who has it. What keeps another away from all shards is the id
that every one of them carries: whoever takes the books over to another place gives them another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from metering.meter import MeterLost
from metering.redis import keys
from metering.redis.connection import Client, unavailable_on_failure
from metering.redis.scripts import Script

_SHARD: Final = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a data directory lies. Copies of it lie elsewhere."""

    id: str
    """The same for the same folder on the same running system."""
    host: str
    folder: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What a database or a Redis knows of the server that used it last."""

    generation: str
    """Made anew whenever a server starts."""
    place: Place
    beat: int
    """Counts the signs of life; the database counts before Redis, so it is never behind in the same generation."""
    left_ms: int
    """For how long its lease lasts yet; 0 if it has ended."""


def rebuild_of(books: str) -> tuple[str, str]:
    """The deployment and the count of rebuilds in an id of books: ``ID``, ``ID/COUNT`` or ``ID/COUNT/FENCE``."""
    name, _, rest = books.partition("/")
    return name, rest.partition("/")[0] or "0"


class InstanceMark:
    """The mark in one Redis."""

    def __init__(self, client: Client, shards: int) -> None:
        """The caller closes ``client``."""
        self._client = client
        self._shards = shards
        self._script = Script(client, "mark")  # once: its text is read from a file

    async def carried(self, books: str) -> str | None:
        """The id that the first shard carries, if it is of the same deployment and rebuild as ``books``.

        Raises:
            MeterUnavailable: Redis does not answer.
        """
        with unavailable_on_failure():
            found: Any = await self._client.get(keys.deployment(_SHARD))
        if found is None or rebuild_of(found.decode()) != rebuild_of(books):
            return None
        return str(found.decode())

    async def look(self, books: str) -> Mark | None:
        """The mark of books with exactly this id; None if nobody has left one.

        Raises:
            MeterUnavailable, MeterLost: Redis does not answer, or does not carry books with this id.
        """
        reply = await self._run(books, ["", "", "", "", "", "", ""])
        return _mark(reply) if reply[1] else None

    async def put(self, books: str, mark: Mark, *, follows: str = "", lease_ms: int | None = None) -> Mark | None:
        """Leave a mark, unless another's is there.

        Args:
            books: the id that they carry.
            mark: what to leave.
            follows: the generation that it may take the place of.
            lease_ms: for how long its lease lasts from now; None leaves that as it is.

        Returns:
            The mark of another that stands instead, or None if this one does.

        Raises:
            MeterUnavailable, MeterLost: Redis does not answer, or does not carry books with this id.
        """
        place = mark.place
        lease = "" if lease_ms is None else lease_ms
        reply = await self._run(books, [mark.generation, follows, place.id, place.host, place.folder, mark.beat, lease])
        return _mark(reply) if reply[0] == b"other" else None

    async def keep(self, books: str, mark: Mark, *, follows: str, lease_ms: int) -> Mark | None:
        """As :meth:`put`, by the server whose mark it is; tells books that were lost from books that another took over.

        Raises:
            MeterUnavailable, MeterLost: Redis does not answer, or does not carry books with this id.
        """
        try:
            return await self.put(books, mark, follows=follows, lease_ms=lease_ms)
        except MeterLost:
            with unavailable_on_failure():
                found: Any = await self._client.get(keys.deployment(_SHARD))
            if found is None or rebuild_of(found.decode())[0] != rebuild_of(books)[0]:
                raise
            other = await self.look(found.decode())
            if other is None or other.generation == mark.generation:
                raise
            return other

    async def remove(self) -> None:
        """Delete the mark, whoever's it is.

        Raises:
            MeterUnavailable: Redis does not answer.
        """
        with unavailable_on_failure():
            await self._client.delete(keys.instance(_SHARD))

    async def stamp(self, books: str) -> None:
        """Let every shard of the same deployment and rebuild carry this id; scripts refuse who knows another.

        Raises:
            MeterUnavailable: Redis does not answer.
        """
        with unavailable_on_failure():
            for shard in range(self._shards):
                key = keys.deployment(shard)
                found: Any = await self._client.get(key)
                if found is not None and found.decode() != books and rebuild_of(found.decode()) == rebuild_of(books):
                    await self._client.set(key, books)

    async def _run(self, books: str, args: list[str | int]) -> list[Any]:
        with unavailable_on_failure():
            reply = await self._script(keys=[keys.deployment(_SHARD), keys.instance(_SHARD)], args=[books, *args])
        if reply[0] == b"lost":
            raise MeterLost("Redis does not hold these books (flushed, another server, or taken over)")
        return reply


def _mark(reply: list[Any]) -> Mark:
    generation, place, host, folder, beat, left = (each.decode() for each in reply[1:7])
    return Mark(generation, Place(place, host, folder), int(beat), int(left))
