"""kill -9 of a real process at every step of a payout and of a refund: repeating the command is all there is to do."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from metering import ledger, withdrawals
from metering.ledger import Transfer
from serving.assembly import open_metering
from serving.money import funding, payouts
from serving.upkeep.audit import audit
from tests.faults.accident import Accident, killed
from tests.records import MOMENT_MS
from tests.servers import command, run

OWED = 10**10
POINTS = {
    "before the transfer": Accident("metering.ledger:post", "before", "kill"),
    "transfer inserted": Accident("metering.ledger:_add_to_balances", "before", "kill"),
    "balances moved": Accident("metering.ledger:_add_to_balances", "after", "kill"),
    "about to commit": Accident("sqlalchemy.engine.base:Connection._commit_impl", "before", "kill"),
    "committed": Accident("serving.money.payouts:Payout.to_json", "before", "kill"),
    "row written": Accident("metering.withdrawals:_begin", "after", "kill"),
    "reserved": Accident("metering.redis.meter:RedisMeter.reserve", "after", "kill"),
    "refund inserted": Accident("metering.ledger:post", "after", "kill"),
    "refund committed": Accident("metering.withdrawals:_post", "after", "kill"),
    "meter told": Accident("metering.redis.meter:RedisMeter.unreserve", "before", "kill"),
    "reserve given up": Accident("metering.redis.meter:RedisMeter.unreserve", "after", "kill"),
}


def balances(books) -> dict[str, int]:
    with books.engine.connect() as connection:
        return {account: units for account, units in ledger.balances(connection).items() if units}


def faults(books) -> list[str]:
    async def run() -> list[str]:
        async with open_metering(books) as metering:
            return [check["name"] for check in await audit(books, metering) if not check["ok"]]

    return asyncio.run(run())


@pytest.fixture
def owing(books):
    """Books in which mary is owed ten dollars."""
    books.catalogue.add_contributor("mary", "Mary")
    owed = Transfer("owed", MOMENT_MS, "bank", ledger.contributor("mary"), OWED, ledger.CORRECTION, "r", "a gift")
    with books.engine.begin() as connection:
        ledger.post(connection, [owed])
    return books


START = ("payout", "start", "mary", "--amount", "4", "--reference", "wire")
STEPS = {
    "start": (START, {"bank": -OWED, "contributor:mary": OWED * 6 // 10, "payouts": OWED * 4 // 10}),
    "settle": (("payout", "settle", "wire"), {"bank": -OWED * 6 // 10, "contributor:mary": OWED * 6 // 10}),
    "cancel": (("payout", "cancel", "wire", "--reason", "why"), {"bank": -OWED, "contributor:mary": OWED}),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "point", ["before the transfer", "transfer inserted", "balances moved", "about to commit", "committed"]
)
def test_a_payout_that_is_killed_is_as_it_was_or_done_and_repeating_it_does_it_once(owing, step, point):
    arguments, after = STEPS[step]
    if step != "start":
        payouts.start(owing, "mary", OWED * 4 // 10, "wire")
    before = balances(owing)
    killed(owing.directory.path, {}, POINTS[point], *arguments)
    assert balances(owing) == (after if point == "committed" else before)
    with owing.engine.connect() as connection:
        assert ledger.drifted(connection) == []
    done = run(owing.directory.path, *arguments)
    assert done.returncode == 0, done.stderr
    assert balances(owing) == after
    assert faults(owing) == []


def test_operators_in_several_processes_pay_what_is_owed_once(owing):
    starts = [command(owing.directory.path, "payout", "start", "mary", "--reference", f"wire-{n}") for n in range(4)]
    running = [subprocess.Popen(each, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for each in starts]
    ended = [(each.communicate(timeout=120)[1], each.returncode) for each in running]
    assert sorted(status for _, status in ended) == [0, 1, 1, 1]
    assert all("owed nothing" in said or "has only" in said for said, status in ended if status)
    assert balances(owing) == {"bank": -OWED, "payouts": OWED}
    assert faults(owing) == []


def test_a_settlement_and_a_cancellation_in_two_processes_leave_one_end(owing):
    payouts.start(owing, "mary", None, "wire")
    ends = [command(owing.directory.path, *STEPS[step][0]) for step in ("settle", "cancel")]
    running = [subprocess.Popen(each, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for each in ends]
    ended = [(each.communicate(timeout=120)[1], each.returncode) for each in running]
    assert sorted(status for _, status in ended) == [0, 1]
    (said,) = (said for said, status in ended if status)
    assert "already" in said
    assert balances(owing) in ({}, {"bank": -OWED, "contributor:mary": OWED})
    assert faults(owing) == []


@pytest.mark.parametrize(
    "point", ["row written", "reserved", "refund inserted", "refund committed", "meter told", "reserve given up"]
)
def test_a_refund_that_is_killed_is_not_made_or_made_once(books, monkeypatch, point):
    """And until it is known which, no query can spend the money."""
    books.identities.add_customer("acme", "Acme")

    async def fund() -> None:
        async with open_metering(books) as metering:
            await funding.open_account(books, metering.meter, "acme")
            await funding.credit(books, metering.meter, "acme", OWED, "opening")

    async def available() -> int:
        async with open_metering(books) as metering:
            return (await metering.meter.balance("acme")).available

    arguments = ("customer", "refund", "acme", "7", "--reference", "r", "--reason", "why")
    asyncio.run(fund())
    killed(books.directory.path, {}, POINTS[point], *arguments)
    made = point in ("refund committed", "meter told", "reserve given up")
    assert balances(books)["customer:acme"] == (OWED * 3 // 10 if made else OWED)
    assert asyncio.run(available()) == (OWED if point == "row written" else OWED * 3 // 10)
    assert faults(books) == []
    with monkeypatch.context() as patch:
        patch.setattr(withdrawals, "EXPIRY_MS", -1)
        assert asyncio.run(available()) == (OWED * 3 // 10 if made else OWED)
    done = run(books.directory.path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "3.000000 USD" in done.stdout
    assert asyncio.run(available()) == balances(books)["customer:acme"] == OWED * 3 // 10
    assert faults(books) == []
