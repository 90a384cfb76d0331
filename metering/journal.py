"""The journal: the ledger as a text that plain-text accounting programs read.

Two dialects, beancount (https://beancount.github.io/docs/beancount_language_syntax.html) and hledger
(https://hledger.org/hledger.html#journal). Amounts have all their decimals. Debits are positive there and credits
negative, so every balance has the opposite sign of the ledger's own. The text begins with what came before, ends with
assertions of every balance, taken from the running sums and not from the text, and is written a transfer at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import chain
from typing import TextIO

import sqlalchemy as sa

from metering import ledger
from metering.chart import place
from metering.ledger import Transfer
from metering.money import Currency
from metering.periods import LAST_MS, day_of

Postings = Iterable[tuple[str, int]]
"""Accounts with what is added to them, in units, debits positive."""


class Format(StrEnum):
    """The program that is to read the journal."""

    beancount = "beancount"
    hledger = "hledger"


def write(
    connection: sa.Connection, currency: Currency, form: Format, sink: TextIO, start_ms: int, end_ms: int, title: str
) -> int:
    """Write the transfers between two moments, both included, from a :func:`metering.sql.snapshot`.

    Memory grows with the number of accounts, not with that of transfers.

    Returns:
        The number of transfers.
    """
    before = _nonzero(ledger.balances(connection, start_ms - 1))
    after = ledger.balances(connection, end_ms)
    dialect = _Beancount(currency) if form is Format.beancount else _Hledger(currency)
    transfers = ledger.between(connection, start_ms, end_ms)
    first = next(transfers, None)
    # The assertions may be dated a day later, and the last day has no such day.
    opening = day_of(first.at_ms if first and not before else min(start_ms, LAST_MS - ledger.DAY_MS))
    last = opening
    sink.write(dialect.begin(title))
    sink.writelines(dialect.account(opening, place(account).journal_name, account) for account in sorted(after))
    if before:
        sink.writelines(dialect.entry(opening, "opening", {}, _debits(before)))
    count = 0
    for transfer in chain([first] if first else [], transfers):
        last, count = day_of(transfer.at_ms), count + 1
        postings = ((transfer.debit, transfer.amount), (transfer.credit, -transfer.amount))
        sink.writelines(dialect.entry(last, transfer.kind, _notes(transfer), postings))
    sink.writelines(dialect.asserted(last, _debits(after)))
    return count


def _nonzero(balances: Mapping[str, int]) -> dict[str, int]:
    return {account: units for account, units in balances.items() if units}


def _debits(balances: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return [(account, -units) for account, units in sorted(balances.items())]


def _notes(transfer: Transfer) -> dict[str, str]:
    moment = datetime.fromtimestamp(transfer.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    notes = {"time": moment, "transfer": transfer.id, "reference": transfer.reference}
    if transfer.reason is not None:
        notes["reason"] = transfer.reason
    if transfer.corrects is not None:
        notes["corrects"] = transfer.corrects
    return notes


class _Text:
    """What both dialects share."""

    def __init__(self, currency: Currency) -> None:
        self._code = currency.code
        self._scale = currency.scale

    def amount(self, units: int) -> str:
        whole, fraction = divmod(abs(units), 10**self._scale)
        return f"{'-' if units < 0 else ''}{whole}.{fraction:0{self._scale}d} {self._code}"

    def postings(self, found: Postings) -> Iterator[str]:
        for account, units in found:
            yield f"  {place(account).journal_name}  {self.amount(units)}\n"


class _Beancount(_Text):
    def begin(self, title: str) -> str:
        return f'option "title" {_quoted(title)}\noption "operating_currency" "{self._code}"\n\n'

    def account(self, day: str, name: str, original: str) -> str:
        return f"{day} open {name} {self._code}\n  account: {_quoted(original)}\n"

    def entry(self, day: str, title: str, notes: Mapping[str, str], postings: Postings) -> Iterator[str]:
        yield f"\n{day} * {_quoted(title)}\n"
        for name, value in notes.items():
            yield f"  {name}: {_quoted(value)}\n"
        yield from self.postings(postings)

    def asserted(self, day: str, balances: Postings) -> Iterator[str]:
        following = (datetime.fromisoformat(day) + timedelta(days=1)).date()  # it holds at the beginning of a day
        yield "\n"
        for account, units in balances:
            number, _, code = self.amount(units).partition(" ")
            yield f"{following} balance {place(account).journal_name}  {number} ~ 0 {code}\n"


class _Hledger(_Text):
    def begin(self, title: str) -> str:
        return f"; {title}\ncommodity {self.amount(10**self._scale)}\n\n"

    def account(self, day: str, name: str, original: str) -> str:
        return f"account {name}  ; {original}, since {day}\n"

    def entry(self, day: str, title: str, notes: Mapping[str, str], postings: Postings) -> Iterator[str]:
        yield f"\n{day} * {title}\n"
        for name, value in notes.items():
            yield f"  ; {name}: {value}\n"
        yield from self.postings(postings)

    def asserted(self, day: str, balances: Postings) -> Iterator[str]:
        yield f"\n{day} * balances\n"
        for account, units in balances:
            yield f"  {place(account).journal_name}  {self.amount(0)} = {self.amount(units)}\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
