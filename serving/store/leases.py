"""The lease of the one server: in the database and in Redis, so that a copy that meets it in either is refused.

On one machine the data directory's lock decides, so whoever opens the books at the place where they were used last is
admitted at once. At another place the lease of the last must have ended, and what is there must be neither older nor
newer than what it meets.
"""

from __future__ import annotations

import asyncio
import platform
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog

from metering.meter import MeterLost, MeterUnavailable
from metering.redis.instance import InstanceMark, Mark, Place
from serving.store import deployment, instance
from serving.store.data_dir import DataDir
from serving.store.deployment import Deployment
from serving.store.instance import InstanceError, Last, refuse_living

_log = structlog.get_logger()
LEASE_MS: Final = 15_000
"""For how long a server that died at another place is waited for."""
_RENEW_SECONDS: Final = 4.0
_ATTEMPTS: Final = 5
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
# Goes on while the machine sleeps; macOS has no such clock that Python knows.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_ADVICE: Final = "docs/operations.md, 'the books were used from another place', says what to do"


def place_of(directory: DataDir) -> Place:
    """Where a data directory lies: which folder, on which running system. Containers on one machine are one system."""
    status = directory.path.stat()
    system = platform.node()
    with suppress(OSError):
        system = _BOOT.read_text().strip()
    return Place(f"{system}:{status.st_dev}:{status.st_ino}", platform.node()[:255], str(directory.path))


def refuse_living_server(engine: sa.Engine, directory: DataDir) -> None:
    """Refuse where the database knows a server that lives at another place.

    Raises:
        InstanceError: it does.
    """
    with engine.connect() as connection:
        last = instance.load(connection)
    refuse_living(last.mark if last else None, place_of(directory))


class Lease:
    """The lease of this process, or its admission where it is none that serves."""

    def __init__(
        self,
        engine: sa.Engine,
        directory: DataDir,
        marks: InstanceMark,
        moving: Callable[[sa.Connection], None],
    ) -> None:
        """The parts are owned by the caller; ``moving`` raises what stands against use at another place."""
        self._engine = engine
        self._directory = directory
        self._marks = marks
        self._moving = moving
        self._here = place_of(directory)
        self._last: Last | None = None
        self._books = ""
        self._until: float | None = None
        self._failing: set[str] = set()
        self._lost: InstanceError | None = None
        self.over = asyncio.Event()
        """Another has the books: nothing may be served any more."""

    @property
    def held(self) -> bool:
        """Whether nobody else can have the books; always so for a command, which every script looks after."""
        return self._lost is None and (self._until is None or time.clock_gettime(_CLOCK) < self._until)

    def ensure(self) -> None:
        """Refuse to begin anything that is paid while another may have the books.

        Raises:
            MeterUnavailable: the lease was lost, or could not be renewed for so long that it has ended.
        """
        if not self.held:
            raise MeterUnavailable("this server's lease of the books has ended, and is not renewed yet")

    def raise_lost(self) -> None:
        """Say who has the books, if another has.

        Raises:
            InstanceError: another has.
        """
        if self._lost is not None:
            raise self._lost

    async def take(self, found: Deployment, *, serving: bool) -> Deployment:
        """Admit this process to the books, as the server or as a command beside it; gives the id that they carry then.

        Raises:
            InstanceError: they are used from another place, or what is here is older or newer than what is there.
            MeterUnavailable, SQLAlchemyError, OSError: it cannot be found out.
        """
        for _ in range(_ATTEMPTS):
            taken = await self._take(found, serving=serving)
            if taken is not None:
                return taken
        raise InstanceError("other processes begin to use the books at the same time: try again")

    async def _take(self, found: Deployment, *, serving: bool) -> Deployment | None:
        carried = await self._marks.carried(found.meter)
        if carried is None:
            return found  # the meter says what Redis has instead
        seen = await self._marks.look(carried)  # before the database, which is never behind it
        last, fence = await asyncio.to_thread(self._load)
        self._refuse(last, seen)
        moved = last is not None and last.mark.place.id != self._here.id
        if last is not None and last.previous:
            # What a start before this one may have left unfinished, so that none is further behind than one generation.
            await self._spread(replace(found, fence=fence), carried, last, None)
        began = time.clock_gettime(_CLOCK)
        if serving or moved or last is None:
            carried = await self._marks.carried(found.meter) or carried
            last = await asyncio.to_thread(self._begin, last, LEASE_MS if serving else 0)
        else:
            last = await asyncio.to_thread(instance.sign, self._engine)
        if last is None:
            return None
        _, fence = await asyncio.to_thread(self._load)
        found = replace(found, fence=fence)
        await self._spread(found, carried, last, LEASE_MS if serving else None)
        if moved:
            await asyncio.to_thread(instance.settle, self._engine)
            last = Last(last.mark, "")
        self._last, self._books = last, found.meter
        if serving:
            self._until = began + LEASE_MS / 1000
        return found

    async def examine(self, found: Deployment) -> None:
        """Say what stands against using the books from here; nothing is changed.

        Raises:
            StillServed: they are used from another place.
            InstanceError: what is here is older or newer than what is there.
            MeterUnavailable, SQLAlchemyError, OSError: it cannot be found out.
        """
        carried = await self._marks.carried(found.meter)
        seen = await self._marks.look(carried) if carried else None
        last, _ = await asyncio.to_thread(self._load)
        self._refuse(last, seen)

    @staticmethod
    def new_generation() -> str:
        """A generation that nobody has had."""
        return uuid.uuid4().hex

    async def replace_mark(self, books: str, generation: str) -> Mark:
        """Leave the mark of a new generation in books that were made anew, whoever's was there.

        Raises:
            MeterUnavailable, MeterLost: Redis does not answer, or does not carry these books.
        """
        mark = Mark(generation, self._here, 1, 0)
        await self._marks.remove()
        await self._marks.put(books, mark, lease_ms=0)
        return mark

    def _load(self) -> tuple[Last | None, str]:
        with self._engine.connect() as connection:
            return instance.load(connection), deployment.fence(connection)

    def _begin(self, last: Last | None, lease_ms: int) -> Last | None:
        return instance.take(
            self._engine, last, self.new_generation(), self._here, lease_ms=lease_ms, moving=self._moving
        )

    def _refuse(self, last: Last | None, seen: Mark | None) -> None:
        for mark in (last.mark if last else None, seen):
            refuse_living(mark, self._here)
        self._refuse_other("Redis", last, seen.generation if seen else "", seen)
        if last and seen and seen.generation == last.mark.generation and seen.beat > last.mark.beat:
            raise _diverged("Redis", seen)
        kept = self._directory.generation()
        if kept or last is not None:
            self._refuse_other("the data directory", last, kept, None)

    def _refuse_other(self, what: str, last: Last | None, generation: str, seen: Mark | None) -> None:
        known = last.generations if last else ()
        missing_mark = not generation and what == "Redis"  # it lost its last writes, or was used by an older version
        if generation not in known and not missing_mark:
            raise _diverged(what, seen or (last.mark if last else None))

    async def _spread(self, found: Deployment, carried: str, last: Last, lease_ms: int | None) -> None:
        """Let the data directory and Redis have the database's generation, and all shards the id of the books."""
        await asyncio.to_thread(self._directory.keep_generation, last.mark.generation)
        other = await self._marks.put(carried, last.mark, follows=last.previous, lease_ms=lease_ms)
        if other is not None and (other.place.id != self._here.id or lease_ms is not None):
            refuse_living(other, self._here)
            raise _diverged("Redis", other)
        if last.previous:
            await self._marks.stamp(found.meter)

    async def run(self) -> None:
        """Renew the lease of a server until it is cancelled, or another has it: then :attr:`over` is set."""
        while self._until is not None and self._lost is None:
            await asyncio.sleep(_RENEW_SECONDS)
            await self.renew()

    async def renew(self) -> None:
        """Renew the lease once, in the database and in Redis. One that does not answer is asked again later."""
        if self._last is None:
            return
        try:
            await self._renew_in_database(self._last)
        except sa.exc.SQLAlchemyError as error:
            self._fail("database", error)
        if self._lost is None:
            await self._renew_in_redis(self._last)

    async def _renew_in_database(self, last: Last) -> None:
        """Renew it there, however long others have the write lock; that the books are still ours is read meanwhile.

        What keeps us from writing keeps others from taking the books, so nothing that is paid needs to wait for it.

        Raises:
            SQLAlchemyError: it could not be renewed.
        """
        began, mine = time.clock_gettime(_CLOCK), last.mark.generation
        writing = asyncio.ensure_future(asyncio.to_thread(instance.renew, self._engine, mine, LEASE_MS))
        try:
            while self._lost is None and not (await asyncio.wait({writing}, timeout=_RENEW_SECONDS))[0]:
                looked = time.clock_gettime(_CLOCK)
                now, _ = await asyncio.to_thread(self._load)
                if now is None or now.mark.generation != mine:
                    self._lose(now.mark if now else None)
                    return
                self._until = looked + LEASE_MS / 1000
                await self._renew_in_redis(last)
            if self._lost is not None:
                return
            row, kept = await writing
        finally:
            writing.cancel()
        if not kept or row is None:
            self._lose(row.mark if row else None)
            return
        self._last = Last(row.mark, last.previous)
        self._until = max(self._until or began, began + LEASE_MS / 1000)
        self._failing.discard("database")

    async def _renew_in_redis(self, last: Last) -> None:
        try:
            other = await self._marks.keep(self._books, last.mark, follows=last.previous, lease_ms=LEASE_MS)
        except (MeterUnavailable, MeterLost) as error:
            self._fail("redis", error)
            return
        self._failing.discard("redis")
        if other is not None:
            self._lose(other)

    def _fail(self, what: str, error: Exception) -> None:
        if what not in self._failing:
            _log.warning("the lease could not be renewed; trying again", where=what, reason=str(error))
        self._failing.add(what)

    def _lose(self, other: Mark | None) -> None:
        who = f"by the server on {other.place.host} in {other.place.folder}" if other else "by another"
        self._lost = InstanceError(f"the books were taken over {who} while this one did not renew its lease: {_ADVICE}")
        _log.error("the books were taken over; this server ends", reason=str(self._lost))
        self.over.set()

    async def release(self) -> None:
        """Let others begin at once. What cannot be told now ends by itself."""
        if self._last is None or self._until is None or self._lost is not None:
            return
        with suppress(sa.exc.SQLAlchemyError, MeterUnavailable, MeterLost):
            row, kept = await asyncio.to_thread(instance.renew, self._engine, self._last.mark.generation, 0)
            if kept and row is not None:
                await self._marks.put(self._books, row.mark, follows=self._last.previous, lease_ms=0)


def _diverged(what: str, mark: Mark | None) -> InstanceError:
    by = f", last on {mark.place.host} in {mark.place.folder}" if mark else ""
    return InstanceError(
        f"the database and {what} do not belong together: one of them is from a backup or a copy, and the other was "
        f"used since{by}. Restore both of the same moment, or run `patronage meter rebuild` to let this database and "
        f"data directory count from now on; {_ADVICE}"
    )
