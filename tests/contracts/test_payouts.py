"""Payouts on both databases: once by reference, never more than is owed, one end each, whoever acts at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from metering import ledger
from metering.ledger import Transfer
from metering.money import MoneyError
from serving.money import payouts
from serving.money.booking import BookingError, Conflict, NotCovered, ReferenceUsed, Unknown
from tests.records import MOMENT_MS

OWED = 1_000


@pytest.fixture
def paying(any_books):
    """Books in which mary is owed 1,000 units, and bo nothing."""
    for name in ("mary", "bo"):
        any_books.catalogue.add_contributor(name, name.title())
    owe(any_books, "mary", OWED)
    return any_books


def owe(books, name: str, amount: int) -> None:
    transfer = Transfer(f"owe/{name}/{amount}", MOMENT_MS, "bank", ledger.contributor(name), amount, "royalty", "r")
    with books.engine.begin() as connection:
        ledger.post(connection, [transfer])


def balances(books) -> dict[str, int]:
    with books.engine.connect() as connection:
        return {account: units for account, units in ledger.balances(connection).items() if units}


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Do all of it at the same moment; gives results and refusals."""
    barrier = threading.Barrier(len(actions))

    def act(action: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return action()
        except BookingError as error:
            return error

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(act, actions))


def test_a_payout_goes_through_transit_to_the_bank(paying):
    started = payouts.start(paying, "mary", 400, "wire-1")
    assert (started.state, started.amount, started.ended_ms) == ("started", 400, None)
    assert balances(paying) == {"bank": -1_000, "contributor:mary": 600, "payouts": 400}
    settled = payouts.settle(paying, "wire-1")
    assert (settled.state, settled.reason) == ("settled", None)
    assert balances(paying) == {"bank": -600, "contributor:mary": 600}
    rest = payouts.start(paying, "mary", None, "wire-2")
    assert rest.amount == 600
    cancelled = payouts.cancel(paying, "wire-2", "the account is closed")
    assert (cancelled.state, cancelled.reason) == ("cancelled", "the account is closed")
    assert balances(paying) == {"bank": -600, "contributor:mary": 600}
    assert payouts.start(paying, "mary", None, "wire-3").amount == 600


def test_every_step_counts_once_by_its_reference(paying):
    first = payouts.start(paying, "mary", None, "wire-1")
    assert payouts.start(paying, "mary", None, "wire-1") == first
    assert payouts.start(paying, "mary", OWED, "wire-1") == first
    settled = payouts.settle(paying, "wire-1")
    assert payouts.settle(paying, "wire-1") == settled
    assert payouts.start(paying, "mary", None, "wire-1") == settled, "and says how it stands"
    assert balances(paying) == {}


def test_what_is_no_payout_is_refused_and_moves_nothing(paying):
    payouts.start(paying, "mary", 400, "wire-1")
    before = balances(paying)
    for action, kind, says in (
        (lambda: payouts.start(paying, "mary", 601, "wire-2"), NotCovered, r"contributor:mary has only 0\.0000006"),
        (lambda: payouts.start(paying, "bo", None, "wire-2"), NotCovered, "bo is owed nothing"),
        (lambda: payouts.start(paying, "nobody", None, "wire-2"), Unknown, "no contributor nobody"),
        (lambda: payouts.start(paying, "mary", 399, "wire-1"), ReferenceUsed, "used for something else"),
        (lambda: payouts.start(paying, "bo", 400, "wire-1"), ReferenceUsed, "used for something else"),
        (lambda: payouts.start(paying, "mary", 1, " "), BookingError, "a reference of 1 to 200"),
        (lambda: payouts.settle(paying, "wire-2"), Unknown, "no payout wire-2"),
        (lambda: payouts.cancel(paying, "wire-2", "why"), Unknown, "no payout wire-2"),
        (lambda: payouts.cancel(paying, "wire-1", ""), BookingError, "a reason of 1 to 500"),
        (lambda: payouts.listing(paying.engine, after="wire-2"), Unknown, "no payout wire-2"),
    ):
        with pytest.raises(kind, match=says):
            action()
        assert balances(paying) == before


def test_an_end_is_for_ever(paying):
    payouts.start(paying, "mary", 400, "a")
    payouts.start(paying, "mary", 400, "b")
    payouts.settle(paying, "a")
    payouts.cancel(paying, "b", "why")
    with pytest.raises(Conflict, match="payout a is settled already"):
        payouts.cancel(paying, "a", "why")
    with pytest.raises(Conflict, match="payout b is cancelled already"):
        payouts.settle(paying, "b")
    assert payouts.cancel(paying, "b", "another reason").reason == "why"


def test_the_least_payout_is_a_setting(paying):
    for least, amount, taken in (("0.0000005", 499, False), ("0.0000005", 500, True), ("0.000001", None, False)):
        books = replace(paying, settings=paying.settings.model_copy(update={"payout_minimum": least}))
        if taken:
            assert payouts.start(books, "mary", amount, "wire").amount == amount
            assert payouts.start(books, "mary", None, "wire").amount == amount, "what is started stays started"
        else:
            with pytest.raises(NotCovered, match="below the least payout"):
                payouts.start(books, "mary", amount, f"wire-{amount}")
    books = replace(paying, settings=paying.settings.model_copy(update={"payout_minimum": "ten"}))
    with pytest.raises(MoneyError):
        payouts.start(books, "mary", None, "wire-3")


def test_many_operators_start_what_is_owed_once(paying):
    found = at_once(*[partial(payouts.start, paying, "mary", None, f"wire-{n}") for n in range(6)])
    assert [each.amount for each in found if isinstance(each, payouts.Payout)] == [OWED]
    assert sum(isinstance(each, NotCovered) for each in found) == 5
    assert balances(paying) == {"bank": -OWED, "payouts": OWED}


@pytest.mark.parametrize("amount", [400, None])
def test_many_operators_with_one_reference_start_one_payout(paying, amount):
    found = at_once(*[partial(payouts.start, paying, "mary", amount, "wire")] * 6)
    assert all(each == found[0] for each in found)
    assert payouts.listing(paying.engine) == [found[0]]
    assert found[0].amount == (amount or OWED)


def test_of_a_settlement_and_a_cancellation_at_once_one_counts(paying):
    for n in range(8):
        reference = f"wire-{n}"
        payouts.start(paying, "mary", 100, reference)
        ends = [partial(payouts.settle, paying, reference), partial(payouts.cancel, paying, reference, "why")]
        found = at_once(*ends, *ends)
        (state,) = {each.state for each in found if isinstance(each, payouts.Payout)}
        assert sum(isinstance(each, Conflict) for each in found) == 2
        assert payouts.listing(paying.engine, limit=1)[0].state == state
    settled = len(payouts.listing(paying.engine, state="settled"))
    expected = {"bank": -OWED + 100 * settled, "contributor:mary": OWED - 100 * settled}
    assert balances(paying) == {account: units for account, units in expected.items() if units}


def test_payouts_are_listed_newest_first_a_page_at_a_time(paying):
    owe(paying, "bo", 500)
    names = [f"wire/{n}" for n in range(7)]
    for n, name in enumerate(names):
        payouts.start(paying, "bo" if n % 3 == 0 else "mary", 10, name)
    payouts.settle(paying, names[1])
    payouts.cancel(paying, names[2], "why")
    every = payouts.listing(paying.engine)
    assert sorted(each.reference for each in every) == names
    assert [each.started_ms for each in every] == sorted((each.started_ms for each in every), reverse=True)
    paged, after = [], None
    while page := payouts.listing(paying.engine, after=after, limit=2):
        paged += page
        after = page[-1].reference
    assert paged == every
    assert [each.reference for each in payouts.listing(paying.engine, state="settled")] == [names[1]]
    assert [each.reference for each in payouts.listing(paying.engine, state="cancelled")] == [names[2]]
    assert len(payouts.listing(paying.engine, state="started")) == 5
    assert {each.contributor for each in payouts.listing(paying.engine, contributor="bo")} == {"bo"}


def test_a_contributor_sees_own_payouts_and_corrections(paying):
    owe(paying, "bo", 500)
    for n, name in enumerate(("mary", "bo", "mary", "mary")):
        payouts.start(paying, name, 100 + n, f"wire-{n}")
    payouts.settle(paying, "wire-0")
    payouts.cancel(paying, "wire-2", "the account is closed")
    correction = Transfer("correction/c", 5, "contributor:mary", "bank", 7, ledger.CORRECTION, "c", "paid twice")
    with paying.engine.begin() as connection:
        ledger.post(connection, [correction])
    found = payouts.account(paying, "mary", None, 100)
    units = {name: paying.currency.parse(found[name]["amount"]) for name in ("owed", "in_transit", "paid")}
    assert units == {"owed": OWED - 100 - 103 - 7, "in_transit": 103, "paid": 100}
    assert {each["reference"] for each in found["data"]} == {"wire-0", "wire-2", "wire-3"}
    assert [(each["amount"]["amount"], each["reason"]) for each in found["corrections"]] == [
        ("-0.000000007", "paid twice")
    ]
    with pytest.raises(Unknown):
        payouts.account(paying, "mary", "wire-1", 100)
