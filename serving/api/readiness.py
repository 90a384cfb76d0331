"""Readiness: found out in the background, so that asking for it costs nothing, however often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar

from serving.service import Service
from serving.telemetry.metrics import Metrics

T = TypeVar("T")

_PAUSE_SECONDS: Final = 0.5
_PATIENCE_SECONDS: Final = 2.0
_STALE_SECONDS: Final = 4.0
"""What was found longer ago says nothing: whoever looks is held up itself."""


class Readiness:
    """Whether queries can be answered and paid, as of a moment ago."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self.draining = False
        """The server is being stopped, so it is not ready, and answers what comes all the same."""
        self._service = service
        self._metrics = metrics
        self._checks = {"meter": False, "database": False}
        self._looked_at = 0.0
        # Threads of its own: they are free when all others are taken.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="readiness")

    def checks(self) -> dict[str, bool]:
        """What was found last; all of it false if that is too long ago. And whether the server goes on."""
        fresh = time.monotonic() - self._looked_at < _STALE_SECONDS
        return {"serving": not self.draining, **{name: good and fresh for name, good in self._checks.items()}}

    def run_beside(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Do something short in the threads that are always free."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def look(self) -> None:
        """Find out now."""
        database = self.run_beside(self._database)
        meter, stored = await asyncio.gather(_good(self._service.metering.meter.check()), _good(database))
        self._checks = {"meter": meter and self._service.metering.lease.held, "database": stored}
        self._looked_at = time.monotonic()
        spooled = await self.run_beside(self._service.metering.spool.state)
        self._metrics.spool_waiting.set(len(spooled.waiting))
        self._metrics.spool_unsettled.set(len(spooled.damaged) + len(spooled.refused))

    def _database(self) -> None:
        """Read what every query needs of it, so that none has to."""
        self._service.books.catalogue.epoch()
        self._service.books.rulebook.keep_current()

    async def run(self, over: asyncio.Event) -> None:
        """Look again and again until it is over."""
        try:
            while not over.is_set():
                with suppress(Exception):  # what cannot be found out is stale soon, and that is said
                    await self.look()
                with suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), _PAUSE_SECONDS)
        finally:
            self._threads.shutdown(wait=False)


async def _good(check: Awaitable[object]) -> bool:
    """Whether it succeeds, soon; why not is for the log of who needed it."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await check
    except Exception:  # noqa: BLE001 # whatever it says, it is not ready
        return False
    return True
