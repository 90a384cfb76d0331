"""The runner of jobs: one of each owner at a time, in the order in which they were asked for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog

from metering.meter import MeterUnavailable
from retrieval.catalogue import StoredDocument, state_of
from retrieval.documents import Document, DocumentConflict
from retrieval.readers import decode_line
from serving.answering.pools import Overloaded
from serving.closing import closing
from serving.jobs.documents import take_in
from serving.jobs.periods import in_pool
from serving.service import Service
from serving.store.jobs import ATTEMPTS_MAX, Job, JobOver, Kind, finish
from serving.telemetry.metrics import Metrics

T = TypeVar("T")

_log = structlog.get_logger()
_LOOK_SECONDS: Final = 0.5
_SAY_SECONDS: Final = 1.0
"""How often a job's progress is stored, and so how late a cancelled one ends."""
_PRUNE_SECONDS: Final = 3_600.0
AT_ONCE: Final = {Kind.DOCUMENT: 8, Kind.CLOSE: 1}
"""How many of a kind are in work: no close waits for documents, whose passages take turns as all uploads do."""
_OUTAGES: Final = (MeterUnavailable, sa.exc.OperationalError, OSError, Overloaded)
"""What says nothing of a job: Redis, the database or the disk is away, or its owner's other uploads go first."""
_OUTAGE_SECONDS_MAX: Final = 86_400.0
"""For how long after it was asked for a job is tried through outages: one without end may be the job's own fault."""
_OUTAGE_PAUSE_SECONDS: Final = 4.0


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as the caller is told it; one of the server's own, which may pass, is tried again."""

    is_ours: bool
    error: dict[str, Any]


class Runner:
    """Works on jobs. There is one in a deployment."""

    def __init__(self, service: Service, metrics: Metrics, describe: Callable[[Exception], Failure]) -> None:
        """``describe`` says what callers are told of an error."""
        self._service = service
        self._jobs = service.books.jobs
        self._metrics = metrics
        self._describe = describe
        self._running: dict[asyncio.Task[None], Job] = {}
        # A thread of its own: what waits for the database's lock takes none of those that recognise callers.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._pruned = float("-inf")
        self._may_be_lost = True
        """Whether the database may say of a job that it is in work and nobody works on it."""

    async def run(self, over: asyncio.Event) -> None:
        """Work until it is over; what is in work then is given back, and begun again by the next server."""
        failing = False
        try:
            while not over.is_set():
                try:
                    await self._look()
                    failing = False
                except Exception as error:  # noqa: BLE001 # what was promised is never given up
                    if not failing:
                        _log.error("jobs cannot be looked up; trying again", reason=f"{type(error).__name__}: {error}")
                    failing = True
                with suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), _LOOK_SECONDS)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            self._thread.shutdown(wait=False)

    async def _look(self) -> None:
        if self._may_be_lost:
            working = [job.id for task, job in self._running.items() if not task.done()]
            await self._beside(self._jobs.recover, working)
            self._may_be_lost = False
        for kind, at_once in AT_ONCE.items():
            busy = [job.owner for job in self._running.values() if job.kind is kind]
            free = at_once - len(busy)
            for job in await self._beside(self._jobs.next, kind, busy, free) if free else ():
                task = asyncio.create_task(self._do(job))
                self._running[task] = job
                task.add_done_callback(self._running.pop)
        self._metrics.jobs.set(await self._beside(self._jobs.unfinished))
        if time.monotonic() - self._pruned > _PRUNE_SECONDS:
            await self._beside(self._jobs.prune)
            self._pruned = time.monotonic()

    async def _do(self, job: Job) -> None:
        """Do a job, and store what came of it."""
        try:
            request = await self._beside(self._jobs.begin, job)
            if request is None:
                return
            if job.attempts >= ATTEMPTS_MAX:
                message = f"given up after {ATTEMPTS_MAX} attempts, in which the server failed or ended"
                await self._beside(self._jobs.fail, job, {"code": "given_up", "message": message})
                return
            work = {Kind.DOCUMENT: self._take_in, Kind.CLOSE: self._close}[job.kind]
            try:
                await work(job, request)
            except asyncio.CancelledError:
                with suppress(JobOver, sa.exc.SQLAlchemyError):
                    await self._beside(self._jobs.release, job, counted=False)
                raise
            except JobOver:
                return
            except Exception as error:  # noqa: BLE001 # whatever it is, the caller is told
                await self._failed(job, error)
        except JobOver:
            return
        except Exception as error:  # noqa: BLE001 # whatever it is, the job is not lost
            self._may_be_lost = True
            _log.error("a job's state could not be stored", job=job.id, reason=f"{type(error).__name__}: {error}")

    async def _failed(self, job: Job, error: Exception) -> None:
        failure = self._describe(error)
        if not failure.is_ours:
            await self._beside(self._jobs.fail, job, failure.error)
            return
        _log.error("a job failed", job=job.id, kind=job.kind, reason=f"{type(error).__name__}: {error}")
        age = time.time() - job.created_ms / 1_000
        counted = age > _OUTAGE_SECONDS_MAX or not isinstance(error, _OUTAGES)
        if counted and job.attempts + 1 >= ATTEMPTS_MAX:
            await self._beside(self._jobs.fail, job, failure.error)
            return
        await asyncio.sleep(2**job.attempts if counted else _OUTAGE_PAUSE_SECONDS)
        await self._beside(self._jobs.release, job, counted=counted)

    async def _take_in(self, job: Job, request: str) -> None:
        def decode() -> Document:
            line = decode_line(request.encode())
            return line.document(job.owner.id, self._service.books.currency.parse_amount)

        document = await self._service.pools.uploads.run_promised(job.owner.id, decode)

        def guard(connection: sa.Connection, stored: StoredDocument | None) -> None:
            if state_of(stored) != job.basis:
                raise DocumentConflict(f"document {document.id} was changed or withdrawn after this was sent")
            finish(connection, job)

        is_due = _pace()

        async def progress(done: int, total: int) -> None:
            if is_due():
                await self._beside(self._jobs.advance, job, done, total)

        await take_in(self._service, document, progress=progress, guard=guard)

    async def _close(self, job: Job, request: str) -> None:
        books = self._service.books
        await self._service.metering.drain.flush()
        is_due = _pace()

        def progress(done: int, total: int) -> None:
            if is_due():
                self._jobs.advance(job, done, total)

        def posted(connection: sa.Connection, found: closing.Run) -> None:
            finish(connection, job, found.summary(books.currency))

        close = partial(closing.close, books, job.subject, early=json.loads(request)["early"], posted=posted)
        await in_pool(self._service.pools.closing, job.owner.id, close, progress)

    async def _beside(self, work: Callable[..., T], *args: Any, **more: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **more))


def _pace() -> Callable[[], bool]:
    """Says whether the progress of a job is to be stored: at first, and then now and then."""
    said = float("-inf")

    def is_due() -> bool:
        nonlocal said
        due = time.monotonic() - said >= _SAY_SECONDS
        said = time.monotonic() if due else said
        return due

    return is_due
