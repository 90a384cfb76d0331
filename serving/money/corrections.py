"""Corrections: transfers by which an operator puts the books right, with a reason. Nothing is ever changed."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from metering import ledger
from metering.ledger import LedgerError, Transfer
from metering.meter import Meter
from metering.money import Currency
from serving.books import Books
from serving.money import funding
from serving.money.booking import BookingError, Unknown, check_reason, now_ms, refused, transfer_id

_OPEN: Final = (ledger.BANK, ledger.COMPUTE, ledger.PLATFORM, ledger.PROMOTIONS, ledger.RESIDUAL)
_CUSTOMER: Final = ledger.customer("")


async def correct(
    books: Books,
    meter: Meter,
    *,
    debit: str | None,
    credit: str | None,
    units: int | None,
    reference: str,
    reason: str,
    of: str | None = None,
) -> Transfer:
    """Post a correction; the same reference counts once. No account but the bank ends below zero.

    With ``of`` it takes a transfer back: the accounts are that one's, the other way round, and the amount is all of
    it where none is given, and never more than what earlier corrections have left of it.

    Raises:
        BookingError: an account is unknown, belongs to the periods or the payouts, or does not have so much; the
            reference was used for something else; there is no transfer ``of``, or it was corrected already.
        MeterError: the meter cannot be reached; if the correction is booked, it reaches the meter when it is back.
    """
    identifier = transfer_id(ledger.CORRECTION, reference)
    original = await asyncio.to_thread(_original, books, of)
    if original is not None:
        if (debit or original.credit, credit or original.debit) != (original.credit, original.debit):
            raise BookingError(f"taking {of} back debits {original.credit} and credits {original.debit}")
        debit, credit, units = original.credit, original.debit, units or original.amount
    if not debit or not credit or units is None:
        raise BookingError("debit, credit and amount are needed, or the transfer that is taken back")
    if debit == credit:
        raise BookingError("debit and credit are the same account")
    for account in (debit, credit):
        await asyncio.to_thread(_check_account, books, account)
    transfer = Transfer(
        identifier, now_ms(), debit, credit, units, ledger.CORRECTION, reference, check_reason(reason), of
    )
    if debit.startswith(_CUSTOMER):
        await funding.take(books, meter, debit.removeprefix(_CUSTOMER), transfer)
    else:
        await asyncio.to_thread(_post, books, transfer)
    if credit.startswith(_CUSTOMER):
        await funding.open_account(books, meter, credit.removeprefix(_CUSTOMER))
    return transfer


def to_json(correction: Transfer, currency: Currency) -> dict[str, Any]:
    """A correction for the outside."""
    return {
        "id": correction.id,
        "debit": correction.debit,
        "credit": correction.credit,
        "amount": currency.amount(correction.amount),
        "reference": correction.reference,
        "reason": correction.reason,
        "corrects": correction.corrects,
    }


def _original(books: Books, of: str | None) -> Transfer | None:
    if of is None:
        return None
    with books.engine.connect() as connection:
        found = ledger.find(connection, of)
    if found is None:
        raise Unknown(f"there is no transfer {of[:200]}")
    return found


def _check_account(books: Books, account: str) -> None:
    kind, _, owner = account.partition(":")
    if kind == "pool" or account == ledger.IN_TRANSIT:
        raise BookingError(f"{account} is moved by {'periods' if kind == 'pool' else 'payouts'} alone")
    with books.engine.connect() as connection:
        known = account in _OPEN or account in ledger.balances(connection, account=account)
    if kind == "customer":
        known = books.identities.is_customer(owner)
    elif kind == "contributor":
        known = known or owner in books.catalogue.contributors()
    if not known:
        raise Unknown(f"there is no account {account[:200]}")


def _post(books: Books, transfer: Transfer) -> None:
    covered = () if ledger.may_be_negative(transfer.debit) else (transfer.debit,)
    try:
        with books.engine.begin() as connection:
            ledger.post(connection, [transfer], covered=covered)
    except LedgerError as error:
        raise refused(books.currency, transfer, error) from None
