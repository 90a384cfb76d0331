"""The meter on Redis: each operation is one Lua script on one shard.

The same code runs on the embedded server, an external one and a cluster, because all keys of a script share the hash
tag of the account's shard, see :mod:`metering.redis.keys`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from metering import periods
from metering.meter import (
    Balance,
    Funding,
    Hold,
    HoldExpired,
    IdempotencyMismatch,
    IdempotencyRunning,
    InsufficientFunds,
    KeyRevoked,
    MeterLost,
    MeterUnavailable,
    Position,
    Quota,
    RateLimited,
    Replay,
    Request,
    SpendingCapReached,
    TooManyTokens,
)
from metering.records import UsageRecord
from metering.redis import keys
from metering.redis.connection import Acknowledgement, Client, unavailable_on_failure
from metering.redis.scripts import Scripts, Word
from metering.redis.usage_streams import entries

CAPTURED_TTL_MS: Final = 7 * 24 * 3600 * 1000
"""How long a capture that is not in the ledger yet is recognised when it is sent again."""

ABANDONED_TTL_MS_MIN: Final = 60_000
"""How long a hold that was given up is remembered, at the least: longer than Redis keeps what it has not read yet."""

RETRY_REPLAYS_MAX: Final = 3
"""How often one answer is replayed to a client's library that sends its request again."""

POSITIONS_AT_ONCE: Final = 500
"""Accounts that one script looks at: it runs for less than a millisecond."""

IN_FLIGHT_MAX: Final = 64
"""Scripts sent at once. Redis runs one at a time, and where redis-py carries them each takes a connection."""

_SCRIPTS: Final = (
    "authorize", "capture", "void", "release", "fund", "positions", "balance", "revoke", "check", "reserve",
    "unreserve",
)  # fmt: skip


def same_deployment(books: str, other: str) -> bool:
    """Whether two ids of books are those of one deployment, whatever was rebuilt in between: ``ID`` or ``ID/COUNT``."""
    return books.partition("/")[0] == other.partition("/")[0]


def _quota(request: Request, reply: Sequence[bytes]) -> Quota:
    requests, requests_ms, tokens, tokens_ms, concurrent = map(int, reply)
    return Quota(request.limits, requests, requests_ms / 1000, tokens, tokens_ms / 1000, concurrent)


def _of_account(shard: int, account: str) -> tuple[str, str, str, str]:
    """The keys of a script that releases an account's holds."""
    return (
        keys.account(shard, account),
        keys.expiry(shard, account),
        keys.holds(shard, account),
        keys.api_keys(shard, account),
    )


def _fours(values: Sequence[bytes]) -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
    each = iter(values)
    return zip(each, each, each, each, strict=True)


class RedisMeter:
    """Implements :class:`metering.meter.Meter`."""

    def __init__(
        self,
        client: Client,
        *,
        deployment: str,
        shards: int,
        hold_ttl_ms: int,
        replay_ttl_ms: int,
        retry_ttl_ms: int,
        process: str,
        ack: Acknowledgement = "none",
    ) -> None:
        """``client`` must return bytes, not decoded strings; the caller closes it.

        ``process`` is this process's id, which its holds carry, so that another can release them when it is dead.

        With ``ack`` "aof" a capture is acknowledged when it is on Redis's disk: the server must have WAITAOF.
        """
        self._client = client
        self._deployment = deployment
        self._shards = shards
        self._hold_ttl_ms = hold_ttl_ms
        self._replay_ttl_ms = replay_ttl_ms
        self._retry_ttl_ms = retry_ttl_ms
        self._process = process
        self._ack = ack
        self._in_flight = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._scripts = Scripts(client, deployment, _SCRIPTS)

    async def claim(self, *, fresh: bool) -> None:
        """See :meth:`Meter.claim`."""
        for shard in range(self._shards):
            key = keys.deployment(shard)
            with unavailable_on_failure():
                if fresh:
                    await self._client.set(key, self._deployment, nx=True)
                found: Any = await self._client.get(key)
            if found is None:
                raise MeterLost("Redis has lost this deployment's accounts (was it flushed, or is it another server?)")
            books = found.decode()
            if books != self._deployment and same_deployment(books, self._deployment):
                raise MeterLost(
                    "Redis holds this deployment's accounts from before a rebuild, or from one that was not finished"
                )
            if books != self._deployment:
                raise MeterLost(f"Redis holds the accounts of another deployment ({books[:40]})")

    async def authorize(self, request: Request) -> Hold | Replay:
        """See :meth:`Meter.authorize`."""
        found = await self._ask(request, look="0")
        if found is None:
            raise AssertionError("an authorize that admits answered as one that looks")
        return found

    async def find_replay(self, request: Request) -> Replay | None:
        """See :meth:`Meter.find_replay`."""
        found = await self._ask(request, look="1")
        return found if isinstance(found, Replay) else None

    async def _ask(self, request: Request, *, look: str) -> Hold | Replay | None:
        name, limits = request.account, request.limits
        shard = self._shard(name)
        reply = await self._run(
            "authorize",
            shard,
            [
                *_of_account(shard, name),
                keys.idempotency(shard, name, request.idempotency_key),
                keys.holding(shard),
            ],
            [
                request.hold,
                request.ceiling,
                self._hold_ttl_ms,
                limits.requests_per_minute,
                request.fingerprint if request.idempotency_key else "",
                max(self._hold_ttl_ms * 2, self._replay_ttl_ms),
                request.key,
                request.tokens,
                limits.tokens_per_minute,
                limits.concurrent_requests,
                limits.day_cap,
                limits.month_cap,
                periods.day_of(request.at_ms),
                request.free_per_month,
                "" if request.retries is None else request.retries,
                RETRY_REPLAYS_MAX,
                look,
                name,
                self._process,
            ],
        )
        match reply[0]:
            case b"ok":
                return Hold(request, int(reply[1]), _quota(request, reply[2:]))
            case b"replay":
                return Replay(reply[1], reply[2].decode(), _quota(request, reply[3:]))
            case b"new":
                return None
            case b"funds":
                raise InsufficientFunds(int(reply[1]), request.ceiling)
            case b"cap":
                raise SpendingCapReached(reply[1].decode())
            case b"rate":
                raise RateLimited(reply[1].decode(), int(reply[2]) / 1000, _quota(request, reply[3:]))
            case b"tokens":
                raise TooManyTokens(request.tokens, limits.tokens_per_minute)
            case b"revoked":
                raise KeyRevoked("the API key was revoked")
            case b"mismatch":
                raise IdempotencyMismatch("this Idempotency-Key was used with another request body")
            case b"abandoned":
                raise MeterUnavailable("the hold was given up before Redis came to it")
            case _:
                raise IdempotencyRunning(reply[1].decode())

    async def capture(self, hold: Hold, record: UsageRecord, response: bytes = b"") -> None:
        """See :meth:`Meter.capture`."""
        request = hold.request
        name, shard = request.account, self._shard(request.account)
        reply = await self._run(
            "capture",
            shard,
            [
                keys.account(shard, name),
                keys.expiry(shard, name),
                keys.holds(shard, name),
                keys.captured(shard, request.hold),
                keys.usage(shard),
                keys.idempotency(shard, name, request.idempotency_key),
                keys.api_keys(shard, name),
            ],
            [
                request.hold,
                record.charge,
                record.encode(),
                CAPTURED_TTL_MS,
                "1" if request.idempotency_key else "0",
                response,
                self._replay_ttl_ms if request.retries is None else self._retry_ttl_ms,
                request.key,
                record.free,
                periods.day_of(record.finished_ms),
                request.free_per_month,
            ],
        )
        if reply[0] == b"above":
            raise ValueError(f"charge {record.charge} (free {record.free}) is above the ceiling {int(reply[1])}")
        if reply[0] == b"expired":
            raise HoldExpired("the hold expired before the answer was complete, and has been used for another since")

    async def void(self, hold: Hold) -> None:
        """See :meth:`Meter.void`."""
        await self._void(hold.request, 0)

    async def abandon(self, request: Request) -> None:
        """See :meth:`Meter.abandon`."""
        await self._void(request, max(self._hold_ttl_ms, ABANDONED_TTL_MS_MIN))

    async def _void(self, request: Request, refused_ms: int) -> None:
        name, shard = request.account, self._shard(request.account)
        await self._run(
            "void",
            shard,
            [
                keys.account(shard, name),
                keys.expiry(shard, name),
                keys.holds(shard, name),
                keys.idempotency(shard, name, request.idempotency_key),
                keys.api_keys(shard, name),
            ],
            [request.hold, "1" if request.idempotency_key else "0", refused_ms],
        )

    async def release(self, processes: Collection[str]) -> int:
        """See :meth:`Meter.release`."""
        released, away = 0, None
        for shard in range(self._shards):
            try:
                released += await self._release(shard, sorted(processes))
            except MeterUnavailable as error:
                away = error  # the masters of others may be there
        if away is not None:
            raise away
        return released

    async def _release(self, shard: int, processes: list[str]) -> int:
        with unavailable_on_failure():
            found: Any = await self._client.smembers(keys.holding(shard))
        names, released = sorted(each.decode() for each in found), 0
        for i in range(0, len(names), IN_FLIGHT_MAX):
            some = names[i : i + IN_FLIGHT_MAX]
            replies = await asyncio.gather(*[self._release_of(shard, name, processes) for name in some])
            released += sum(int(reply[1]) for reply in replies)
        return released

    async def _release_of(self, shard: int, account: str, processes: list[str]) -> list[Any]:
        return await self._run(
            "release",
            shard,
            [*_of_account(shard, account), keys.holding(shard)],
            [account, *processes],
        )

    async def fund(self, funding: Funding) -> None:
        """See :meth:`Meter.fund`."""
        name, shard = funding.account, self._shard(funding.account)
        await self._run(
            "fund",
            shard,
            [keys.account(shard, name), keys.api_keys(shard, name)],
            [
                funding.version,
                funding.funded,
                funding.spent,
                funding.credit_limit,
                funding.month,
                funding.free_used,
                *[value for each in funding.keys for value in (each.key, each.day, each.day_spent, each.month_spent)],
            ],
        )

    async def positions(self, accounts: Sequence[str]) -> dict[str, Position]:
        """See :meth:`Meter.positions`."""
        by_shard: dict[int, list[str]] = {}
        for name in accounts:
            by_shard.setdefault(self._shard(name), []).append(name)
        found: dict[str, Position] = {}
        for shard, names in by_shard.items():
            for i in range(0, len(names), POSITIONS_AT_ONCE):
                some = names[i : i + POSITIONS_AT_ONCE]
                reply = await self._run("positions", shard, [keys.account(shard, name) for name in some], [])
                for name, (version, spent, month, used) in zip(some, _fours(reply[1:]), strict=True):
                    if version:
                        found[name] = Position(int(version), int(spent), month.decode(), int(used))
        return found

    async def reserve(self, account: str, withdrawal: str, units: int) -> None:
        """See :meth:`Meter.reserve`."""
        shard = self._shard(account)
        reply = await self._run(
            "reserve",
            shard,
            [*_of_account(shard, account), keys.reserves(shard)],
            [withdrawal, units, account],
        )
        if reply[0] == b"funds":
            raise InsufficientFunds(int(reply[1]), units)

    async def unreserve(self, account: str, withdrawal: str) -> None:
        """See :meth:`Meter.unreserve`."""
        shard = self._shard(account)
        await self._run("unreserve", shard, [keys.account(shard, account), keys.reserves(shard)], [withdrawal])

    async def reserves(self) -> list[tuple[str, str]]:
        """See :meth:`Meter.reserves`."""
        found: dict[Any, Any] = {}
        with unavailable_on_failure():
            for shard in range(self._shards):
                found |= await self._client.hgetall(keys.reserves(shard))
        return [(value.partition(b" ")[2].decode(), name.decode()) for name, value in found.items()]

    async def balance(self, account: str) -> Balance:
        """See :meth:`Meter.balance`."""
        shard = self._shard(account)
        reply = await self._run(
            "balance",
            shard,
            _of_account(shard, account),
            [],
            missing=KeyError(account),
        )
        funded, spent, held, credit_limit, free_used, free_held = map(int, reply[1:7])
        return Balance(funded, spent, held, credit_limit, reply[7].decode(), free_used, free_held)

    async def revoke(self, account: str, key: str) -> None:
        """See :meth:`Meter.revoke`."""
        shard = self._shard(account)
        await self._run("revoke", shard, [keys.api_keys(shard, account)], [key])

    async def check(self) -> None:
        """See :meth:`Meter.check`."""
        for shard in range(self._shards):
            await self._run("check", shard, [keys.probe(shard)], [])

    async def find_record(self, account: str, record: str) -> bytes | None:
        """See :meth:`Meter.find_record`."""
        shard = self._shard(account)
        with unavailable_on_failure():
            entry = await self._client.get(keys.captured(shard, record))
            if entry is None:
                return None
            found = entries(await self._client.xrange(keys.usage(shard), entry, entry))
        return found[0][1] if found else None

    def _shard(self, account: str) -> int:
        return keys.shard_of(account, self._shards)

    async def _run(
        self, name: str, shard: int, names: Sequence[str], args: Sequence[Word], missing: Exception | None = None
    ) -> list[Any]:
        async with self._in_flight:
            synced = name == "capture" and self._ack == "aof"
            reply = await self._scripts.run(name, shard, names, args, synced=synced)
        if reply[0] == b"account":
            raise missing or MeterLost("Redis does not hold this account")
        return reply
