"""The pace of calls that are not paid."""

from __future__ import annotations

import asyncio
import time

import pytest

from serving.api.errors import ApiError
from serving.api.pace import AT_ONCE, WAIT_S_MAX, Pace

pytestmark = pytest.mark.anyio

PAID, FAILED, UNPAID = -1, 0, 1


async def call(unpaid: Pace, customer: str, how: int) -> bool:
    """A call that ends so; whether it waited."""
    waited = await unpaid.turn(customer)
    unpaid.ended(customer, how, counted=waited)
    return waited


async def many(unpaid: Pace, customer: str, how: int, count: int) -> int:
    """As many of them, one after the other; how many waited."""
    return sum([await call(unpaid, customer, how) for _ in range(count)])


async def test_nobody_waits_whose_calls_are_paid_or_fail_by_our_fault():
    unpaid = Pace(0.01, "calls")
    assert await many(unpaid, "ann", PAID, 10 * AT_ONCE) == 0
    assert await many(unpaid, "ann", FAILED, 10 * AT_ONCE) == 0


async def test_a_call_that_is_paid_makes_up_for_one_that_is_not():
    unpaid = Pace(0.01, "calls")
    for _ in range(5 * AT_ONCE):
        assert not await call(unpaid, "ann", UNPAID)
        assert not await call(unpaid, "ann", PAID)


async def test_what_was_paid_is_not_saved_for_later():
    unpaid = Pace(2, "calls")
    await many(unpaid, "ann", PAID, 10 * AT_ONCE)
    await many(unpaid, "ann", UNPAID, AT_ONCE)
    assert await many(unpaid, "ann", UNPAID, 3) > 0


async def test_so_many_go_through_at_once_and_then_at_the_pace():
    unpaid, began = Pace(10, "calls"), time.monotonic()
    assert await many(unpaid, "ann", UNPAID, AT_ONCE) == 0
    await many(unpaid, "ann", UNPAID, 10)
    assert time.monotonic() - began >= 0.9


async def test_those_who_wait_begin_one_after_the_other():
    unpaid, began = Pace(10, "calls"), time.monotonic()
    await many(unpaid, "ann", UNPAID, AT_ONCE + 1)
    await asyncio.gather(*[call(unpaid, "ann", UNPAID) for _ in range(10)])
    assert time.monotonic() - began >= 0.9


async def test_of_those_who_waited_and_paid_none_is_counted():
    unpaid = Pace(1_000, "calls")
    await many(unpaid, "ann", UNPAID, AT_ONCE + 50)
    await asyncio.gather(*[call(unpaid, "ann", PAID) for _ in range(10 * AT_ONCE)])
    assert not await unpaid.turn("ann")


async def test_one_callers_pace_is_nobody_elses():
    unpaid = Pace(0.1, "calls")
    await many(unpaid, "ann", UNPAID, AT_ONCE + 1)
    assert await many(unpaid, "bob", UNPAID, AT_ONCE) == 0


async def test_of_too_many_that_wait_the_next_is_refused_and_told_when_to_come():
    unpaid = Pace(1, "calls")
    for _ in range(AT_ONCE + 1):
        unpaid.ended("ann", UNPAID, counted=False)
    waiting = [asyncio.create_task(unpaid.turn("ann")) for _ in range(round(WAIT_S_MAX) - 1)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    refused = [asyncio.create_task(unpaid.turn("ann")) for _ in range(3)]
    with pytest.raises(ApiError) as caught:
        await refused[-1]
    assert (caught.value.status, caught.value.headers) == (429, {"retry-after": "15"})
    for each in (*waiting, *refused):
        each.cancel()
    await asyncio.gather(*waiting, *refused, return_exceptions=True)


async def test_without_a_pace_nobody_waits():
    assert await many(Pace(0, "calls"), "ann", UNPAID, 10 * AT_ONCE) == 0
