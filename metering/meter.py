"""The meter: the port through which a query is paid for.

A query is paid in two phases: ``authorize`` holds the most it may cost, then either ``capture`` charges what it
did cost and logs its usage record in the same step, or ``void`` releases the hold. Errors::

    MeterError
    ├── InsufficientFunds      the account cannot cover the ceiling
    ├── SpendingCapReached     the key may not spend so much in this day or month
    ├── RateLimited            too many requests or tokens by this key; says when to come again
    ├── TooManyTokens          the query may use more tokens than the key may in a whole minute
    ├── KeyRevoked             the key may not be used any more
    ├── IdempotencyMismatch    the Idempotency-Key was used with another body
    ├── IdempotencyRunning     the first request with this Idempotency-Key is still being answered
    ├── HoldExpired            the hold expired, and its funds or its key have been used since
    └── MeterUnavailable       the meter cannot be reached: nothing may be served
        └── MeterLost          it can be reached and does not hold this deployment's accounts
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

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


class SpendingCapReached(MeterError):
    """What the key has spent and holds, and this ceiling, are together above its cap."""

    def __init__(self, span: Literal["day", "month"]) -> None:
        """``span`` is whose cap it is; both are in UTC."""
        super().__init__(f"the key has reached its spending cap of this {span} (UTC)")
        self.span = span


class RateLimited(MeterError):
    """The key has used up what one of its limits lets through."""

    def __init__(self, limit: Literal["requests", "tokens", "concurrent"], retry_after_s: float, quota: Quota) -> None:
        """``retry_after_s``: until the same request would be admitted; of ``concurrent``, a guess."""
        what = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrent": "requests at once"}[limit]
        super().__init__(f"too many {what} with this key")
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.quota = quota


class TooManyTokens(MeterError):
    """The query may use more tokens than the key's limit of a whole minute: no waiting helps."""

    def __init__(self, tokens: int, limit: int) -> None:
        """What the query may use, and the limit."""
        super().__init__(f"the query may use {tokens} tokens, and this key {limit} a minute")


class KeyRevoked(MeterError):
    """The key was revoked."""


class IdempotencyMismatch(MeterError):
    """Same Idempotency-Key, another body."""


class IdempotencyRunning(MeterError):
    """Same Idempotency-Key and body, and the first request is still running."""

    def __init__(self, hold: str) -> None:
        """``hold`` is the first request's."""
        super().__init__("the first request with this Idempotency-Key is still running")
        self.hold = hold


class HoldExpired(MeterError):
    """The hold expired before its capture, and its funds or its Idempotency-Key have been used since."""


class MeterUnavailable(MeterError):
    """The meter cannot be reached."""


class MeterLost(MeterUnavailable):
    """The meter answers, but does not hold this deployment's accounts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an API key may do; 0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0
    day_cap: int = 0
    """The most that the key may spend and hold in a day (UTC), in units."""
    month_cap: int = 0
    """The same of a month."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What the rate limits of a key leave after a request. Numbers of a limit that is none mean nothing."""

    limits: Limits
    requests_left: int
    requests_reset_s: float
    """Until all requests of a minute are there again."""
    tokens_left: int
    tokens_reset_s: float
    concurrent_left: int


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """What ``authorize`` needs to know of a query."""

    hold: str
    """Id of the hold, and of the usage record that its capture writes."""
    account: str
    key: str
    ceiling: int
    """The most the query may cost, in units."""
    tokens: int = 0
    """The most tokens that the query may use: its weight under ``tokens_per_minute``."""
    limits: Limits = Limits()
    free_per_month: int = 0
    """What the account may use for free in a month, in units."""
    at_ms: int = field(default_factory=_now_ms)
    """When it was asked, in milliseconds since the epoch: decides whose day's cap and whose month's free amount."""
    idempotency_key: str = ""
    fingerprint: str = ""
    """Hash of the request's body, compared when the Idempotency-Key comes again."""
    retries: int | None = None
    """None: the client sent the Idempotency-Key itself. Otherwise the key was made from the request, and this is how
    often the client's library has sent it again: 0 begins a new answer, more asks for the one that was begun."""


@dataclass(frozen=True, slots=True)
class Hold:
    """An authorized query: ``ceiling`` units are held until capture, void or expiry."""

    request: Request
    free: int = 0
    """The part of the ceiling that is held of the month's free amount; the rest is held of the account."""
    quota: Quota | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Replay:
    """The request was answered before under this Idempotency-Key: the stored response, uncharged."""

    response: bytes
    receipt: str
    """The id of the record of the charge."""
    quota: Quota | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Balance:
    """An account at one moment, in units."""

    funded: int
    spent: int
    held: int
    credit_limit: int = 0
    """How far below zero an invoiced account may go."""
    free_month: str = ""
    """The month that ``free_used`` was used in."""
    free_used: int = 0
    free_held: int = 0

    @property
    def available(self) -> int:
        """What new holds may still take."""
        return self.funded + self.credit_limit - self.spent - self.held

    def free_left(self, month: str, free_per_month: int) -> int:
        """What a month's free amount leaves for new holds."""
        used = self.free_used if self.free_month == month else 0
        return max(0, free_per_month - used - self.free_held)


@dataclass(frozen=True, slots=True)
class KeySpending:
    """What the ledger has posted of one key's spending: on its last day, and in the month of that day."""

    key: str
    day: str
    day_spent: int
    month_spent: int


@dataclass(frozen=True, slots=True)
class Funding:
    """The ledger's view of an account, which the meter converges to.

    ``version`` counts the account's transfers that are no charges and the changes of its credit limit, so applying the
    same or an older view again changes nothing. ``funded`` is the sum of those transfers (payments less refunds, and
    corrections). The rest is what the ledger has posted as used: never more than the meter knows, unless the meter
    lost its last writes.
    """

    account: str
    version: int
    funded: int
    spent: int
    credit_limit: int = 0
    month: str = ""
    """The last month in which the account was used."""
    free_used: int = 0
    """Of the free amount of ``month``."""
    keys: tuple[KeySpending, ...] = ()
    """The keys that were used in ``month``."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far the ledger, or the meter, is with an account: what of :class:`Funding` only grows."""

    version: int
    spent: int
    free_month: str = ""
    free_used: int = 0

    def is_behind(self, other: Position) -> bool:
        """Whether the other knows of something that this one does not."""
        return (
            self.version < other.version
            or self.spent < other.spent
            or (other.free_used > 0 and (self.free_month, self.free_used) < (other.free_month, other.free_used))
        )


class Meter(Protocol):
    """What serving pays through. Every method raises ``MeterUnavailable`` if the meter cannot be reached."""

    async def claim(self, *, fresh: bool) -> None:
        """Make sure that the meter carries this deployment's books; with ``fresh``, begin them.

        Raises:
            MeterLost: the books are another deployment's, or gone though the ledger has begun.
        """
        ...

    async def authorize(self, request: Request) -> Hold | Replay:
        """Check key, idempotency, limits and funds, and hold the ceiling: one atomic step.

        Raises:
            MeterError: the specific reason; nothing is held.
        """
        ...

    async def find_replay(self, request: Request) -> Replay | None:
        """The response to the same request before, or None where :meth:`authorize` would begin a new answer.

        Asked before anything is computed, so ceiling and tokens of the request may be 0. A replay counts as a request
        of the key's rate, uses none of its tokens, and is refused while all its places are taken.

        Raises:
            MeterError: the specific reason, as of :meth:`authorize`.
        """
        ...

    async def capture(self, hold: Hold, record: UsageRecord, response: bytes = b"") -> None:
        """Charge ``record.charge``, release the rest, and append the record to the log: one atomic step.

        The account pays the charge less ``record.free``. Repeating it is harmless. ``response`` is kept for replays
        where the hold has an Idempotency-Key; where it is empty, the key is forgotten. A hold that has expired is
        charged all the same while the account's funds last, also above a cap of its key: the answer was given.

        Raises:
            HoldExpired: the hold expired, and its funds or its Idempotency-Key have been used since; nothing was
                charged and nothing logged.
            ValueError: the charge, or its free part, is above what is held; nothing was charged.
        """
        ...

    async def void(self, hold: Hold) -> None:
        """Release the hold and forget its Idempotency-Key. Repeating it is harmless."""
        ...

    async def abandon(self, request: Request) -> None:
        """Give up a request whose authorize was not answered: its hold is released, and one that comes later refused.

        Repeating it is harmless.
        """
        ...

    async def release(self, processes: Collection[str]) -> int:
        """Release the holds of processes that are dead, and give how many there were. Repeating it is harmless."""
        ...

    async def fund(self, funding: Funding) -> None:
        """Bring the account's funds up to the ledger's view, opening the account if it is new."""
        ...

    async def positions(self, accounts: Sequence[str]) -> dict[str, Position]:
        """How far the meter is with each of the accounts that it has."""
        ...

    async def reserve(self, account: str, withdrawal: str, units: int) -> None:
        """Reserve prepaid money for a withdrawal, without expiry. Repeating it is harmless.

        Raises:
            InsufficientFunds: the account has less that is neither spent nor held; credit does not count.
        """
        ...

    async def unreserve(self, account: str, withdrawal: str) -> None:
        """Give up what a withdrawal has reserved. Repeating it is harmless."""
        ...

    async def reserves(self) -> list[tuple[str, str]]:
        """Account and name of every withdrawal that has something reserved."""
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

    async def find_record(self, account: str, record: str) -> bytes | None:
        """The canonical bytes of a record that was captured and is not in the ledger yet, or None."""
        ...
