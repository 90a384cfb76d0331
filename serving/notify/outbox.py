"""Signals: what the server tells others by itself, beside answering. Low balances, by metric and by webhook."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any, Final

import httpx
import sqlalchemy as sa
import structlog

from serving.books import Books, Metering
from serving.notify import alerts, webhooks
from serving.notify.alerts import deliveries
from serving.notify.webhooks import WebhookError
from serving.telemetry.metrics import Metrics

_log = structlog.get_logger()
_PAUSE_S: Final = 0.5
_SWEEP_S: Final = 300
_AT_ONCE: Final = 20
_LEASE_MS: Final = 2 * webhooks.TIMEOUT_S * 1000  # a claim outlasts the call, and not for long the one who made it
ATTEMPTS_MAX: Final = 24
_BACKOFF_MAX_S: Final = 6 * 3600


class Signals:
    """Watches the balances and delivers what is in the outbox."""

    def __init__(self, books: Books, metering: Metering, metrics: Metrics) -> None:
        self._books = books
        self._metering = metering
        self._metrics = metrics
        self._swept = -float("inf")

    async def run(self, over: asyncio.Event) -> None:
        """Send until the server stops. A failed delivery is logged and retried: the outbox keeps it."""
        failing = False
        # No proxy of the environment: only the settings read it. No cookies or connections are shared between accounts.
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False) as client:
            while not over.is_set():
                try:
                    await self.deliver(client)  # first: it needs no Redis
                    await self.watch()
                    failing = False
                except Exception as error:  # noqa: BLE001 # the next pass does what this one could not
                    self._swept = -float("inf")
                    if not failing:
                        _log.warning("signals failed; trying again", reason=f"{type(error).__name__}: {error}")
                    failing = True
                with suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), _PAUSE_S)

    async def watch(self) -> None:
        """Look at the accounts that were charged, at those that are low, and now and then at all of them."""
        charged = self._metering.drain.take_charged()
        low = await asyncio.to_thread(alerts.low_accounts, self._books)
        accounts = charged.union(low)
        if time.monotonic() - self._swept > _SWEEP_S:
            accounts.update(await asyncio.to_thread(self._books.identities.customers))
            self._swept = time.monotonic()
        await alerts.check(self._books, self._metering.meter, accounts)
        self._metrics.accounts_low.set(len(await asyncio.to_thread(alerts.low_accounts, self._books)))

    async def deliver(self, client: httpx.AsyncClient) -> None:
        """Send what is due. Each event is sent until it is taken, so perhaps twice, always under the same id."""
        due = await asyncio.to_thread(self._due)
        await asyncio.gather(*(self._send(client, row) for row in due))
        self._metrics.webhooks_pending.set(await asyncio.to_thread(self._pending))

    async def _send(self, client: httpx.AsyncClient, row: sa.Row[Any]) -> None:
        if not await asyncio.to_thread(self._claim, row):
            return
        error, delivered = "", False
        try:
            if row.url is None:
                raise WebhookError("the account has no webhook any more")
            secret = alerts.secret_of(self._books, row.account, row.secret)
            private = self._books.settings.webhook_private_hosts
            await webhooks.call(client, row.url, secret, row.id, row.body, private=private)
            delivered = True
        except (WebhookError, OSError) as problem:
            error = str(problem)
        given_up = not delivered and (row.url is None or row.attempts + 1 >= ATTEMPTS_MAX)
        result = "delivered" if delivered else "abandoned" if given_up else "failed"
        self._metrics.webhooks.labels(result).inc()
        await asyncio.to_thread(self._record, row, result, error)

    def _due(self) -> list[sa.Row[Any]]:
        table, alert = deliveries, alerts.alerts
        query = (
            sa.select(table, alert.c.url, alert.c.secret)
            .join_from(table, alert, table.c.account == alert.c.account)
            .where(table.c.due_ms <= _now_ms())
            .order_by(table.c.due_ms)
            .limit(_AT_ONCE)
        )
        with self._books.engine.connect() as connection:
            return list(connection.execute(query).all())

    def _claim(self, row: sa.Row[Any]) -> bool:
        """Whether this process is the one to send it now. If it dies, another does when the claim is over."""
        values = {"due_ms": _now_ms() + _LEASE_MS, "attempts": row.attempts + 1}
        return self._update(values, deliveries.c.id == row.id, deliveries.c.due_ms == row.due_ms)

    def _record(self, row: sa.Row[Any], result: str, error: str) -> None:
        now = _now_ms()
        values = {
            "due_ms": now + 1000 * min(2**row.attempts, _BACKOFF_MAX_S) if result == "failed" else None,
            "delivered_ms": now if result == "delivered" else None,
            "error": error,
        }
        self._update(values, deliveries.c.id == row.id)

    def _update(self, values: dict[str, Any], *mine: sa.ColumnElement[bool]) -> bool:
        with self._books.engine.begin() as connection:
            return connection.execute(sa.update(deliveries).where(*mine).values(**values)).rowcount == 1

    def _pending(self) -> int:
        query = sa.select(sa.func.count()).select_from(deliveries).where(deliveries.c.due_ms.is_not(None))
        with self._books.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
