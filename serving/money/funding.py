"""Funding: money that customers pay in, first into the ledger, then into the meter; and what they get back."""

from __future__ import annotations

import asyncio

from metering import ledger
from metering.credit import funding_of, set_limit
from metering.ledger import LedgerError, Transfer
from metering.meter import Balance, InsufficientFunds, Meter
from metering.money import MAX_UNITS
from metering.withdrawals import WithdrawalExpired, recover, withdraw
from serving.books import Books
from serving.money.booking import (
    BookingError,
    Conflict,
    NotCovered,
    ReferenceUsed,
    Unknown,
    check_reason,
    now_ms,
    refused,
    transfer_id,
)
from serving.notify import alerts


async def credit(books: Books, meter: Meter, customer: str, units: int, reference: str) -> Balance:
    """Credit a customer's account; the same reference counts once. Gives the balance afterwards.

    Raises:
        BookingError: unknown customer, an empty reference, or one that was used for another amount, or more than can
            be counted exactly.
        MeterError: the meter cannot be reached; the payment is booked, and reaches the meter when it is back.
    """
    await asyncio.to_thread(check_customer, books, customer)
    transfer = Transfer(
        id=transfer_id(ledger.FUNDING, reference, of=customer),
        at_ms=now_ms(),
        debit=ledger.BANK,
        credit=ledger.customer(customer),
        amount=units,
        kind=ledger.FUNDING,
        reference=reference,
    )
    try:
        await asyncio.to_thread(_post, books, transfer)
    except LedgerError as error:
        raise refused(books.currency, transfer, error) from None
    return await _changed(books, meter, customer)


async def set_credit_limit(books: Books, meter: Meter, customer: str, units: int) -> Balance:
    """Let a customer's account go so far below zero, to be invoiced; 0 makes it prepaid. Gives the balance afterwards.

    A limit below what is owed stops further spending; the debt stays.

    Raises:
        BookingError: unknown customer, a limit that is negative or more than the payments leave of what can be counted,
            or one that was set by another at the same moment.
        MeterError: the meter cannot be reached; the limit is stored, and reaches the meter when it is back.
    """
    await asyncio.to_thread(check_customer, books, customer)
    if units < 0:
        raise BookingError("a credit limit is zero or more")
    room = MAX_UNITS - (await asyncio.to_thread(funding_of, books.engine, customer)).funded
    if units > max(0, room):  # of one that is set beside a payment, the view takes what fits
        most = books.currency.format(MAX_UNITS)
        raise BookingError(f"what {customer} has paid in and its credit limit may be {most} together, and not more")
    try:
        await asyncio.to_thread(set_limit, books.engine, customer, units, now_ms())
    except LedgerError as error:
        raise Conflict(str(error)) from None
    return await _changed(books, meter, customer)


async def refund(books: Books, meter: Meter, customer: str, units: int, reference: str, reason: str) -> Balance:
    """Pay a customer back what is neither spent nor held; the same reference counts once. Gives the balance afterwards.

    Raises:
        BookingError: as for :func:`credit`, or the amount is more than there is to give back.
        MeterError: the meter cannot be reached; if the refund is booked, it reaches the meter when it is back.
    """
    await asyncio.to_thread(check_customer, books, customer)
    transfer = Transfer(
        id=transfer_id(ledger.REFUND, reference, of=customer),
        at_ms=now_ms(),
        debit=ledger.customer(customer),
        credit=ledger.BANK,
        amount=units,
        kind=ledger.REFUND,
        reference=reference,
        reason=check_reason(reason),
    )
    await take(books, meter, customer, transfer)
    await alerts.check(books, meter, [customer])
    return await meter.balance(customer)


async def take(books: Books, meter: Meter, customer: str, transfer: Transfer) -> None:
    """Post a transfer that debits a customer, if it is covered by what is neither spent nor held.

    Raises:
        BookingError: it is not, or its reference was used for something else.
        MeterError: as for :func:`refund`.
    """
    await recover(books.engine, meter)
    try:
        if not await asyncio.to_thread(_is_posted, books, transfer):
            await withdraw(books.engine, meter, customer, transfer)
    except InsufficientFunds as error:
        if not await asyncio.to_thread(_is_posted, books, transfer):  # or another process did it meanwhile
            available = books.currency.format(max(0, error.available))
            raise NotCovered(f"only {available} of {customer} is neither spent nor held") from None
    except WithdrawalExpired as error:
        raise Conflict(str(error)) from None
    except LedgerError as error:
        raise refused(books.currency, transfer, error) from None


async def open_account(books: Books, meter: Meter, customer: str) -> Balance:
    """Bring a customer's account in the meter up to the ledger; opens a new one."""
    await meter.fund(await asyncio.to_thread(funding_of, books.engine, customer))
    return await meter.balance(customer)


async def balance_of(books: Books, meter: Meter, customer: str) -> Balance:
    """A registered customer's balance; where Redis went away before the account was opened, it is opened now.

    Raises:
        MeterError: the meter cannot be reached.
    """
    try:
        return await meter.balance(customer)
    except KeyError:
        return await open_account(books, meter, customer)


async def _changed(books: Books, meter: Meter, customer: str) -> Balance:
    """After what an account may spend was changed: tell the meter, and whoever watches for a low balance."""
    await open_account(books, meter, customer)
    await alerts.check(books, meter, [customer])
    return await meter.balance(customer)


def check_customer(books: Books, customer: str) -> None:
    """Refuse an unknown customer.

    Raises:
        Unknown: there is no such customer.
    """
    if not books.identities.is_customer(customer):
        raise Unknown(f"there is no customer {customer}")


def _post(books: Books, transfer: Transfer) -> None:
    with books.engine.begin() as connection:
        ledger.post(connection, [transfer])


def _is_posted(books: Books, transfer: Transfer) -> bool:
    with books.engine.connect() as connection:
        found = ledger.find(connection, transfer.id)
    if found is None:
        return False
    if not found.same_as(transfer):
        raise ReferenceUsed(transfer.reference)
    return True
