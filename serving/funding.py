"""Funding: money that customers pay in, first into the ledger, then into the meter."""

from __future__ import annotations

import time
from typing import Final
from urllib.parse import quote

from metering import ledger
from metering.ledger import LedgerError, Transfer
from metering.meter import Balance, Meter
from serving import alerts
from serving.assembly import Books

_REFERENCE_CHARS_MAX: Final = 200


class FundingError(ValueError):
    """A payment that cannot be booked; nothing was."""


class UnknownCustomer(FundingError):
    """There is no such customer."""


class ReferenceUsed(FundingError):
    """The reference names another payment."""


async def credit(books: Books, meter: Meter, customer: str, units: int, reference: str) -> Balance:
    """Credit a customer's account; the same reference counts once. Gives the balance afterwards.

    Raises:
        FundingError: unknown customer, an empty reference, or one that was used for another amount.
        MeterError: the meter cannot be reached; the payment is booked, and reaches the meter when it is back.
    """
    if not books.identities.is_customer(customer):
        raise UnknownCustomer(f"there is no customer {customer}")
    if not reference.strip() or len(reference) > _REFERENCE_CHARS_MAX or not reference.isprintable():
        raise FundingError(
            f"a reference of 1 to {_REFERENCE_CHARS_MAX} printable characters is needed, so that it counts once"
        )
    transfer = Transfer(
        id=f"{ledger.FUNDING}/{quote(customer, safe='')}/{quote(reference, safe='')}",
        at_ms=time.time_ns() // 1_000_000,
        debit=ledger.BANK,
        credit=ledger.customer(customer),
        amount=units,
        kind=ledger.FUNDING,
        reference=reference,
    )
    with books.engine.begin() as connection:
        try:
            ledger.post(connection, [transfer])
        except LedgerError:
            raise ReferenceUsed(f"reference {reference!r} was used for another amount") from None
        view = ledger.funding(connection, customer)
    await meter.fund(view)
    await alerts.check(books, meter, [customer])
    return await meter.balance(customer)


async def set_credit_limit(books: Books, meter: Meter, customer: str, units: int) -> Balance:
    """Let a customer's account go so far below zero, to be invoiced; 0 makes it prepaid. Gives the balance afterwards.

    What is owed stays owed: a limit below it only lets nothing more be spent.

    Raises:
        FundingError: unknown customer, a negative limit, or one that was set by another at the same moment.
        MeterError: the meter cannot be reached; the limit is stored, and reaches the meter when it is back.
    """
    if not books.identities.is_customer(customer):
        raise UnknownCustomer(f"there is no customer {customer}")
    if units < 0:
        raise FundingError("a credit limit is zero or more")
    with books.engine.begin() as connection:
        try:
            ledger.set_credit_limit(connection, customer, units, time.time_ns() // 1_000_000)
        except LedgerError as error:
            raise FundingError(str(error)) from None
        view = ledger.funding(connection, customer)
    await meter.fund(view)
    await alerts.check(books, meter, [customer])
    return await meter.balance(customer)


async def open_account(books: Books, meter: Meter, customer: str) -> Balance:
    """Open a new customer's account in the meter."""
    with books.engine.connect() as connection:
        view = ledger.funding(connection, customer)
    await meter.fund(view)
    return await meter.balance(customer)
