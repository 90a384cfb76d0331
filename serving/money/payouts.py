"""Payouts: what contributors are owed, paid in two phases.

``start`` moves an amount from what the contributor is owed to what is in transit, before the bank is told to pay;
``settle`` says that it arrived, ``cancel`` that it did not, and puts it back. Both ends have one transfer id, which
the ledger takes once, for ever: a payout that is settled cannot be cancelled, whoever asks at the same time.
All of it is transfers; there is no other state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from metering import ledger, periods, sql
from metering.ledger import LedgerError, Transfer
from metering.money import Currency
from serving.books import Books
from serving.money.booking import (
    Conflict,
    NotCovered,
    ReferenceUsed,
    Unknown,
    check_reason,
    now_ms,
    refused,
    transfer_id,
)

State = Literal["started", "settled", "cancelled"]
_STATES: dict[str | None, State] = {
    None: "started",
    ledger.SETTLEMENT: "settled",
    ledger.CANCELLATION: "cancelled",
}
_BEGUN, _ENDED = ledger.transfers.alias("begun"), ledger.transfers.alias("ended")
PAGE_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Payout:
    """One payout as it stands."""

    reference: str
    contributor: str
    amount: int
    state: State
    started_ms: int
    ended_ms: int | None
    reason: str | None
    """Why it was cancelled."""

    def to_json(self, currency: Currency) -> dict[str, Any]:
        """The payout for the outside."""
        return {
            "reference": self.reference,
            "contributor": self.contributor,
            "amount": currency.amount(self.amount),
            "state": self.state,
            "started": periods.timestamp(self.started_ms),
            "ended": None if self.ended_ms is None else periods.timestamp(self.ended_ms),
            "reason": self.reason,
        }


def start(books: Books, contributor: str, units: int | None, reference: str) -> Payout:
    """Set aside what a contributor is about to be paid: ``units``, or all that is owed.

    The same reference counts once, and gives the payout as it stands.

    Raises:
        BookingError: no such contributor, more than is owed, less than the least payout, or the reference was used
            for another payout.
    """
    identifier = transfer_id(ledger.PAYOUT, reference)
    account = ledger.contributor(contributor)
    with books.engine.connect() as connection:
        owed = ledger.balance(connection, account)
    found = _find(books.engine, reference)  # after that: a payout that was started in between is no debt, but is found
    if found is not None:
        if found.contributor != contributor or units not in (None, found.amount):
            raise ReferenceUsed(reference)
        return found
    if owed <= 0:
        if contributor not in books.catalogue.contributors():
            raise Unknown(f"there is no contributor {contributor[:200]}")
        raise NotCovered(f"{contributor} is owed nothing")
    units = owed if units is None else units
    least = books.currency.parse(books.settings.payout_minimum)
    if units < least:
        raise NotCovered(f"{books.currency.format(units)} is below the least payout, {books.currency.format(least)}")
    _post(
        books,
        Transfer(identifier, now_ms(), account, ledger.IN_TRANSIT, units, ledger.PAYOUT, reference),
        covered=[account],
    )
    return _get(books.engine, reference)


def settle(books: Books, reference: str) -> Payout:
    """The payout has arrived. Repeating it is harmless.

    Raises:
        BookingError: there is no such payout, or it is cancelled.
    """
    return _end(books, reference, ledger.SETTLEMENT, None)


def cancel(books: Books, reference: str, reason: str) -> Payout:
    """The payout was not made: the contributor is owed it again. Repeating it is harmless.

    Raises:
        BookingError: there is no such payout, or it is settled; or there is no reason.
    """
    return _end(books, reference, ledger.CANCELLATION, check_reason(reason))


def listing(
    engine: sa.Engine,
    *,
    contributor: str | None = None,
    state: State | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[Payout]:
    """Payouts, newest first, those after the one of reference ``after``.

    Raises:
        BookingError: there is no payout ``after``.
    """
    query = _query()
    if contributor is not None:
        query = query.where(_BEGUN.c.debit == ledger.contributor(contributor))
    if state is not None:
        kind = next(kind for kind, name in _STATES.items() if name == state)
        query = query.where(_ENDED.c.kind.is_(None) if kind is None else _ENDED.c.kind == kind)
    order = sa.tuple_(_BEGUN.c.at_ms, _BEGUN.c.id)
    with engine.connect() as connection:
        if after is not None:
            last = ledger.find(connection, transfer_id(ledger.PAYOUT, after))
            if last is None or (contributor is not None and last.debit != ledger.contributor(contributor)):
                raise Unknown(f"there is no payout {after}")
            query = query.where(order < sa.tuple_(sa.literal(last.at_ms), sa.literal(last.id)))
        rows = connection.execute(query.order_by(_BEGUN.c.at_ms.desc(), _BEGUN.c.id.desc()).limit(limit))
        return [_payout(row) for row in rows]


def in_transit(connection: sa.Connection) -> int:
    """The sum of the payouts that are started and not ended, in units."""
    open_ones = _query().where(_ENDED.c.id.is_(None)).subquery()
    total = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(open_ones.c.amount), 0)))
    return int(total.scalar_one())


def account(books: Books, contributor: str, after: str | None, limit: int) -> dict[str, Any]:
    """A contributor's own view: owed, in transit and paid, the payouts newest first, and corrections of what is owed.

    Raises:
        BookingError: the contributor has no payout ``after``.
    """
    found = listing(books.engine, contributor=contributor, after=after, limit=limit)
    name, amount = ledger.contributor(contributor), books.currency.amount
    table = ledger.transfers
    corrected = sa.select(table).where(table.c.kind == ledger.CORRECTION).order_by(table.c.at_ms.desc(), table.c.id)
    transit = _query().where(_BEGUN.c.debit == name).subquery()
    with sql.snapshot(books.engine) as connection:
        owed = ledger.balance(connection, name)
        sums = sa.select(transit.c.end, sa.func.sum(transit.c.amount)).group_by(transit.c.end)
        by_end = {row[0]: int(row[1]) for row in connection.execute(sums)}
        rows = connection.execute(corrected.where(sa.or_(table.c.debit == name, table.c.credit == name))).all()
    return {
        "owed": amount(owed),
        "in_transit": amount(by_end.get(None, 0)),
        "paid": amount(by_end.get(ledger.SETTLEMENT, 0)),
        "data": [each.to_json(books.currency) for each in found],
        "next": found[-1].reference if len(found) == limit else None,
        "corrections": [
            {
                "at": periods.timestamp(row.at_ms),
                "amount": amount(row.amount if row.credit == name else -row.amount),
                "reason": row.reason,
            }
            for row in rows
        ],
    }


def _end(books: Books, reference: str, kind: str, reason: str | None) -> Payout:
    found = _get(books.engine, reference)
    account = ledger.BANK if kind == ledger.SETTLEMENT else ledger.contributor(found.contributor)
    identifier = f"{transfer_id(ledger.PAYOUT, reference)}/end"
    transfer = Transfer(identifier, now_ms(), ledger.IN_TRANSIT, account, found.amount, kind, reference, reason)
    try:
        _post(books, transfer)
    except ReferenceUsed:
        found = _get(books.engine, reference)
        raise Conflict(f"payout {reference} is {found.state} already") from None
    return _get(books.engine, reference)


def _post(books: Books, transfer: Transfer, *, covered: list[str] | None = None) -> None:
    try:
        with books.engine.begin() as connection:
            ledger.post(connection, [transfer], covered=covered or ())
    except LedgerError as error:
        raise refused(books.currency, transfer, error) from None


def _get(engine: sa.Engine, reference: str) -> Payout:
    found = _find(engine, reference)
    if found is None:
        raise Unknown(f"there is no payout {reference[:200]}")
    return found


def _find(engine: sa.Engine, reference: str) -> Payout | None:
    query = _query()
    with engine.connect() as connection:
        row = connection.execute(query.where(_BEGUN.c.id == transfer_id(ledger.PAYOUT, reference))).one_or_none()
    return None if row is None else _payout(row)


def _query() -> sa.Select[Any]:
    columns = (
        _BEGUN.c.reference,
        _BEGUN.c.debit,
        _BEGUN.c.amount,
        _BEGUN.c.at_ms,
        _ENDED.c.kind.label("end"),
        _ENDED.c.at_ms.label("ended_ms"),
        _ENDED.c.reason,
    )
    both = _BEGUN.outerjoin(_ENDED, _ENDED.c.id == _BEGUN.c.id + "/end")
    query = sa.select(*columns).select_from(both)
    return query.where(_BEGUN.c.credit == ledger.IN_TRANSIT, _BEGUN.c.kind == ledger.PAYOUT)


def _payout(row: sa.Row[Any]) -> Payout:
    return Payout(
        reference=row.reference,
        contributor=row.debit.removeprefix(ledger.contributor("")),
        amount=row.amount,
        state=_STATES[row.end],
        started_ms=row.at_ms,
        ended_ms=row.ended_ms,
        reason=row.reason,
    )
