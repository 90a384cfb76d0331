"""A simple reference of the meter: one account with its keys, in plain Python, for tests to compare with.

It keeps every capture and adds up, where the meter keeps counters. Time stands still in it: its tests are over before
a rate limit lets anything through again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from metering import periods
from metering.meter import (
    IdempotencyMismatch,
    IdempotencyRunning,
    InsufficientFunds,
    KeyRevoked,
    MeterError,
    RateLimited,
    Request,
    SpendingCapReached,
    TooManyTokens,
)
from metering.redis.meter import RETRY_REPLAYS_MAX


@dataclass
class Reserved:
    """What a hold holds."""

    key: str
    paid: int
    free: int
    expiring: bool
    process: str


@dataclass
class Captured:
    """A charge."""

    key: str
    day: str
    paid: int
    free: int


@dataclass
class Model:
    """One account."""

    funded: int = 0
    credit_limit: int = 0
    holds: dict[str, Reserved] = field(default_factory=dict)
    captured: dict[str, Captured] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    admitted: dict[str, list[int]] = field(default_factory=dict)
    """The tokens of every admitted request, by key."""
    idempotency: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Fingerprint, state and hold of every Idempotency-Key."""
    replays: dict[str, int] = field(default_factory=dict)
    """How often each answer was replayed to a client's library."""

    @property
    def spent(self) -> int:
        return sum(each.paid for each in self.captured.values())

    @property
    def held(self) -> int:
        return sum(each.paid for each in self.holds.values())

    @property
    def available(self) -> int:
        return self.funded + self.credit_limit - self.spent - self.held

    @property
    def last_free_month(self) -> str:
        return max((each.day[:7] for each in self.captured.values() if each.free), default="")

    def free_used(self, month: str) -> int:
        return sum(each.free for each in self.captured.values() if each.day[:7] == month)

    def free_left(self, month: str, grant: int) -> int:
        if self.last_free_month > month:
            return 0
        return max(0, grant - self.free_used(month) - sum(each.free for each in self.holds.values()))

    def key_spent(self, key: str, span: str) -> int:
        """Of a day or a month, by the beginning of its days."""
        return sum(each.paid for each in self.captured.values() if each.key == key and each.day.startswith(span))

    def of_key(self, key: str) -> list[Reserved]:
        return [each for each in self.holds.values() if each.key == key]

    def sweep(self) -> None:
        """Expired holds are gone."""
        self.holds = {name: each for name, each in self.holds.items() if not each.expiring}

    def authorize(self, request: Request, *, expiring: bool, process: str) -> type[MeterError] | str:
        """The error, or ``replay``, or ``ok``: then what was asked for is held."""
        self.sweep()
        known = self.find_replay(request)
        if known != "new":
            return known
        refused = self._limited(request)
        if refused is not None:
            return refused
        day = periods.day_of(request.at_ms)
        free = min(request.ceiling, self.free_left(day[:7], request.free_per_month))
        paid = request.ceiling - free
        held = sum(each.paid for each in self.of_key(request.key))
        for cap, span in ((request.limits.day_cap, day), (request.limits.month_cap, day[:7])):
            if cap and self.key_spent(request.key, span) + held + paid > cap:
                return SpendingCapReached
        if self.available < paid:
            return InsufficientFunds
        self.holds[request.hold] = Reserved(request.key, paid, free, expiring, process)
        self.admitted.setdefault(request.key, []).append(request.tokens)
        if request.idempotency_key:
            self.idempotency[request.idempotency_key] = (request.fingerprint, "running", request.hold)
            self.replays.pop(request.idempotency_key, None)
        return "ok"

    def find_replay(self, request: Request) -> type[MeterError] | str:
        """The error, or ``replay``, which the key's limits have let through, or ``new``."""
        self.sweep()
        known = self._known(request)
        if known != "replay":
            return known or "new"
        refused = self._limited(replace(request, tokens=0), replay=True)
        if refused is not None:
            return refused
        self.admitted.setdefault(request.key, []).append(0)
        if request.retries is not None:
            self.replays[request.idempotency_key] = self.replays.get(request.idempotency_key, 0) + 1
        return "replay"

    def _known(self, request: Request) -> type[MeterError] | str | None:
        if request.key in self.revoked:
            return KeyRevoked
        state = self.idempotency.get(request.idempotency_key) if request.idempotency_key else None
        if state and state[0] != request.fingerprint:
            return IdempotencyMismatch
        if state is None or request.retries == 0:
            return None
        if state[1] == "done":
            if request.retries is None:
                return "replay"
            return "replay" if self.replays.get(request.idempotency_key, 0) < RETRY_REPLAYS_MAX else None
        return IdempotencyRunning if state[2] in self.holds else None

    def _limited(self, request: Request, *, replay: bool = False) -> type[MeterError] | None:
        limits = request.limits
        if limits.tokens_per_minute and request.tokens > limits.tokens_per_minute:
            return TooManyTokens
        admitted = self.admitted.get(request.key, [])
        if (
            (limits.requests_per_minute and len(admitted) >= limits.requests_per_minute)
            or (not replay and limits.tokens_per_minute and sum(admitted) + request.tokens > limits.tokens_per_minute)
            or (limits.concurrent_requests and len(self.of_key(request.key)) >= limits.concurrent_requests)
        ):
            return RateLimited
        return None

    def capture(self, request: Request, day: str, charge: int, free: int, *, kept: bool) -> bool:
        """Whether it is charged; an expired hold is if its money, free amount and Idempotency-Key are still there."""
        paid = charge - free
        state = self.idempotency.get(request.idempotency_key)
        taken = state is not None and state[2] != request.hold
        if request.hold not in self.holds:
            left = self.free_left(day[:7], request.free_per_month)
            if taken or self.available < paid or (free and left < free):
                return False
        self.holds.pop(request.hold, None)
        self.captured[request.hold] = Captured(request.key, day, paid, free)
        if state is not None and not taken:
            if kept:
                self.idempotency[request.idempotency_key] = (request.fingerprint, "done", request.hold)
            else:
                del self.idempotency[request.idempotency_key]
        return True

    def die(self, process: str) -> None:
        """What a process held is free, and its Idempotency-Keys are as of holds that expired."""
        self.holds = {name: each for name, each in self.holds.items() if each.process != process}

    def void(self, request: Request) -> None:
        """The hold is gone, and with it its Idempotency-Key."""
        self.holds.pop(request.hold, None)
        state = self.idempotency.get(request.idempotency_key)
        if state and state[1:] == ("running", request.hold):
            del self.idempotency[request.idempotency_key]
