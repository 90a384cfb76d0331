"""Catching up: what the meter has lost, or never heard of, is brought to it from the ledger, and nothing else."""

from __future__ import annotations

import time

import pytest

from metering import periods
from metering.meter import Balance, Request
from metering.redis import keys
from serving.assembly import open_metering
from serving.money import customers, funding
from serving.rules.rulebook import EXTRACTIVE
from serving.upkeep.audit import audit
from tests.records import a_record

pytestmark = pytest.mark.anyio
NAMES = [f"customer-{number}" for number in range(12)]


async def used(books, metering, account):
    """Half of one query's price is free."""
    now_ms = time.time_ns() // 1_000_000
    price = books.rulebook.prices.price(EXTRACTIVE)
    hold = await metering.meter.authorize(
        Request(f"q-{account}", account, "key", price.request, at_ms=now_ms, free_per_month=price.request // 2)
    )
    platform, royalty = books.rulebook.policy.divide(price.request, 0)
    record = a_record(
        id=hold.request.hold, account=account, charge=price.request, free=hold.free, cost=0, platform=platform,
        royalty=royalty, started_ms=now_ms, finished_ms=now_ms, uses=(), values=(),
    )  # fmt: skip
    await metering.meter.capture(hold, record)


async def test_what_the_meter_lost_is_brought_to_it_and_nothing_else(any_books, monkeypatch):
    for name in NAMES:
        any_books.identities.add_customer(name, name)
    async with open_metering(any_books) as metering:
        meter, client, shards = metering.meter, metering.meter._client, any_books.deployment.shards
        for name in NAMES:
            await funding.open_account(any_books, meter, name)
            await funding.credit(any_books, meter, name, 10**12, "opening")
        await funding.set_credit_limit(any_books, meter, NAMES[0], 500)
        for name in NAMES[:6]:
            await used(any_books, metering, name)
        await metering.drain.flush()
        before = {name: await meter.balance(name) for name in NAMES}
        assert before[NAMES[1]].free_used > 0

        told = []
        fund = meter.fund

        async def noted(view):
            told.append(view.account)
            await fund(view)

        monkeypatch.setattr(meter, "fund", noted)
        await metering.catch_up()
        assert told == []

        def account(number):
            return keys.account(keys.shard_of(NAMES[number], shards), NAMES[number])

        await client.hset(account(0), mapping={"version": 1, "credit": 0})
        await client.hset(account(1), mapping={"spent": 0})
        await client.hset(account(2), mapping={"free_used": 0, "free_month": periods.of(time.time_ns() // 1_000_000)})
        await client.hdel(account(3), "free_used", "free_month")
        await client.hset(account(8), mapping={"version": 0, "funded": 0})
        await client.delete(account(9))
        await metering.catch_up()
        assert sorted(told) == [NAMES[number] for number in (0, 1, 2, 3, 8, 9)]
        assert {name: await meter.balance(name) for name in NAMES} == before


async def test_what_the_meter_knows_better_is_left_to_it(any_books, monkeypatch):
    """Charges that are not drained yet are in the meter alone."""
    any_books.identities.add_customer("acme", "Acme")
    async with open_metering(any_books) as metering:
        await funding.open_account(any_books, metering.meter, "acme")
        await funding.credit(any_books, metering.meter, "acme", 10**12, "opening")
        await used(any_books, metering, "acme")
        monkeypatch.setattr(metering.meter, "fund", None)  # it would fail
        await metering.catch_up()
        assert (await metering.meter.balance("acme")).spent > 0


async def test_a_customer_whose_account_was_never_opened_has_one_when_it_is_asked_for(any_books):
    """Redis went away between the registration and the account: the list of all customers failed from then on."""
    async with open_metering(any_books) as metering:
        for name in ("shown", "listed", "audited"):
            any_books.identities.add_customer(name, name)
        shown = await customers.show(any_books, metering.meter, "shown")
        assert shown["available"] == any_books.currency.amount(0)
        assert await funding.balance_of(any_books, metering.meter, "listed") == Balance(0, 0, 0)
        assert [check for check in await audit(any_books, metering) if not check["ok"]] == []
