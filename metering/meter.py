"""The meter: the port through which a query is paid for.

A query is paid in two phases: ``authorize`` holds the most it may cost, then either ``capture`` charges what it
did cost and logs its usage record in the same step, or ``void`` releases the hold. Errors::

    MeterError
    ├── InsufficientFunds      the account cannot cover the ceiling
    ├── RateLimited            too many requests by this key; says when to come again
    ├── KeyRevoked             the key may not be used any more
    ├── IdempotencyMismatch    the Idempotency-Key was used with another body
    ├── IdempotencyRunning     the first request with this Idempotency-Key is still being answered
    ├── HoldExpired            the hold lapsed, and its funds or its key have been used since
    └── MeterUnavailable       the meter cannot be reached: nothing may be served
        └── MeterLost          it can be reached and does not hold this deployment's accounts
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from metering.records import UsageRecord


class MeterError(Exception):
    """The meter refused."""


class InsufficientFunds(MeterError):
    """The available balance does not cover the ceiling."""

    def __init__(self, available: int, ceiling: int) -> None:
        """Both in units."""
        super().__init__(f"available {available} is below the ceiling {ceiling}")
        self.available = available
        self.ceiling = ceiling


class RateLimited(MeterError):
    """The key has used up its requests of this minute."""

    def __init__(self, retry_after_s: float) -> None:
        """Seconds until the next request would be admitted."""
        super().__init__(f"retry in {retry_after_s:.3f} s")
        self.retry_after_s = retry_after_s


class KeyRevoked(MeterError):
    """The key was revoked."""


class IdempotencyMismatch(MeterError):
    """Same Idempotency-Key, another body."""


class IdempotencyRunning(MeterError):
    """Same Idempotency-Key and body, and the first request is still running."""


class HoldExpired(MeterError):
    """The hold lapsed before its capture, and its funds or its Idempotency-Key have been used since."""


class MeterUnavailable(MeterError):
    """The meter cannot be reached."""


class MeterLost(MeterUnavailable):
    """The meter answers, but does not hold this deployment's accounts."""


@dataclass(frozen=True, slots=True)
class Request:
    """What ``authorize`` needs to know of a query."""

    hold: str
    """Id of the hold, and of the usage record that its capture writes."""
    account: str
    key: str
    ceiling: int
    """The most the query may cost, in units."""
    requests_per_minute: int = 0
    """Rate limit of the key; 0 is none."""
    idempotency_key: str = ""
    fingerprint: str = ""
    """Hash of the request's body, compared when the Idempotency-Key comes again."""
    retries: int | None = None
    """None: the client sent the Idempotency-Key itself. Otherwise the key was made from the request, and this is how
    often the client's library has sent it again: 0 begins a new answer, more asks for the one that was begun."""


@dataclass(frozen=True, slots=True)
class Hold:
    """An authorized query: ``ceiling`` units are set aside until capture, void or expiry."""

    request: Request


@dataclass(frozen=True, slots=True)
class Replay:
    """The request was answered before under this Idempotency-Key: the stored response, uncharged."""

    response: bytes


@dataclass(frozen=True, slots=True)
class Balance:
    """An account at one moment, in units."""

    funded: int
    spent: int
    held: int

    @property
    def available(self) -> int:
        """What new holds may still take."""
        return self.funded - self.spent - self.held


@dataclass(frozen=True, slots=True)
class Funding:
    """The ledger's view of an account, which the meter converges to.

    ``version`` counts the account's funding transfers and ``funded`` is their sum, so applying the same or an
    older view again changes nothing. ``spent`` is what the ledger has posted: never more than the meter knows,
    unless the meter lost its last writes.
    """

    account: str
    version: int
    funded: int
    spent: int


class Meter(Protocol):
    """What serving pays through. Every method raises ``MeterUnavailable`` if the meter cannot be reached."""

    async def authorize(self, request: Request) -> Hold | Replay:
        """Check key, rate, idempotency and funds, and hold the ceiling: one atomic step.

        Raises:
            MeterError: the specific reason; nothing is held.
        """
        ...

    async def capture(self, hold: Hold, record: UsageRecord, response: bytes = b"") -> None:
        """Charge ``record.charge``, release the rest, and append the record to the log: one atomic step.

        Repeating it is harmless. ``response`` is kept for replays where the hold has an Idempotency-Key; where it is
        empty, the key is forgotten.

        Raises:
            HoldExpired: the hold lapsed, and its funds or its Idempotency-Key have been used since; nothing was
                charged and nothing logged.
            ValueError: the charge is above the ceiling; nothing was charged.
        """
        ...

    async def void(self, hold: Hold) -> None:
        """Release the hold and forget its Idempotency-Key. Repeating it is harmless."""
        ...

    async def fund(self, funding: Funding) -> None:
        """Bring the account's funds up to the ledger's view, opening the account if it is new."""
        ...

    async def balance(self, account: str) -> Balance:
        """The account now, expired holds released.

        Raises:
            KeyError: the meter has no such account.
        """
        ...

    async def check(self) -> None:
        """Make sure that payments can be taken: the books are there, and can be written.

        Raises:
            MeterUnavailable: they cannot.
        """
        ...

    async def revoke(self, account: str, key: str) -> None:
        """Refuse the key from now on."""
        ...
