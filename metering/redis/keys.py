"""The names of all keys, and what each holds. Nothing else makes a key's name: the scripts get theirs from here.

Every key begins with the hash tag ``{sNN}`` of its shard. An account lives on one shard, so all that one script touches
has one tag, and the same scripts run on a single server and on a Redis Cluster::

    key                type    holds                                                 written by          expires
    {sNN}:deployment   string  id of the deployment whose books the shard carries    claim, rebuild      never
    {sNN}:account:ID   hash    funded, credit, spent, held, version (units;          fund, authorize,    never
                               credit is the credit limit); free_month, free_used,   capture, void,
                               free_held: the free amount of a month (units)         reserve, unreserve
    {sNN}:expiry:ID    zset    hold -> when it expires (ms)                          authorize, capture, never
                                                                                     void, release
    {sNN}:holds:ID     hash    hold -> "paid free key process": what it holds        authorize, capture, never
                               (units, units), the id of its API key and the         void, release
                               process that it is for; or "abandoned"
    {sNN}:holding      set     accounts that may have holds                          authorize, release  never
    {sNN}:keys:ID      hash    KEY:field, the account's API keys: revoked;           authorize, capture, never
                               requests, tokens (rate limits: theoretical            void, fund, revoke
                               arrival times, ms); running, held (its holds: how
                               many, units); day, day_spent, month_spent (units)
    {sNN}:idem:ID:HASH hash    fingerprint, hold, state, response, replays of an     authorize, capture, with the
                               Idempotency-Key                                       void                replay
    {sNN}:aside        hash    withdrawal -> "units account": its reserve, which     reserve, unreserve  never
                               is part of the account's held
    {sNN}:usage        stream  r -> canonical bytes of a usage record                capture, requeue,   trimmed by
                                                                                     advance             the drain
    {sNN}:done:HOLD    string  stream id of the captured record                      capture, forget,    7 days, or
                                                                                     rebuild             10 min after
                                                                                                         its drain
    {sNN}:drainer      hash    owner, token: the lease of the shard's drainer        acquire_lease,      3 s
                                                                                     release_lease
    {sNN}:fence        string  the last fencing token                                acquire_lease       never
    {sNN}:instance     hash    generation, place, host, folder, beat, ends (ms): mark                never
                               the mark of the one server, on shard 00 only
    {sNN}:probe        string  shows that the shard can be written                   check               1 s

``ID`` is the account's. Its API keys share one hash, because the holds that expire in a script may be of any of them,
and a script declares every key that it touches.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Final

from metering.records import fingerprint

EVERY: Final = "{s*}:*"
"""The pattern of all keys."""


@cache
def tag(shard: int) -> str:
    """The hash tag of a shard, with its braces. Kept, because every query asks for a dozen keys."""
    return f"{{s{shard:02d}}}"


def shard_of(account: str, shards: int) -> int:
    """The shard that all keys of an account live on, of so many."""
    return zlib.crc32(account.encode()) % shards


def deployment(shard: int) -> str:
    """Whose books the shard carries."""
    return f"{tag(shard)}:deployment"


def account(shard: int, name: str) -> str:
    """The amounts of an account."""
    return f"{tag(shard)}:account:{name}"


def expiry(shard: int, name: str) -> str:
    """When each hold of an account expires."""
    return f"{tag(shard)}:expiry:{name}"


def holds(shard: int, name: str) -> str:
    """What each hold of an account holds."""
    return f"{tag(shard)}:holds:{name}"


def holding(shard: int) -> str:
    """The accounts of a shard that may have holds."""
    return f"{tag(shard)}:holding"


def api_keys(shard: int, name: str) -> str:
    """The state of an account's API keys."""
    return f"{tag(shard)}:keys:{name}"


def idempotency(shard: int, name: str, key: str) -> str:
    """An account's Idempotency-Key; where there is none, a name that is declared and never written."""
    return f"{tag(shard)}:idem:{name}:{fingerprint(key)[:32] if key else 'none'}"


def reserves(shard: int) -> str:
    """What the withdrawals of a shard's accounts reserve."""
    return f"{tag(shard)}:aside"


def usage(shard: int) -> str:
    """The stream of captured records that are not drained."""
    return f"{tag(shard)}:usage"


def captured(shard: int, record: str) -> str:
    """That a record was captured, and as which entry of the stream."""
    return f"{tag(shard)}:done:{record}"


def drainer(shard: int) -> str:
    """The lease of the shard's drainer."""
    return f"{tag(shard)}:drainer"


def fence(shard: int) -> str:
    """The last fencing token of the shard's drainers."""
    return f"{tag(shard)}:fence"


def instance(shard: int) -> str:
    """The mark of the one server."""
    return f"{tag(shard)}:instance"


def probe(shard: int) -> str:
    """What is written to see whether the shard can be."""
    return f"{tag(shard)}:probe"
