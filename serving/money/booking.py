"""Bookings by operators: references, which make each count once, reasons, and errors."""

from __future__ import annotations

import time
from typing import Final
from urllib.parse import quote

from metering.ledger import TRANSFER_ID_CHARS_MAX, LedgerError, Overcorrected, Overdrawn, Transfer, Uncountable
from metering.money import Currency

_REFERENCE_CHARS_MAX: Final = 200
_REASON_CHARS_MAX: Final = 500


class BookingError(ValueError):
    """A booking that is refused; the ledger is unchanged."""


class Unknown(BookingError):
    """A customer, account, transfer or payout that does not exist."""


class Conflict(BookingError):
    """A booking that conflicts with an earlier one."""


class ReferenceUsed(Conflict):
    """The reference names something else."""

    def __init__(self, reference: str) -> None:
        super().__init__(f"reference {reference!r} was used for something else, or for another amount")


class NotCovered(Conflict):
    """It is more than there is."""


def transfer_id(kind: str, reference: str, *, of: str | None = None) -> str:
    """The id of the transfer that a reference names, among those of a kind (and customer).

    Raises:
        BookingError: the reference is empty, too long, or not printable.
    """
    if not reference.strip() or len(reference) > _REFERENCE_CHARS_MAX or not reference.isprintable():
        raise BookingError(
            f"a reference of 1 to {_REFERENCE_CHARS_MAX} printable characters is needed, so that it counts once"
        )
    parts = [kind, *([] if of is None else [of]), reference]
    found = "/".join(quote(part, safe="") for part in parts)
    if len(found) > TRANSFER_ID_CHARS_MAX:
        raise BookingError("the reference is too long; take one of fewer characters that are not ASCII")
    return found


def check_reason(reason: str) -> str:
    """``reason`` if it can be kept.

    Raises:
        BookingError: it is empty, too long, or not printable.
    """
    if not reason.strip() or len(reason) > _REASON_CHARS_MAX or not reason.isprintable():
        raise BookingError(f"a reason of 1 to {_REASON_CHARS_MAX} printable characters is needed: it is kept for ever")
    return reason


def refused(currency: Currency, transfer: Transfer, error: LedgerError) -> BookingError:
    """Why the ledger did not take a transfer, in an operator's words."""
    match error:
        case Overdrawn():
            return NotCovered(f"{error.account} has only {currency.format(transfer.amount - error.short)}")
        case Overcorrected():
            return NotCovered(f"of transfer {error.transfer} only {currency.format(error.left)} can be taken back")
        case Uncountable():
            return BookingError(
                f"{error.sum_of} would be above {currency.format(error.limit)}, the most that is counted"
            )
        case _:
            return ReferenceUsed(transfer.reference)


def now_ms() -> int:
    """The moment at which it is booked, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
