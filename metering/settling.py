"""Settling: what was left open while the meter was away is brought to its end when it is back.

Three things stay open. Of a request whose authorize was not answered nobody knows whether the meter holds its ceiling:
it is abandoned, which the meter remembers for the case that the request comes there later. A capture that the meter
could not take waits in the spool. And a process that was killed leaves holds that nobody will capture. One task brings
all of them to their end, and while the meter stays away it asks no more than once a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from metering.meter import Hold, Meter, MeterLost, MeterUnavailable, Request
from metering.processes import Processes
from metering.records import UsageRecord
from metering.spool import FAILURES_MAX, Spool

ABANDONED_MAX: Final = 10_000
"""How many requests may wait to be abandoned; the holds of more expire."""

_PAUSE_S: Final = 0.05
_PAUSE_S_MAX: Final = 1.0
_IDLE_S: Final = 5.0
_LATE_S: Final = 30.0
"""How long what a dead process has sent may be on its way to the meter."""

_log = structlog.get_logger()


class Settling:
    """What waits for the meter."""

    def __init__(self, meter: Meter, spool: Spool, processes: Processes) -> None:
        """All are owned by the caller."""
        self._meter = meter
        self._spool = spool
        self._processes = processes
        self._abandoned: dict[str, Request] = {}
        self._released: dict[str, float] = {}
        self._settling = asyncio.Lock()
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many requests of this process wait to be abandoned."""
        return len(self._abandoned)

    def abandon(self, request: Request) -> None:
        """Give up a request that was not answered, or could not be voided, as soon as the meter is there."""
        if len(self._abandoned) >= ABANDONED_MAX:
            _log.warning("too many holds wait to be given up: one is left to expire", hold=request.hold)
            return
        self._abandoned[request.hold] = request
        self._wake.set()

    async def keep(self, hold: Hold, record: UsageRecord, response: bytes) -> None:
        """Keep a capture that the meter could not take in the spool, and send it as soon as the meter is there.

        Raises:
            OSError: the spool is full or the disk refuses; nothing is kept.
        """
        await asyncio.to_thread(self._spool.put, hold, record, response)
        self._wake.set()

    def is_abandoned(self, hold: str) -> bool:
        """Whether the hold waits to be given up."""
        return hold in self._abandoned

    async def given_up(self, hold: str, seconds: float) -> None:
        """Wait until the hold is given up.

        Raises:
            MeterUnavailable: it is not after so many seconds.
        """
        await self._wait_until(lambda: hold not in self._abandoned, seconds)

    async def paid(self, account: str, seconds: float) -> None:
        """Wait until no capture of the account waits: what is owed comes before anything new is promised.

        Raises:
            MeterUnavailable: one still does after so many seconds.
        """
        await self._wait_until(lambda: not self._spool.waits_for(account), seconds)

    async def settle(self) -> None:
        """One pass over all that waits, and one at a time.

        Raises:
            MeterUnavailable: something waits on.
        """
        away: MeterUnavailable | None = None
        async with self._settling:
            for part in (self._resend, self._give_up, self._release):
                try:
                    await part()
                except MeterUnavailable as error:
                    away = error  # in a cluster, what the others wait for may be there
        if away is not None:
            raise away

    async def run(self, over: asyncio.Event) -> None:
        """Settle whenever something is left open, until it is over. What fails is tried again."""
        ending = asyncio.create_task(over.wait())
        pause = _PAUSE_S
        try:
            while not over.is_set():
                self._wake.clear()
                try:
                    await self.settle()
                except Exception as error:  # noqa: BLE001 # nothing that was charged may be given up
                    if not isinstance(error, MeterUnavailable):
                        _log.error("settling failed; trying again", reason=f"{type(error).__name__}: {error}")
                    await asyncio.wait({ending}, timeout=pause)
                    pause = min(2 * pause, _PAUSE_S_MAX)
                else:
                    pause = _PAUSE_S
                    waking = asyncio.create_task(self._wake.wait())
                    await asyncio.wait({ending, waking}, timeout=_IDLE_S, return_when=asyncio.FIRST_COMPLETED)
                    waking.cancel()
        finally:
            ending.cancel()

    async def _resend(self) -> None:
        try:
            await self._spool.resend(self._meter)
        finally:
            self._progress.set()

    async def _give_up(self) -> None:
        failures = 0
        for request in list(self._abandoned.values()):
            try:
                await self._meter.abandon(request)
            except MeterLost:
                pass  # and its holds with it
            except MeterUnavailable:
                failures += 1
                self._abandoned[request.hold] = self._abandoned.pop(request.hold)
                if failures == FAILURES_MAX:
                    break
                continue
            del self._abandoned[request.hold]
            self._progress.set()
        if failures:
            raise MeterUnavailable("holds wait to be given up")

    async def _release(self) -> None:
        """Release what dead processes hold, and once more when nothing of theirs can be on its way any more."""
        now = time.monotonic()
        dead = await asyncio.to_thread(self._processes.dead)
        late = [name for name in dead if now - self._released.get(name, now) > _LATE_S]
        if due := [name for name in dead if name not in self._released or name in late]:
            released = await self._meter.release(due)
            if released:
                _log.info("holds of processes that ended were released", holds=released)
        for name in late:
            await asyncio.to_thread(self._processes.forget, name)
        self._released = {name: self._released.get(name, now) for name in dead if name not in late}

    async def _wait_until(self, settled: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not settled():
            left = deadline - time.monotonic()
            if left <= 0:
                raise MeterUnavailable("what was asked before waits for the meter")
            self._wake.set()
            self._progress.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._progress.wait(), left)
