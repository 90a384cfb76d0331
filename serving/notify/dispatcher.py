"""The dispatcher: it calls the webhooks with what waits in the outbox.

An endpoint is called with one event at a time, and all of them together have so many places. Those that have not taken
their last event have half of the places, so that endpoints which never answer, however many, delay none that does.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from serving.books import Books
from serving.notify import alerts, outbox, webhooks
from serving.notify.outbox import Event, Result
from serving.notify.webhooks import Addresses, WebhookError
from serving.telemetry.metrics import Metrics

_log = structlog.get_logger()
_Found = TypeVar("_Found")

CALLS_AT_ONCE: Final = 64
"""How many endpoints are called at once."""
UNPROVED_AT_ONCE: Final = 32
"""How many of them may be endpoints that have not taken their last event, or never one."""
TURN_EVENTS: Final = 20
"""After so many events it is another endpoint's turn."""
_PAUSE_S: Final = 0.5
_RENEW_S: Final = 2.0
_PRUNE_S: Final = 3600.0
_LAST_CALLS_S: Final = 2.0


class Dispatcher:
    """Calls every endpoint that is due."""

    def __init__(self, books: Books, metrics: Metrics) -> None:
        self._books = books
        self._metrics = metrics
        self._who = uuid.uuid4().hex
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._lookups: set[str] = set()
        self._unproved: set[str] = set()
        self._counted: dict[str, int] = {}
        self._renewed = self._pruned = -float("inf")
        # One thread for its SQL: while a lock is waited for, it takes no thread that answers need.
        self._sql = ThreadPoolExecutor(1, thread_name_prefix="outbox")

    async def run(self, over: asyncio.Event) -> None:
        """Call until the server stops. What fails is logged and tried again: the outbox keeps it."""
        await self._run(webhooks.trusted)  # it takes a moment, which the event loop does not have
        ending = asyncio.create_task(over.wait())
        failing = False
        try:
            while not over.is_set():
                try:
                    await self.pass_once()
                    failing = False
                except Exception as error:  # noqa: BLE001 # the next pass does what this one could not
                    if not failing:
                        _log.warning("webhooks failed; trying again", reason=f"{type(error).__name__}: {error}")
                    failing = True
                waited = {ending} if failing else {ending, *self._calls.values()}
                await asyncio.wait(waited, timeout=_PAUSE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            await self.end()

    async def pass_once(self) -> None:
        """Give the free places to endpoints that are due, and keep the books of the outbox."""
        for account in [account for account, call in self._calls.items() if call.done()]:
            del self._calls[account]
        if time.monotonic() - self._renewed > _RENEW_S:
            self._renewed = time.monotonic()
            if self._calls:
                await self._run(outbox.renew, self._books.engine, self._who)
        for proved in (True, False):
            await self._begin(proved=proved)
        if time.monotonic() - self._pruned > _PRUNE_S and not await self._run(outbox.prune, self._books.engine):
            self._pruned = time.monotonic()
        await self._count()

    async def idle(self) -> None:
        """Wait for the calls that are under way."""
        if self._calls:
            await asyncio.wait(self._calls.values())

    async def end(self) -> None:
        """Let the calls that are under way end soon, cut off the others, and give their endpoints back."""
        if self._calls:
            _, late = await asyncio.wait(self._calls.values(), timeout=_LAST_CALLS_S)
            for call in late:
                call.cancel()
            await asyncio.gather(*self._calls.values(), return_exceptions=True)
        try:
            await self._run(outbox.release, self._books.engine, self._who)
        except Exception as error:  # noqa: BLE001 # they come free by themselves
            _log.warning("webhooks were not given back", reason=f"{type(error).__name__}: {error}")
        self._sql.shutdown(wait=False)

    async def _begin(self, *, proved: bool) -> None:
        busy = self._calls.keys() | self._lookups
        self._unproved &= busy
        free = CALLS_AT_ONCE - len(busy)
        if not proved:
            free = min(free, UNPROVED_AT_ONCE - len(self._unproved))
        if free <= 0:
            return
        # Those whose name is still being looked up for a call that is over are due again, and are not called.
        found = await self._run(partial(outbox.due, proved=proved, limit=free + len(busy)), self._books.engine)
        for account in [account for account in found if account not in busy][:free]:
            if not proved:
                self._unproved.add(account)
            self._calls[account] = asyncio.create_task(self._turn(account))

    async def _turn(self, account: str) -> None:
        try:
            for _ in range(TURN_EVENTS):
                event = await self._run(outbox.claim, self._books.engine, account, self._who)
                if event is None or await self._deliver(event) != Result.DELIVERED:
                    return
        except Exception as error:  # noqa: BLE001 # the claim lapses, and it is tried again
            _log.warning("a webhook could not be served", account=account, reason=f"{type(error).__name__}: {error}")

    async def _deliver(self, event: Event) -> Result:
        url, sealed = await self._run(alerts.webhook_of, self._books, event.account)
        if url is None or sealed is None:
            await self._run(outbox.abandon, self._books.engine, event.account, "the account has no webhook any more")
            return Result.ABANDONED
        error: str | None = None
        try:
            await webhooks.call(
                url,
                alerts.secret_of(self._books, event.account, sealed),
                event.id,
                event.body,
                private=self._books.settings.webhook_private_hosts,
                resolve=partial(self._resolve, event.account),
            )
        except WebhookError as problem:
            error = str(problem)
        except Exception as problem:  # noqa: BLE001 # whatever is wrong with it is this endpoint's
            error = f"{type(problem).__name__}: {problem}"
        return await self._run(outbox.settle, self._books.engine, event, self._who, error)

    async def _resolve(self, account: str, host: str, port: int) -> Addresses:
        """Look up a name in a thread of its own: a look-up cannot be cut off, and takes its place until it is over."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Addresses] = loop.create_future()

        def over(found: Addresses | None, error: BaseException | None) -> None:
            self._lookups.discard(account)
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found or [])

        def look_up() -> None:
            found: Addresses | None = None
            problem: BaseException | None = None
            try:
                found = [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
            except (OSError, UnicodeError) as error:
                problem = error
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(over, found, problem)

        self._lookups.add(account)
        threading.Thread(target=look_up, name="webhook-name", daemon=True).start()
        return await answer

    async def _count(self) -> None:
        pending, calls = await self._run(outbox.counts, self._books.engine)
        self._metrics.webhooks_pending.set(pending)
        for result in Result:
            counter = self._metrics.webhooks.labels(result.value)
            counter.inc(max(0, calls.get(result, 0) - self._counted.get(result, 0)))
        self._counted = calls

    async def _run(self, function: Callable[..., _Found], *arguments: Any) -> _Found:
        return await asyncio.get_running_loop().run_in_executor(self._sql, partial(function, *arguments))
