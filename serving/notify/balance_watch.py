"""The watch over balances: it sees which accounts have become low, whoever charged them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import structlog

from metering.meter import MeterError
from serving.books import Books, Metering
from serving.notify import alerts
from serving.telemetry.metrics import Metrics

_log = structlog.get_logger()
_PAUSE_S: Final = 0.5
_SWEEP_S: Final = 300
"""How often every account is looked at."""
_SLICE: Final = 200
"""How many that were not charged are looked at in one pass, so that those that were are soon looked at again."""


class BalanceWatch:
    """Looks at the accounts that were charged, in rounds at those that are low, and now and then at all of them."""

    def __init__(self, books: Books, metering: Metering, metrics: Metrics) -> None:
        self._books = books
        self._metering = metering
        self._metrics = metrics
        self._charged: dict[str, None] = {}
        self._round: deque[str] = deque()
        self._swept = -float("inf")
        self._failing = False

    async def run(self, over: asyncio.Event) -> None:
        """Watch until the server stops. What fails is logged and tried again."""
        while not over.is_set():
            try:
                failed = await self.look()
            except Exception as error:  # noqa: BLE001 # the next pass does what this one could not
                failed = f"{type(error).__name__}: {error}"
            if failed and not self._failing:
                _log.warning("balances could not be watched; trying again", reason=failed)
            self._failing = bool(failed)
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), _PAUSE_S)

    async def look(self) -> str:
        """One pass; gives why an account could not be looked at, or nothing. It holds up none of the others.

        Raises:
            MeterUnavailable: the meter does not answer; who was charged is looked at in the next pass.
        """
        self._charged.update(dict.fromkeys(self._metering.drain.take_charged()))
        if not self._round:
            self._round.extend(await self._next_round())
        failed = await self._check(list(self._charged))
        failed = await self._check(list(self._round)[:_SLICE]) or failed
        self._metrics.accounts_low.set(len(await asyncio.to_thread(alerts.low_accounts, self._books)))
        return failed

    async def _next_round(self) -> Iterable[str]:
        accounts = dict.fromkeys(await asyncio.to_thread(alerts.low_accounts, self._books))
        if time.monotonic() - self._swept > _SWEEP_S:
            accounts.update(dict.fromkeys(await asyncio.to_thread(self._books.identities.customers)))
            self._swept = time.monotonic()
        return accounts

    async def _check(self, accounts: Iterable[str]) -> str:
        failed = ""
        for account in accounts:
            try:
                await alerts.check(self._books, self._metering.meter, [account])
            except MeterError:
                raise  # nobody's balance is known now
            except Exception as error:  # noqa: BLE001 # one account's trouble hides no other's
                failed = failed or f"{type(error).__name__}: {error}"
            self._charged.pop(account, None)
            if self._round and self._round[0] == account:
                self._round.popleft()
        return failed
