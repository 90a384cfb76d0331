"""The meter on Redis: each operation is one Lua script on one shard.

The key layout is documented in ``lua/_prelude.lua``. The same code runs on the embedded server, an external one
and a cluster, because all keys of a script share the account's hash tag.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
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
    Quota,
    RateLimited,
    Replay,
    Request,
    SpendingCapReached,
    TooManyTokens,
)
from metering.records import UsageRecord, fingerprint
from metering.redis.connection import Acknowledgement, Client, Script, reached

DONE_TTL_MS: Final = 7 * 24 * 3600 * 1000
"""How long a capture that is not in the ledger yet is recognised when it is sent again."""

REGISTERED_TTL_MS: Final = 600 * 1000
"""And how long once it is there: longer than anything sends it again without asking the ledger first."""

RETRY_REPLAYS_MAX: Final = 3
"""How often one answer is replayed to a client's library that sends its request again."""

IN_FLIGHT_MAX: Final = 64
"""Scripts sent at once. Redis runs one at a time, and where redis-py carries them each takes a connection."""

_SCRIPTS = ("authorize", "capture", "void", "fund", "balance", "revoke", "check", "set_aside", "put_back")


def shard_tag(shard: int) -> str:
    """The hash tag of a shard, with its braces."""
    return f"{{s{shard:02d}}}"


def shard_of(account: str, shards: int) -> int:
    """The shard that all keys of an account live on."""
    return zlib.crc32(account.encode()) % shards


def usage_stream(shard: int) -> str:
    """The key of a shard's usage stream."""
    return f"{shard_tag(shard)}:usage"


def deployment_key(shard: int) -> str:
    """The key that holds the id of the deployment whose books a shard carries."""
    return f"{shard_tag(shard)}:deployment"


def done_key(shard: int, record: str) -> str:
    """The key that says that a record was captured, and as which entry of its stream."""
    return f"{shard_tag(shard)}:done:{record}"


def same_deployment(books: str, other: str) -> bool:
    """Whether two ids of books are those of one deployment, whatever was rebuilt in between: ``ID`` or ``ID/COUNT``."""
    return books.partition("/")[0] == other.partition("/")[0]


def drainer_key(shard: int) -> str:
    """The key of the lease of the drainer that owns a shard."""
    return f"{shard_tag(shard)}:drainer"


def fence_key(shard: int) -> str:
    """The key of the last fencing token of a shard."""
    return f"{shard_tag(shard)}:fence"


def stream_entries(reply: Any) -> list[tuple[str, bytes]]:
    """The entries of a usage stream, as Redis answers them: stream ids and canonical record bytes."""
    return [(entry.decode(), fields[b"r"]) for entry, fields in reply]


def _quota(request: Request, reply: Sequence[bytes]) -> Quota:
    requests, requests_ms, tokens, tokens_ms, concurrent = map(int, reply)
    return Quota(request.limits, requests, requests_ms / 1000, tokens, tokens_ms / 1000, concurrent)


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
        ack: Acknowledgement = "none",
    ) -> None:
        """``client`` must return bytes, not decoded strings; the caller closes it.

        With ``ack`` "aof" a capture is acknowledged when it is on Redis's disk: the server must have WAITAOF.
        """
        self._client = client
        self._deployment = deployment
        self._shards = shards
        self._hold_ttl_ms = hold_ttl_ms
        self._replay_ttl_ms = replay_ttl_ms
        self._retry_ttl_ms = retry_ttl_ms
        self._ack = ack
        self._in_flight = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._scripts = {name: Script(client, name) for name in _SCRIPTS}

    async def claim(self, *, fresh: bool) -> None:
        """Check on every shard that the meter carries this deployment's books; with ``fresh``, begin them.

        Raises:
            MeterLost: the books are another deployment's, or gone though the ledger has begun.
        """
        for shard in range(self._shards):
            key = deployment_key(shard)
            with reached():
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
        tag, account = self._place(request.account)
        idem = self._idempotency_key(request)
        limits = request.limits
        reply = await self._run(
            "authorize",
            [
                f"{tag}:deployment",
                account,
                f"{tag}:expiry:{request.account}",
                f"{tag}:holds:{request.account}",
                f"{tag}:keys:{request.account}",
                idem,
            ],
            [
                self._deployment,
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
            ],
        )
        match reply[0]:
            case b"ok":
                return Hold(request, int(reply[1]), _quota(request, reply[2:]))
            case b"replay":
                return Replay(reply[1], _quota(request, reply[2:]))
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
            case _:
                raise IdempotencyRunning("the first request with this Idempotency-Key is still running")

    async def capture(self, hold: Hold, record: UsageRecord, response: bytes = b"") -> None:
        """See :meth:`Meter.capture`."""
        request = hold.request
        tag, account = self._place(request.account)
        reply = await self._run(
            "capture",
            [
                f"{tag}:deployment",
                account,
                f"{tag}:expiry:{request.account}",
                f"{tag}:holds:{request.account}",
                f"{tag}:done:{request.hold}",
                f"{tag}:usage",
                self._idempotency_key(request),
                f"{tag}:keys:{request.account}",
            ],
            [
                self._deployment,
                request.hold,
                record.charge,
                record.encode(),
                DONE_TTL_MS,
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
            raise HoldExpired("the hold lapsed before the answer was complete, and has been used for another since")

    async def void(self, hold: Hold) -> None:
        """See :meth:`Meter.void`."""
        request = hold.request
        tag, account = self._place(request.account)
        await self._run(
            "void",
            [
                f"{tag}:deployment",
                account,
                f"{tag}:expiry:{request.account}",
                f"{tag}:holds:{request.account}",
                self._idempotency_key(request),
                f"{tag}:keys:{request.account}",
            ],
            [self._deployment, request.hold, "1" if request.idempotency_key else "0"],
        )

    async def fund(self, funding: Funding) -> None:
        """See :meth:`Meter.fund`."""
        tag, account = self._place(funding.account)
        await self._run(
            "fund",
            [f"{tag}:deployment", account, f"{tag}:keys:{funding.account}"],
            [
                self._deployment,
                funding.version,
                funding.funded,
                funding.spent,
                funding.credit_limit,
                funding.month,
                funding.free_used,
                *[value for each in funding.keys for value in (each.key, each.day, each.day_spent, each.month_spent)],
            ],
        )

    async def set_aside(self, account: str, withdrawal: str, units: int) -> None:
        """See :meth:`Meter.set_aside`."""
        tag, key = self._place(account)
        reply = await self._run(
            "set_aside",
            [
                f"{tag}:deployment",
                key,
                f"{tag}:expiry:{account}",
                f"{tag}:holds:{account}",
                f"{tag}:keys:{account}",
                f"{tag}:aside",
            ],
            [self._deployment, withdrawal, units, account],
        )
        if reply[0] == b"funds":
            raise InsufficientFunds(int(reply[1]), units)

    async def put_back(self, account: str, withdrawal: str) -> None:
        """See :meth:`Meter.put_back`."""
        tag, key = self._place(account)
        await self._run("put_back", [f"{tag}:deployment", key, f"{tag}:aside"], [self._deployment, withdrawal])

    async def asides(self) -> list[tuple[str, str]]:
        """See :meth:`Meter.asides`."""
        found: dict[Any, Any] = {}
        with reached():
            for shard in range(self._shards):
                found |= await self._client.hgetall(f"{shard_tag(shard)}:aside")
        return [(value.partition(b" ")[2].decode(), name.decode()) for name, value in found.items()]

    async def balance(self, account: str) -> Balance:
        """See :meth:`Meter.balance`."""
        tag, key = self._place(account)
        reply = await self._run(
            "balance",
            [f"{tag}:deployment", key, f"{tag}:expiry:{account}", f"{tag}:holds:{account}", f"{tag}:keys:{account}"],
            [self._deployment],
            missing=KeyError(account),
        )
        funded, spent, held, credit_limit, free_used, free_held = map(int, reply[1:7])
        return Balance(funded, spent, held, credit_limit, reply[7].decode(), free_used, free_held)

    async def revoke(self, account: str, key: str) -> None:
        """See :meth:`Meter.revoke`."""
        tag, _ = self._place(account)
        await self._run("revoke", [f"{tag}:deployment", f"{tag}:keys:{account}"], [self._deployment, key])

    async def check(self) -> None:
        """See :meth:`Meter.check`."""
        for shard in range(self._shards):
            await self._run("check", [deployment_key(shard), f"{shard_tag(shard)}:probe"], [self._deployment])

    async def find_record(self, account: str, record: str) -> bytes | None:
        """The canonical bytes of a captured record that is still in its stream, or None."""
        tag, _ = self._place(account)
        with reached():
            entry = await self._client.get(f"{tag}:done:{record}")
            if entry is None:
                return None
            found = stream_entries(await self._client.xrange(f"{tag}:usage", entry, entry))
        return found[0][1] if found else None

    def _place(self, account: str) -> tuple[str, str]:
        tag = shard_tag(shard_of(account, self._shards))
        return tag, f"{tag}:account:{account}"

    def _idempotency_key(self, request: Request) -> str:
        tag, _ = self._place(request.account)
        # A request without one still names a key, because every key of a script must be declared.
        name = fingerprint(request.idempotency_key)[:32] if request.idempotency_key else "none"
        return f"{tag}:idem:{request.account}:{name}"

    async def _run(
        self,
        name: str,
        keys: Sequence[str],
        args: Sequence[str | bytes | int],
        missing: Exception | None = None,
    ) -> list[Any]:
        script = self._scripts[name]
        run = script.synced if name == "capture" and self._ack == "aof" else script
        async with self._in_flight:
            with reached():
                reply = await run(keys=keys, args=args)
        if reply[0] == b"lost":
            raise MeterLost("Redis does not hold this deployment's accounts (flushed, or another server)")
        if reply[0] == b"account":
            raise missing or MeterLost("Redis does not hold this account")
        return reply
