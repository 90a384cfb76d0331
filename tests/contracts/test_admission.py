"""Admission on a real Redis: limits under concurrency and through time, and what a meter without its books is told."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from metering import periods
from metering.credit import funding_view, limit_max, set_limit
from metering.ledger import LedgerError
from metering.meter import (
    Funding,
    Hold,
    InsufficientFunds,
    KeyRevoked,
    KeySpending,
    Limits,
    MeterError,
    RateLimited,
    Request,
    SpendingCapReached,
)
from metering.pricing import ModelPrice, PriceBook
from metering.redis.connection import connect
from metering.redis.meter import RedisMeter
from metering.usage_index import _count_usage
from metering.usage_log import parse
from serving.upkeep.audit import Check, _Free
from tests.records import MOMENT_MS, a_record

pytestmark = pytest.mark.anyio
DAY_MS = 24 * 3600 * 1000


@pytest.fixture
async def meter(redis_url: str) -> AsyncIterator[RedisMeter]:
    client = connect(redis_url)
    found = RedisMeter(
        client, deployment="d", shards=2, hold_ttl_ms=60_000, replay_ttl_ms=60_000, retry_ttl_ms=60_000, process="p"
    )
    await found.claim(fresh=True)
    await found.fund(Funding("acme", 1, 100_000, 0))
    yield found
    await client.aclose()


async def outcome(meter: RedisMeter, request: Request) -> Hold | type[MeterError]:
    try:
        found = await meter.authorize(request)
    except MeterError as error:
        return type(error)
    assert isinstance(found, Hold)
    return found


async def race(meter: RedisMeter, count: int, **given: object) -> list[Hold | type[MeterError]]:
    requests = [Request(f"hold-{i}", "acme", "key", 1_000, **given) for i in range(count)]  # type: ignore[arg-type] # by name
    return list(await asyncio.gather(*(outcome(meter, request) for request in requests)))


def refusals(found: list[Hold | type[MeterError]]) -> Counter[type[MeterError]]:
    return Counter(each for each in found if not isinstance(each, Hold))


@pytest.mark.parametrize(
    ("limits", "error", "admitted"),
    [
        (Limits(), InsufficientFunds, 100),
        (Limits(requests_per_minute=5), RateLimited, 5),
        (Limits(tokens_per_minute=50), RateLimited, 5),
        (Limits(concurrent_requests=7), RateLimited, 7),
        (Limits(day_cap=12_999), SpendingCapReached, 12),
        (Limits(month_cap=13_000), SpendingCapReached, 13),
    ],
)
async def test_a_thousand_at_once_are_admitted_up_to_the_limit(meter, limits, error, admitted):
    found = await race(meter, 1_000, limits=limits, tokens=10)
    assert refusals(found) == {error: 1_000 - admitted}
    assert (await meter.balance("acme")).held == admitted * 1_000


async def test_what_is_free_is_given_once_whatever_the_concurrency(meter):
    found = await race(meter, 300, free_per_month=50_500)
    assert sum(each.free for each in found if isinstance(each, Hold)) == 50_500
    assert refusals(found) == {InsufficientFunds: 150}
    balance = await meter.balance("acme")
    assert (balance.held, balance.free_held, balance.available) == (99_500, 50_500, 500)


async def test_a_full_rate_lets_through_again_after_what_it_says(meter):
    limits = Limits(requests_per_minute=120, tokens_per_minute=60_000)
    began = time.monotonic()
    first = await outcome(meter, Request("first", "acme", "key", 10, tokens=59_900, limits=limits))
    assert isinstance(first, Hold)
    with pytest.raises(RateLimited) as refused:
        await meter.authorize(Request("second", "acme", "key", 10, tokens=1_600, limits=limits))
    refused_at = time.monotonic()
    assert refused.value.limit == "tokens"
    assert 1.5 - (refused_at - began) - 0.01 <= refused.value.retry_after_s <= 1.5
    assert refused.value.quota.requests_left == 119
    while await outcome(meter, Request("third", "acme", "key", 10, tokens=1_600, limits=limits)) is RateLimited:
        assert time.monotonic() - refused_at < 20
        await asyncio.sleep(0.02)
    assert time.monotonic() - began >= 1.49


async def test_a_place_is_given_back_by_capture_void_and_an_expired_hold(meter, redis_url):
    limits = Limits(concurrent_requests=3)
    holds = [each for each in await race(meter, 3, limits=limits) if isinstance(each, Hold)]
    assert await outcome(meter, Request("more", "acme", "key", 1, limits=limits)) is RateLimited
    await meter.void(holds[0])
    await meter.capture(holds[1], a_record(id="hold-1", account="acme", key="key", charge=10))
    client = connect(redis_url)
    await client.zadd("{s00}:expiry:acme", {"hold-2": 1}, xx=True)
    await client.zadd("{s01}:expiry:acme", {"hold-2": 1}, xx=True)
    await client.aclose()
    again = [await outcome(meter, Request(f"again-{i}", "acme", "key", 1, limits=limits)) for i in range(4)]
    assert refusals(again) == {RateLimited: 1}


async def test_a_cap_counts_from_zero_on_the_next_day_and_in_the_next_month(meter):
    limits = Limits(day_cap=1_500, month_cap=2_500)
    found = []
    asked = ((0, 1_000), (0, 1_000), (1, 1_000), (1, 500), (2, 1_000), (17, 1_000), (18, 1_000), (19, 1_000))
    for day, charge in asked:  # the first of the next month is 17 days on
        at_ms = MOMENT_MS + day * DAY_MS
        name = f"hold-{len(found)}"
        hold = await outcome(meter, Request(name, "acme", "key", charge, limits=limits, at_ms=at_ms))
        found.append(hold if not isinstance(hold, Hold) else "ok")
        if isinstance(hold, Hold):
            record = a_record(id=name, account="acme", key="key", charge=charge, finished_ms=at_ms)
            await meter.capture(hold, record)
    of_the_first, of_the_next = (
        ["ok", SpendingCapReached, "ok", "ok", SpendingCapReached],
        ["ok", "ok", SpendingCapReached],
    )
    assert found == [*of_the_first, *of_the_next]


async def test_a_meter_that_lost_its_books_is_told_what_was_spent_and_what_was_free(meter, redis_url):
    day = periods.day_of(MOMENT_MS)
    view = Funding(
        "acme", 3, 5_000, 1_900, 1_000, day[:7], 400,
        (KeySpending("key", day, 700, 1_900),),
    )  # fmt: skip
    client = connect(redis_url)
    await client.flushall()
    await client.aclose()
    await meter.claim(fresh=True)
    for _ in range(2):
        await meter.fund(view)
    await meter.revoke("acme", "other")

    balance = await meter.balance("acme")
    assert (balance.available, balance.free_left(day[:7], 1_000)) == (4_100, 600)
    for limits, at_ms, ceiling, expected in (
        (Limits(day_cap=1_000), MOMENT_MS, 301, SpendingCapReached),
        (Limits(day_cap=1_000), MOMENT_MS + DAY_MS, 1_001, SpendingCapReached),
        (Limits(month_cap=2_000), MOMENT_MS + DAY_MS, 101, SpendingCapReached),
    ):
        assert await outcome(meter, Request("h", "acme", "key", ceiling, limits=limits, at_ms=at_ms)) is expected
    assert await outcome(meter, Request("h", "acme", "other", 1)) is KeyRevoked
    # What the meter knows better, a late view does not undo.
    assert isinstance(await outcome(meter, Request("h", "acme", "key", 100, at_ms=MOMENT_MS)), Hold)


def test_the_audit_names_an_account_that_was_given_more_than_its_free_amount():
    price = ModelPrice(request=1)
    given = _Free(Check("free"))
    prices = {1: PriceBook(1, {"m": price}, 0, 100), 2: PriceBook(2, {"m": price}, 50, 80)}
    for account, version, free, day in (
        ("fair", 1, 60, 0), ("fair", 2, 40, 0), ("fair", 2, 80, 20), ("greedy", 2, 50, 0), ("greedy", 2, 31, 1),
    ):  # fmt: skip
        finished_ms = MOMENT_MS + day * DAY_MS
        given.add(a_record(account=account, price_version=version, free=free, finished_ms=finished_ms), prices)
    given.compare()
    assert given.check.faults == ["account greedy used 81 of 80 free units in 2026-01"]


class TestTheLedgersView:
    def view(self, engine: sa.Engine) -> Funding:
        with engine.connect() as connection:
            return funding_view(connection, "acme")

    def test_a_credit_limit_is_a_new_version_and_its_history_is_kept(self, engine: sa.Engine):
        for amount, version in ((0, 0), (500, 1), (500, 1), (200, 2), (0, 3)):
            set_limit(engine, "acme", amount, 1)
            found = self.view(engine)
            assert (found.credit_limit, found.version) == (amount, version)
        with engine.connect() as connection:
            assert limit_max(connection, "acme") == 500
            assert limit_max(connection, "other") == 0

    def test_two_limits_at_the_same_moment_are_not_both_taken(self, engine: sa.Engine, monkeypatch):
        set_limit(engine, "acme", 100, 1)
        monkeypatch.setattr("metering.credit._credit_limits", lambda *_: [])
        with pytest.raises(LedgerError, match="same moment"):
            set_limit(engine, "acme", 200, 1)

    def test_it_tells_what_each_key_spent_and_what_was_free(self, engine: sa.Engine):
        spent = (
            ("red", -31, 1_000, 0),  # the month before
            ("red", 0, 100, 40), ("red", 0, 50, 0), ("red", 1, 7, 0), ("blue", 0, 9, 9),
        )  # fmt: skip
        records = [
            a_record(id=f"r{i}", key=key, charge=charge, free=free, finished_ms=MOMENT_MS + day * DAY_MS)
            for i, (key, day, charge, free) in enumerate(spent)
        ]
        with engine.begin() as connection:
            _count_usage(connection, parse([(f"{i + 1}-0", record.encode()) for i, record in enumerate(records)]))
        found = self.view(engine)
        assert (found.month, found.free_used) == ("2026-01", 49)
        assert set(found.keys) == {
            KeySpending("red", "2026-01-16", 7, 117),
            KeySpending("blue", "2026-01-15", 0, 0),
        }
