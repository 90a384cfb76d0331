"""The ledger as a state machine: payments, charges, royalties, payouts and corrections in any order, against a model.

The model is a list of transfers. Whatever was asked, all balances sum to zero, nothing that is owed is below zero,
and the balance of any moment is what replaying the list up to it gives.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from metering import ledger
from metering.credit import funding_view
from metering.ledger import DAY_MS, Overcorrected, Overdrawn, Transfer
from serving.assembly import open_books
from serving.books import Books
from serving.money import payouts
from serving.money.booking import Conflict, NotCovered, ReferenceUsed, Unknown
from serving.settings import Settings
from tests.databases import new_data_dir
from tests.records import MOMENT_MS

EXAMPLES_MAX = 200
"""Every transfer is synced to disk, so a thousand examples would take minutes."""
DAY = MOMENT_MS // DAY_MS * DAY_MS
moments = st.one_of(
    st.integers(DAY - DAY_MS, DAY + 2 * DAY_MS),
    st.sampled_from([DAY - 1, DAY, DAY + 1, DAY + DAY_MS - 1, DAY + DAY_MS]),
)
units = st.integers(1, 1_000)
people = st.sampled_from("abc")
references = st.sampled_from(["p1", "p2", "p3", "p/4"])


class LedgerMachine(RuleBasedStateMachine):
    """Compares every answer and every balance with the model. Each example has accounts of its own."""

    books: Books
    numbers: Iterator[int] = itertools.count()

    @initialize()
    def open(self):
        self.example = next(self.numbers)
        self.posted: list[Transfer] = []
        self.payouts: dict[str, payouts.Payout] = {}

    def customer(self, name: str) -> str:
        return ledger.customer(f"{self.example}-{name}")

    def contributor(self, name: str) -> str:
        return ledger.contributor(f"{self.example}-{name}")

    @property
    def pool(self) -> str:
        return ledger.pool(f"{self.example}")

    def balances(self, at_ms: int | None = None) -> dict[str, int]:
        """What replaying the list gives, without the accounts that every example shares."""
        found: dict[str, int] = defaultdict(int)
        for each in self.posted:
            if at_ms is None or each.at_ms <= at_ms:
                found[each.credit] += each.amount
                found[each.debit] -= each.amount
        return {account: amount for account, amount in found.items() if self.is_mine(account)}

    def is_mine(self, account: str) -> bool:
        return account == self.pool or account.partition(":")[2].startswith(f"{self.example}-")

    def post(self, *batch: Transfer, covered: tuple[str, ...] = ()) -> None:
        with self.books.engine.begin() as connection:
            ledger.post(connection, batch, covered=covered)
        self.posted += batch

    def transfer(self, at_ms: int, debit: str, credit: str, amount: int, kind: str, corrects: str | None = None):
        reason = "why" if kind == ledger.CORRECTION else None
        return Transfer(f"t{next(self.numbers)}", at_ms, debit, credit, amount, kind, "r", reason, corrects)

    @rule(name=people, amount=units, at_ms=moments)
    def pays(self, name, amount, at_ms):
        self.post(self.transfer(at_ms, ledger.BANK, self.customer(name), amount, ledger.FUNDING))

    @rule(name=people, part=st.integers(1, 3), at_ms=moments)
    def is_charged(self, name, part, at_ms):
        amount = self.balances().get(self.customer(name), 0) // part
        thirds = {ledger.COMPUTE: amount // 3, ledger.PLATFORM: amount // 3, self.pool: amount - 2 * (amount // 3)}
        batch = [
            self.transfer(at_ms, self.customer(name), account, share, ledger.CHARGE)
            for account, share in thirds.items()
            if share > 0
        ]
        self.post(*batch)

    @rule(name=people, part=st.integers(1, 3), at_ms=moments)
    def earns(self, name, part, at_ms):
        amount = self.balances().get(self.pool, 0) // part
        if amount > 0:
            self.post(self.transfer(at_ms, self.pool, self.contributor(name), amount, ledger.ROYALTY))

    @rule(name=people, amount=st.none() | units, reference=references)
    def payout_starts(self, name, amount, reference):
        person, reference = f"{self.example}-{name}", f"{self.example}-{reference}"
        owed, known = self.balances().get(self.contributor(name), 0), self.payouts.get(reference)
        if known is not None:
            if known.contributor == person and amount in (None, known.amount):
                assert payouts.start(self.books, person, amount, reference) == known
            else:
                with pytest.raises(ReferenceUsed):
                    payouts.start(self.books, person, amount, reference)
        elif owed <= 0 or (amount or 0) > owed:
            with pytest.raises((NotCovered, Unknown)):
                payouts.start(self.books, person, amount, reference)
        else:
            found = payouts.start(self.books, person, amount, reference)
            assert (found.contributor, found.amount, found.state) == (person, amount or owed, "started")
            self.payouts[reference] = found
            self.take(found, found.started_ms, self.contributor(name), ledger.IN_TRANSIT, ledger.PAYOUT)

    @rule(reference=references, settles=st.booleans())
    def payout_ends(self, reference, settles):
        reference = f"{self.example}-{reference}"
        known = self.payouts.get(reference)
        state = "settled" if settles else "cancelled"
        if known is None:
            with pytest.raises(Unknown):
                self.end(reference, settles=settles)
        elif known.state not in ("started", state):
            with pytest.raises(Conflict, match=f"is {known.state} already"):
                self.end(reference, settles=settles)
        else:
            found = self.end(reference, settles=settles)
            assert found.state == state
            if known.state == "started":
                self.payouts[reference] = found
                account = ledger.BANK if settles else ledger.contributor(known.contributor)
                kind = ledger.SETTLEMENT if settles else ledger.CANCELLATION
                self.take(found, found.ended_ms, ledger.IN_TRANSIT, account, kind)
            else:
                assert found == known

    def end(self, reference: str, *, settles: bool) -> payouts.Payout:
        if settles:
            return payouts.settle(self.books, reference)
        return payouts.cancel(self.books, reference, "returned")

    def take(self, found: payouts.Payout, at_ms: int | None, debit: str, credit: str, kind: str) -> None:
        """Remember what a payout has posted."""
        assert at_ms is not None
        self.posted.append(Transfer(f"{found.reference}/{kind}", at_ms, debit, credit, found.amount, kind, "r"))

    @rule(name=people, other=people, amount=units, at_ms=moments)
    def is_corrected(self, name, other, amount, at_ms):
        debit, credit = self.contributor(name), self.customer(other)
        owed = self.balances().get(debit, 0)
        correction = self.transfer(at_ms, debit, credit, amount, ledger.CORRECTION)
        if amount > owed:
            with pytest.raises(Overdrawn) as caught:
                self.post(correction, covered=(debit,))
            assert caught.value.short == amount - owed
        else:
            self.post(correction, covered=(debit,))

    @precondition(lambda self: any(each.kind == ledger.FUNDING for each in getattr(self, "posted", ())))
    @rule(data=st.data(), amount=units, at_ms=moments)
    def is_taken_back(self, data, amount, at_ms):
        original = data.draw(st.sampled_from([each for each in self.posted if each.kind == ledger.FUNDING]))
        left = original.amount - sum(each.amount for each in self.posted if each.corrects == original.id)
        owed = self.balances().get(original.credit, 0)
        correction = self.transfer(at_ms, original.credit, ledger.BANK, amount, ledger.CORRECTION, original.id)
        if amount > min(left, owed):
            with pytest.raises((Overdrawn, Overcorrected)):
                self.post(correction, covered=(original.credit,))
        else:
            self.post(correction, covered=(original.credit,))

    @rule(at_ms=moments)
    def balances_of_a_moment_are_a_replay(self, at_ms):
        with self.books.engine.connect() as connection:
            found = ledger.balances(connection, at_ms)
        assert sum(found.values()) == 0
        mine = {account: amount for account, amount in found.items() if self.is_mine(account)}
        assert mine == self.balances(at_ms)

    @rule(name=people)
    def funding_is_what_the_list_says(self, name):
        account = self.customer(name)
        with self.books.engine.connect() as connection:
            view = funding_view(connection, account.removeprefix("customer:"))
        mine = [each for each in self.posted if account in (each.debit, each.credit)]
        spent = sum(each.amount for each in mine if each.kind == ledger.CHARGE)
        assert (view.version, view.spent) == (sum(each.kind != ledger.CHARGE for each in mine), spent)
        assert view.funded - view.spent == self.balances().get(account, 0)

    @invariant()
    def balances_are_the_models(self):
        if not hasattr(self, "posted"):
            return
        with self.books.engine.connect() as connection:
            found = ledger.balances(connection)
            in_transit = payouts.in_transit(connection)
        mine = {account: amount for account, amount in found.items() if self.is_mine(account)}
        assert mine == self.balances()
        assert sum(found.values()) == 0
        assert all(amount >= 0 for amount in mine.values())
        assert found.get(ledger.IN_TRANSIT, 0) == in_transit

    def teardown(self):
        if not hasattr(self, "posted"):
            return
        for name in "abc":
            person = f"{self.example}-{name}"
            listed = {each.reference: each for each in payouts.listing(self.books.engine, contributor=person)}
            assert listed == {name: each for name, each in self.payouts.items() if each.contributor == person}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_ledger_agrees_with_the_model_in_any_order(request, tmp_path, database):
    url = request.getfixturevalue("new_postgres") if database == "postgresql" else None
    with open_books(Settings(data_dir=new_data_dir(tmp_path / "data"), database_url=url)) as books:
        LedgerMachine.books = books
        examples = min(EXAMPLES_MAX, settings().max_examples)
        run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=examples, stateful_step_count=15))
        with books.engine.connect() as connection:
            assert ledger.drifted(connection) == []
