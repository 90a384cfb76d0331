"""Paid calls: each is opened with a hold, and closed with exactly one charge or void.

The hold is for the most that the call may cost. Charge and void run to their end whatever becomes of the task that
asked for them. A charge that Redis cannot take goes into the spool, so what a customer is told to have paid is charged,
now or later. A hold that Redis cannot release, or has not told of, is given up when it is back (metering/settling.py).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog

from attribution.policy import Policy
from metering import usage_index
from metering.meter import (
    Hold,
    IdempotencyRunning,
    Limits,
    Meter,
    MeterError,
    MeterLost,
    MeterUnavailable,
    Replay,
    Request,
)
from metering.money import Currency
from metering.pricing import ModelPrice, Usage
from metering.records import Provenance, UsageRecord, Use, fingerprint
from metering.settling import Settling
from serving.answering.pools import Overloaded
from serving.generators.query import Idempotency, MaxPriceExceeded
from serving.people.identity import Caller
from serving.rules.rulebook import Rulebook
from serving.settings import Settings
from serving.store.encryption import Encryption
from serving.store.leases import Lease

T = TypeVar("T")

_log = structlog.get_logger()
_RUNNING_PAUSE_S: Final = 0.2
GROUP_COMMIT_FROM: Final = 16
GROUP_COMMIT_S: Final = 0.02
"""From so many paid calls in progress, authorize and capture wait so long to be sent in a group (docs/adr/0025)."""


class AlreadyCharged(RuntimeError):
    """The Idempotency-Key was charged before, and its response is no longer kept."""

    def __init__(self, receipt: str) -> None:
        """``receipt`` is the id of the receipt of the charge."""
        super().__init__(f"this Idempotency-Key was charged with receipt {receipt}, whose response is no longer kept")
        self.receipt = receipt


class ReplayNotKept(RuntimeError):
    """The request was answered and charged before, and its response was too large to keep."""

    def __init__(self, receipt: str) -> None:
        """``receipt`` is the id of the receipt of the charge."""
        super().__init__(
            f"this request was answered and charged with receipt {receipt}, and the response was too large to keep: "
            "to have it made and charged anew, send the request as a new one, with another Idempotency-Key or none"
        )
        self.receipt = receipt


@dataclass(frozen=True, slots=True)
class PaidCall:
    """A paid call that was admitted, at the prices and under the policy of that moment."""

    hold: Hold
    model: str
    purpose: str
    price: ModelPrice
    price_version: int
    policy: Policy
    started_ms: int

    @property
    def receipt(self) -> str:
        """The id of the receipt, if it is charged."""
        return self.hold.request.hold

    @property
    def retried(self) -> bool:
        """Whether its idempotency follows the library's retry count, not an Idempotency-Key of the client's."""
        return self.hold.request.retries is not None

    def record(
        self,
        usage: Usage,
        *,
        value_function: str,
        values: Sequence[int],
        uses: Sequence[Use],
        provenance: Provenance,
    ) -> UsageRecord:
        """The usage record of what was delivered."""
        request = self.hold.request
        charge, cost = self.price.charge(usage), self.price.cost(usage)
        platform, royalty = self.policy.divide(charge, cost)
        return UsageRecord(
            id=request.hold,
            account=request.account,
            key=request.key,
            model=self.model,
            purpose=self.purpose,
            started_ms=self.started_ms,
            finished_ms=time.time_ns() // 1_000_000,
            price_version=self.price_version,
            policy_version=self.policy.version,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            passages=usage.passages,
            charge=charge,
            cost=cost,
            platform=platform,
            royalty=royalty,
            free=min(charge, self.hold.free),
            value_function=value_function,
            values=tuple(values),
            uses=tuple(uses),
            # What a library asks for is forgotten with its retries; what the client asks for is kept for ever.
            idempotency=fingerprint(request.idempotency_key) if request.idempotency_key and not self.retried else "",
            provenance=provenance,
        )


class PaidCalls:
    """Opens paid calls and closes them."""

    def __init__(
        self,
        *,
        meter: Meter,
        settling: Settling,
        lease: Lease,
        rulebook: Rulebook,
        engine: sa.Engine,
        encryption: Encryption,
        currency: Currency,
        settings: Settings,
        limits: Limits,
    ) -> None:
        """The parts are owned by the caller; :meth:`finish` before they are closed.

        ``limits`` are those of a key that has none of its own.
        """
        self._meter = meter
        self._settling = settling
        self._lease = lease
        self._rulebook = rulebook
        self._engine = engine
        self._encryption = encryption
        self._currency = currency
        self._settings = settings
        self._limits = limits
        self._running: Counter[str] = Counter()
        """By account; nobody is in it who has none."""
        self._group_sent: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def running(self) -> int:
        """Paid calls in progress."""
        return self._running.total()

    async def find_replay(self, caller: Caller, idempotency: Idempotency) -> Replay | None:
        """The response to the same call before, opened and uncharged, or None where it is a new one.

        Asked before anything is computed for the call, so that a call that comes again costs no more than its look-up.

        Raises:
            MeterError: the meter refused; see :mod:`metering.meter`.
            ReplayNotKept, Overloaded: as they say.
        """
        if not idempotency.key or idempotency.retries == 0:
            return None
        request = self._request(caller, idempotency, time.time_ns() // 1_000_000)
        self._take_place(caller.id)
        try:
            found = await self._when_answered(self._meter.find_replay, request)
        finally:
            self._leave_place(caller.id)
        return None if found is None else self._opened(found, caller)

    async def open(
        self,
        caller: Caller,
        *,
        model: str,
        purpose: str,
        most: Usage,
        max_price: int | None = None,
        idempotency: Idempotency = Idempotency(),  # noqa: B008 # immutable
    ) -> PaidCall | Replay:
        """Hold the price of ``most`` usage, or give the response to the same call before, opened and uncharged.

        Raises:
            PriceError: the model is not priced.
            MaxPriceExceeded: ``most`` costs more than ``max_price`` (units).
            MeterError: the meter refused; see :mod:`metering.meter`.
            AlreadyCharged, ReplayNotKept, Overloaded: as they say.
        """
        started_ms = time.time_ns() // 1_000_000
        prices = self._rulebook.prices_at(started_ms)
        price = prices.price(model)
        ceiling = price.charge(most)
        if max_price is not None and ceiling > max_price:
            raise MaxPriceExceeded(self._currency.format(ceiling))
        request = replace(
            self._request(caller, idempotency, started_ms),
            ceiling=ceiling,
            tokens=most.input_tokens + most.output_tokens,
            free_per_month=prices.free_per_month,
        )
        self._take_place(caller.id)
        try:
            hold = await self._authorize(request)
        except BaseException:
            self._leave_place(caller.id)
            raise
        if isinstance(hold, Replay):
            self._leave_place(caller.id)
            return self._opened(hold, caller)
        return PaidCall(hold, model, purpose, price, prices.version, self._rulebook.policy, started_ms)

    async def charge(self, call: PaidCall, record: UsageRecord, response: bytes) -> None:
        """Charge a call. ``response`` is what the same call gets again.

        After an empty one the same call is a new one. Of one above ``replay_bytes`` only that it was given is kept.

        Raises:
            MeterUnavailable: neither the meter nor the spool can take it: nothing is promised.
            HoldExpired: the hold expired and was used since; nothing was charged.
        """
        await asyncio.shield(self.start(self._charge(call, record, response)))

    async def void(self, call: PaidCall) -> None:
        """Charge nothing and release the hold."""
        await asyncio.shield(self.start(self._void(call)))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something about money to its end, whatever becomes of the caller."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self) -> None:
        """Wait until everything that was started has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _take_place(self, account: str) -> None:
        """Count a call of the account. As many places as it has stay free for others, so nobody can take all."""
        own, free = self._running[account], self._settings.concurrent_queries - self.running
        if free <= 0:
            raise Overloaded("too many queries in progress")
        if own >= free:
            raise Overloaded(f"too many queries of yours are in progress ({own})")
        self._running[account] += 1

    def _leave_place(self, account: str) -> None:
        self._running[account] -= 1
        if not self._running[account]:
            del self._running[account]

    def _request(self, caller: Caller, idempotency: Idempotency, at_ms: int) -> Request:
        return Request(
            hold=f"{at_ms:012x}{secrets.token_hex(8)}",
            account=caller.id,
            key=caller.key,
            ceiling=0,
            limits=caller.limits.over(self._limits),
            at_ms=at_ms,
            idempotency_key=idempotency.key,
            fingerprint=idempotency.body_hash,
            retries=idempotency.retries,
        )

    def _opened(self, replay: Replay, caller: Caller) -> Replay:
        response = self._encryption.open(replay.response, caller.id)
        if not response:
            raise ReplayNotKept(replay.receipt)
        return replace(replay, response=response)

    def _sealed(self, response: bytes, account: str) -> bytes:
        if not response:
            return b""
        return self._encryption.seal(response if len(response) <= self._settings.replay_bytes else b"", account)

    async def _authorize(self, request: Request) -> Hold | Replay:
        await self._join_group()
        await self._settling.paid(request.account, self._settings.redis_seconds)
        hold = await self._when_answered(self._hold, request)
        if isinstance(hold, Hold) and request.idempotency_key and request.retries is None:
            try:
                await asyncio.to_thread(self._refuse_charged, request)
            except BaseException:
                await asyncio.shield(self.start(self._release(hold)))
                raise
        return hold

    async def _hold(self, request: Request) -> Hold | Replay:
        self._lease.ensure()
        try:
            return await self._meter.authorize(request)
        except MeterError as error:
            if isinstance(error, MeterUnavailable) and not isinstance(error, MeterLost):
                self._settling.abandon(request)
            raise
        except BaseException:  # whoever asked has left, or the answer makes no sense: there may be a hold
            self._settling.abandon(request)
            raise

    async def _when_answered(self, ask: Callable[[Request], Awaitable[T]], request: Request) -> T:
        """A library's retry waits for the answer that it did not wait for before.

        Any retry that meets the hold of a request which was given up goes on as soon as that is released.
        """
        deadline = time.monotonic() + self._settings.answer_seconds
        while True:
            try:
                return await ask(request)
            except IdempotencyRunning as error:
                if self._settling.is_abandoned(error.hold):
                    await self._settling.given_up(error.hold, self._settings.redis_seconds)
                    continue
                if not request.retries or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_RUNNING_PAUSE_S)

    async def _join_group(self) -> None:
        """Group commit: where many calls run, wait until those of the next moment can be sent as one.

        A group costs Redis and the disk little more than one script. Each member is still a script of its own,
        admitted or refused by itself.
        """
        if self.running < GROUP_COMMIT_FROM:
            return
        if self._group_sent is None or self._group_sent.is_set():
            self._group_sent = asyncio.Event()
            asyncio.get_running_loop().call_later(GROUP_COMMIT_S, self._group_sent.set)
        await self._group_sent.wait()

    async def _charge(self, call: PaidCall, record: UsageRecord, response: bytes) -> None:
        try:
            kept = self._sealed(response, record.account)
            await self._join_group()
            await self._capture(call.hold, record, kept)
        except BaseException:
            self._settling.abandon(call.hold.request)
            raise
        finally:
            self._leave_place(call.hold.request.account)

    async def _capture(self, hold: Hold, record: UsageRecord, response: bytes) -> None:
        try:
            await self._meter.capture(hold, record, response)
        except MeterUnavailable as error:
            try:
                await self._settling.keep(hold, record, response)
            except OSError as full:
                _log.error("neither meter nor spool takes a charge", receipt=record.id, reason=str(full))
                raise error from full
            _log.warning("the meter is away: a charge waits in the spool", receipt=record.id)

    async def _void(self, call: PaidCall) -> None:
        try:
            await self._release(call.hold)
        finally:
            self._leave_place(call.hold.request.account)

    async def _release(self, hold: Hold) -> None:
        try:
            await self._meter.void(hold)
        except MeterUnavailable:
            self._settling.abandon(hold.request)

    def _refuse_charged(self, request: Request) -> None:
        """The meter forgets an Idempotency-Key after a while; the ledger never does."""
        with self._engine.connect() as connection:
            key = fingerprint(request.idempotency_key)
            receipt = usage_index.charged_under(connection, request.account, key)
        if receipt is not None:
            raise AlreadyCharged(receipt)
