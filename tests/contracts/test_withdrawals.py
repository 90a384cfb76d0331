"""Money taken out of a prepayment while queries spend it: never below zero, whoever dies in between."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa

from metering import ledger, withdrawals
from metering.ledger import Transfer
from metering.meter import Hold, HoldExpired, InsufficientFunds, MeterUnavailable, Request
from metering.pricing import Usage
from metering.withdrawals import WithdrawalExpired, recover, withdraw
from serving.assembly import open_metering
from serving.books import Metering
from serving.money import corrections, funding
from serving.money.booking import BookingError, Conflict, NotCovered, ReferenceUsed, Unknown
from serving.rules.rulebook import EXTRACTIVE
from serving.upkeep.audit import audit
from tests.records import a_record

pytestmark = pytest.mark.anyio
NUMBERS = itertools.count()


class Dies(BaseException):
    """The process ends here: nothing is caught, nothing is tidied up."""


@asynccontextmanager
async def opened(books, funds: int = 1_000):
    """The metering of the books, with a customer that has money."""
    books.identities.add_customer("acme", "Acme")
    async with open_metering(books) as metering:
        await funding.open_account(books, metering.meter, "acme")
        await funding.credit(books, metering.meter, "acme", funds, "opening")
        yield metering


def back(amount: int, name: str = "r") -> Transfer:
    return Transfer(name, 1, ledger.customer("acme"), ledger.BANK, amount, ledger.REFUND, name, "why")


async def held(metering: Metering) -> tuple[int, int, int]:
    found = await metering.meter.balance("acme")
    return found.funded, found.spent, found.held


def owed(books) -> int:
    with books.engine.connect() as connection:
        return ledger.balance(connection, ledger.customer("acme"))


def rows(books) -> int:
    with books.engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(withdrawals.withdrawals)).scalar_one())


def expire(monkeypatch) -> None:
    """The next to look finds that every withdrawal in progress took too long."""
    monkeypatch.setattr(withdrawals, "EXPIRY_MS", -1)


async def test_a_withdrawal_leaves_what_is_spent_and_held(any_books):
    async with opened(any_books) as metering:
        await metering.meter.authorize(Request("h", "acme", "key", 400))
        with pytest.raises(InsufficientFunds) as caught:
            await withdraw(any_books.engine, metering.meter, "acme", back(601))
        assert caught.value.available == 600
        assert await held(metering) == (1_000, 0, 400)
        await withdraw(any_books.engine, metering.meter, "acme", back(600))
        assert await held(metering) == (400, 0, 400)
        assert (owed(any_books), rows(any_books), await metering.meter.reserves()) == (400, 0, [])


STEPS = ("nothing", "row", "aside", "posted", "told")


@pytest.mark.parametrize("step", STEPS)
async def test_a_process_that_dies_leaves_nothing_that_can_be_spent_twice(any_books, monkeypatch, step):
    """At every step what a query can have is at most what both the meter and the ledger will agree on."""
    async with opened(any_books) as metering:
        meter, engine = metering.meter, any_books.engine
        name = "dead"
        if step != "nothing":
            withdrawals._begin(engine, name)
        if step in STEPS[2:]:
            await meter.reserve("acme", name, 700)
            await meter.reserve("acme", name, 700)
        if step in STEPS[3:]:
            withdrawals._post(engine, name, back(700))
        if step == "told":
            await funding.open_account(any_books, meter, "acme")
        is_posted = step in STEPS[3:]
        available = (await meter.balance("acme")).available
        assert available <= min(owed(any_books), 1_000)
        assert available <= (300 if step in STEPS[2:] else 1_000)
        await recover(engine, meter)
        if step == "aside":
            assert await held(metering) == (1_000, 0, 700), "it may still be under way"
        expire(monkeypatch)
        await recover(engine, meter)
        assert await held(metering) == ((300 if is_posted else 1_000), 0, 0)
        assert owed(any_books) == (300 if is_posted else 1_000)
        assert await meter.reserves() == []


async def test_a_process_that_wakes_up_too_late_posts_nothing(any_books, monkeypatch):
    async with opened(any_books) as metering:
        real = metering.meter.reserve

        async def sleepy(*arguments) -> None:
            await real(*arguments)
            with monkeypatch.context() as patch:
                expire(patch)
                await recover(any_books.engine, metering.meter)
            await metering.meter.authorize(Request("h", "acme", "key", 1_000))

        monkeypatch.setattr(metering.meter, "reserve", sleepy)
        with pytest.raises(WithdrawalExpired):
            await withdraw(any_books.engine, metering.meter, "acme", back(700))
        assert await held(metering) == (1_000, 0, 1_000)
        assert owed(any_books) == 1_000


async def test_a_withdrawal_that_the_meter_does_not_hear_of_is_made_good_later(any_books, monkeypatch):
    """Redis goes away between the two: the money stays reserved until it is back."""
    async with opened(any_books) as metering:

        async def gone(*_: object) -> None:
            raise MeterUnavailable("Redis does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(metering.meter, "fund", gone)
            with pytest.raises(MeterUnavailable):
                await funding.refund(any_books, metering.meter, "acme", 700, "r", "why")
        assert await held(metering) == (1_000, 0, 700)
        assert owed(any_books) == 300
        await metering.catch_up()
        assert await held(metering) == (300, 0, 0)
        again = await funding.refund(any_books, metering.meter, "acme", 700, "r", "why")
        assert (again.funded, owed(any_books)) == (300, 300)


async def test_queries_and_refunds_at_once_never_take_an_account_below_zero(any_books):
    """Forty queries of 60 and forty refunds of 40 on an account of 1,000."""
    price = any_books.rulebook.prices.price(EXTRACTIVE)
    usage = Usage(9, 40, 2)
    charge, cost = price.charge(usage), price.cost(usage)
    platform, royalty = any_books.rulebook.policy.divide(charge, cost)
    outcomes: list[str] = []

    async def ask(meter, number: int) -> None:
        record = a_record(
            id=f"q{number}", charge=charge, cost=cost, platform=platform, royalty=royalty,
            input_tokens=9, output_tokens=40, passages=2,
        )  # fmt: skip
        try:
            hold = await meter.authorize(Request(record.id, "acme", "key", charge * 3))
            await asyncio.sleep(0)
            assert isinstance(hold, Hold)
            await meter.capture(hold, record)
            outcomes.append("charged")
        except (InsufficientFunds, HoldExpired):
            outcomes.append("refused")

    async def give_back(metering, number: int) -> None:
        try:
            await funding.refund(any_books, metering.meter, "acme", charge * 2, f"r{number}", "why")
            outcomes.append("refunded")
        except NotCovered:
            outcomes.append("kept")

    async with opened(any_books, charge * 30) as metering:
        asks = [ask(metering.meter, number) for number in range(40)]
        gives = [give_back(metering, number) for number in range(40)]
        await asyncio.gather(*[each for pair in zip(asks, gives, strict=True) for each in pair])
        await metering.drain.flush()
        left = charge * 30 - charge * outcomes.count("charged") - charge * 2 * outcomes.count("refunded")
        assert await held(metering) == (
            charge * (30 - 2 * outcomes.count("refunded")),
            charge * outcomes.count("charged"),
            0,
        )
        assert owed(any_books) == left >= 0
        assert outcomes.count("refused") + outcomes.count("kept") > 0
        assert rows(any_books) == 0
        checks = {check["name"]: check for check in await audit(any_books, metering)}
    assert [name for name, check in checks.items() if not check["ok"]] == []


class TestCorrections:
    async def correct(self, books, metering, **given):
        defaults = {"debit": None, "credit": None, "units": None, "reference": "c", "reason": "why"}
        return await corrections.correct(books, metering.meter, **(defaults | given))

    async def test_a_correction_reaches_the_meter(self, any_books):
        async with opened(any_books) as metering:
            for _ in range(2):
                await self.correct(any_books, metering, debit="bank", credit="customer:acme", units=50, reference="c1")
                await self.correct(any_books, metering, debit="customer:acme", credit="bank", units=70, reference="c2")
            assert await held(metering) == (980, 0, 0)
            assert owed(any_books) == 980
            with pytest.raises(ReferenceUsed):
                await self.correct(any_books, metering, debit="customer:acme", credit="bank", units=71, reference="c2")
            with pytest.raises(ReferenceUsed):
                await self.correct(any_books, metering, debit="bank", credit="customer:acme", units=1, reference="c1")

    async def test_a_correction_moves_money_between_customers(self, any_books):
        any_books.identities.add_customer("beta", "Beta")
        async with opened(any_books) as metering:
            await funding.open_account(any_books, metering.meter, "beta")
            await self.correct(any_books, metering, debit="customer:acme", credit="customer:beta", units=300)
            assert (await metering.meter.balance("beta")).available == 300
            assert await held(metering) == (700, 0, 0)

    async def test_what_is_taken_back_is_taken_back_once(self, any_books):
        async with opened(any_books) as metering:
            await funding.credit(any_books, metering.meter, "acme", 500, "twice")
            first = await self.correct(any_books, metering, of="funding/acme/twice", units=200, reference="c1")
            assert (first.debit, first.credit, first.amount) == ("customer:acme", "bank", 200)
            with pytest.raises(NotCovered, match=r"only 0\.0000003 can be taken back"):
                await self.correct(any_books, metering, of="funding/acme/twice", reference="c2")
            await self.correct(any_books, metering, of="funding/acme/twice", units=300, reference="c2")
            assert await held(metering) == (1_000, 0, 0)
            again = await self.correct(any_books, metering, of="correction/c1", reference="c3")
            assert (again.credit, again.amount) == ("customer:acme", 200)
            assert owed(any_books) == 1_200

    @pytest.mark.parametrize(
        ("given", "kind", "says"),
        [
            ({"debit": "bank", "credit": "customer:nobody", "units": 1}, Unknown, "no account customer:nobody"),
            ({"debit": "bank", "credit": "contributor:nobody", "units": 1}, Unknown, "no account"),
            ({"debit": "bank", "credit": "operator:platfrom", "units": 1}, Unknown, "no account operator:platfrom"),
            ({"debit": "bank", "credit": "pool:2026-01", "units": 1}, BookingError, "moved by periods alone"),
            ({"debit": "payouts", "credit": "bank", "units": 1}, BookingError, "moved by payouts alone"),
            ({"debit": "bank", "credit": "bank", "units": 1}, BookingError, "same account"),
            ({"debit": "bank", "credit": "customer:acme"}, BookingError, "amount"),
            ({"debit": "bank", "units": 1}, BookingError, "needed"),
            ({"debit": "operator:platform", "credit": "customer:acme", "units": 1}, NotCovered, "has only 0"),
            ({"debit": "customer:acme", "credit": "bank", "units": 1_001}, NotCovered, "neither spent nor held"),
            ({"of": "nothing"}, Unknown, "no transfer nothing"),
            ({"of": "funding/acme/opening", "debit": "bank"}, BookingError, "debits customer:acme"),
            ({"of": "funding/acme/opening", "reason": " "}, BookingError, "a reason of 1 to 500"),
            ({"of": "funding/acme/opening", "reason": "x" * 501}, BookingError, "a reason of 1 to 500"),
            ({"of": "funding/acme/opening", "reference": ""}, BookingError, "a reference of 1 to 200"),
            ({"of": "funding/acme/opening", "reference": "\N{MUSICAL SYMBOL G CLEF}" * 199}, BookingError, "too long"),
        ],
    )
    async def test_what_is_no_correction_is_refused_and_moves_nothing(self, books, given, kind, says):
        async with opened(books) as metering:
            with pytest.raises(kind, match=says):
                await self.correct(books, metering, **given)
            assert await held(metering) == (1_000, 0, 0)
            assert owed(books) == 1_000

    async def test_a_refund_is_of_a_customer_and_of_what_is_left(self, books):
        async with opened(books) as metering:
            for arguments, kind in (
                (("nobody", 1, "r", "why"), Unknown),
                (("acme", 1_001, "r", "why"), NotCovered),
                (("acme", 1, "", "why"), BookingError),
                (("acme", 1, "r", ""), BookingError),
            ):
                with pytest.raises(kind):
                    await funding.refund(books, metering.meter, *arguments)
            await funding.refund(books, metering.meter, "acme", 1_000, "r", "why")
            with pytest.raises(Conflict):
                await funding.refund(books, metering.meter, "acme", 999, "r", "why")
            assert owed(books) == 0
