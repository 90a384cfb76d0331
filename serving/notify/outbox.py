"""The outbox, in SQL: events that wait for their webhook, in a queue with a clock for each endpoint.

The webhook of an account is an endpoint. Its clock says when it is called next; while it is called, it is claimed by
the one who calls. An endpoint that fails is left alone for longer and longer, and all of its events with it, so that
it costs one call at a time however many wait.

All of it takes locks in one order: the endpoint, its events, the counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import sqlalchemy as sa

from metering import sql

METADATA = sa.MetaData()

WAITING_MAX: Final = 100
"""How many events of one account wait at most; the oldest give way."""
GIVEN_UP_AFTER_S: Final = 3 * 24 * 3600
"""An event of this age is given up when a call of its endpoint fails."""
KEPT_S: Final = 30 * 24 * 3600
"""How long an event is kept, from when it was recorded, once it was delivered or given up."""
PRUNED_AT_ONCE: Final = 500
"""How many are deleted in one transaction."""
LEASE_S: Final = 5
"""How long a claim outlasts the one who made it. Who lives renews it."""
BACKOFF_MAX_S: Final = 6 * 3600
FRESH_S: Final = 60
"""How long a new event waits at most for an endpoint that failed, however often it did."""

deliveries = sa.Table(
    "deliveries",
    METADATA,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("account", sa.String(200), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    # Null once it was delivered or given up.
    sa.Column("due_ms", sa.BigInteger, nullable=True, index=True),
    sa.Column("delivered_ms", sa.BigInteger, nullable=True),
    sa.Column("error", sa.String(500), nullable=False),
    sa.Index("ix_deliveries_account_due_ms", "account", "due_ms"),
)

endpoints = sa.Table(
    "endpoints",
    METADATA,
    sa.Column("account", sa.String(200), primary_key=True),
    # When it may be called or, while it is claimed, until when that holds. Null where no event waits.
    sa.Column("next_ms", sa.BigInteger, nullable=True, index=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("proved", sa.Boolean, nullable=False),
    sa.Column("claimed_by", sa.String(40), nullable=True),
)

webhook_calls = sa.Table(
    "webhook_calls",
    METADATA,
    sa.Column("result", sa.String(20), primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
)


class Result(StrEnum):
    """What became of a call, or of an event that is not called for any more."""

    DELIVERED = "delivered"
    FAILED = "failed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Event:
    """An event that its endpoint is called with now."""

    id: str
    account: str
    body: str


def add(connection: sa.Connection, event: Event) -> None:
    """Record an event, in the transaction of what it tells of."""
    now = _now_ms()
    sql.insert_new(connection, endpoints, [{"account": event.account, "failures": 0, "proved": False}])
    soon = now + 1000 * FRESH_S
    next_ms = sa.case(
        (endpoints.c.next_ms.is_(None), now), (endpoints.c.next_ms > soon, soon), else_=endpoints.c.next_ms
    )
    _change(connection, event.account, next_ms=next_ms)
    values = {"id": event.id, "account": event.account, "body": event.body, "created_ms": now, "due_ms": now}
    connection.execute(sa.insert(deliveries).values(**values, attempts=0, error=""))
    kept = (
        sa.select(deliveries.c.id)
        .where(*_waiting(event.account))
        .order_by(deliveries.c.created_ms.desc(), deliveries.c.id.desc())
        .limit(WAITING_MAX)
    )
    newest = list(connection.execute(kept).scalars())
    _give_up(connection, event.account, f"more than {WAITING_MAX} events waited", deliveries.c.id.not_in(newest))


def reset(connection: sa.Connection, account: str) -> None:
    """Another URL, or none: what waits is due at once, whatever the endpoint before did."""
    waits = connection.execute(sa.select(sa.exists().where(*_waiting(account)))).scalar_one()
    _change(connection, account, next_ms=_now_ms() if waits else None, failures=0, proved=False, claimed_by=None)


def due(engine: sa.Engine, *, proved: bool, limit: int) -> list[str]:
    """The endpoints that may be called, by account: those first that failed the least, then those that waited longest.

    ``proved`` are those that took their last event; the others have failed since, or are new.
    """
    clock = endpoints.c.next_ms
    query = sa.select(endpoints.c.account).where(clock <= _now_ms(), endpoints.c.proved == proved)
    with engine.connect() as connection:
        return list(
            connection.execute(query.order_by(endpoints.c.failures, clock, endpoints.c.account).limit(limit)).scalars()
        )


def claim(engine: sa.Engine, account: str, who: str) -> Event | None:
    """Take the endpoint, and give its next event: one that was tried the least, the oldest of these.

    So an event that an endpoint does not take does not hold up the others. None if somebody else has the endpoint,
    or nothing waits.
    """
    now = _now_ms()
    mine = sa.update(endpoints).where(endpoints.c.account == account, endpoints.c.next_ms <= now)
    order = (deliveries.c.attempts, deliveries.c.created_ms, deliveries.c.id)
    query = sa.select(deliveries.c.id, deliveries.c.account, deliveries.c.body).where(*_waiting(account))
    with engine.begin() as connection:
        if connection.execute(mine.values(next_ms=now + 1000 * LEASE_S, claimed_by=who)).rowcount != 1:
            return None
        row = connection.execute(query.order_by(*order).limit(1)).first()
        if row is None:
            _change(connection, account, next_ms=None, claimed_by=None)
    return None if row is None else Event(*row)


def renew(engine: sa.Engine, who: str) -> None:
    """Keep what is claimed by one who is at work."""
    with engine.begin() as connection:
        mine = sa.update(endpoints).where(endpoints.c.claimed_by == who)
        connection.execute(mine.values(next_ms=_now_ms() + 1000 * LEASE_S))


def release(engine: sa.Engine, who: str) -> None:
    """Give back what is claimed by one who ends: whoever comes next need not wait."""
    with engine.begin() as connection:
        mine = sa.update(endpoints).where(endpoints.c.claimed_by == who)
        connection.execute(mine.values(next_ms=_now_ms(), claimed_by=None))


def settle(engine: sa.Engine, event: Event, who: str, error: str | None) -> Result:
    """Record what came of a call, ``error`` being None where the event was taken; gives the endpoint back."""
    now = _now_ms()
    taken = error is None
    mine = sa.update(endpoints).where(endpoints.c.account == event.account, endpoints.c.claimed_by == who)
    this = sa.update(deliveries).where(deliveries.c.id == event.id)
    with engine.begin() as connection:
        if taken:
            connection.execute(mine.values(next_ms=now, claimed_by=None, failures=0, proved=True))
            done = {"due_ms": None, "delivered_ms": now, "error": ""}
        else:
            before = connection.execute(mine.values(failures=endpoints.c.failures + 1).returning(endpoints.c.failures))
            rest = 1000 * min(2 ** (min(before.scalar() or 1, 30) - 1), BACKOFF_MAX_S)
            connection.execute(mine.values(next_ms=now + rest, claimed_by=None, proved=False))
            done = {"error": (error or "")[:500]}
        connection.execute(this.values(attempts=deliveries.c.attempts + 1, **done))
        old = 0
        if not taken:
            age = deliveries.c.created_ms < now - 1000 * GIVEN_UP_AFTER_S
            old = _give_up(connection, event.account, None, age)
        if not connection.execute(sa.select(sa.exists().where(*_waiting(event.account)))).scalar_one():
            _change(connection, event.account, next_ms=None)
        result = Result.DELIVERED if taken else Result.ABANDONED if old else Result.FAILED
        if result != Result.ABANDONED:
            _count(connection, result, 1)
    return result


def abandon(engine: sa.Engine, account: str, error: str) -> None:
    """Give up everything that waits for an account."""
    with engine.begin() as connection:
        _change(connection, account, next_ms=None, claimed_by=None)
        _give_up(connection, account, error)


def prune(engine: sa.Engine) -> int:
    """Delete some of what was delivered or given up long ago; 0 when nothing is left to delete."""
    before = deliveries.c.created_ms < _now_ms() - 1000 * KEPT_S
    old = sa.select(deliveries.c.id).where(before, deliveries.c.due_ms.is_(None)).limit(PRUNED_AT_ONCE)
    with engine.begin() as connection:
        return connection.execute(sa.delete(deliveries).where(deliveries.c.id.in_(old))).rowcount


def counts(engine: sa.Engine) -> tuple[int, dict[str, int]]:
    """How many events wait, and how many calls had which result since the deployment began."""
    pending = sa.select(sa.func.count()).select_from(deliveries).where(deliveries.c.due_ms.is_not(None))
    with engine.connect() as connection:
        calls = connection.execute(sa.select(webhook_calls.c.result, webhook_calls.c.calls)).all()
        return int(connection.execute(pending).scalar_one()), {row.result: row.calls for row in calls}


def _waiting(account: str) -> tuple[sa.ColumnElement[bool], ...]:
    return deliveries.c.account == account, deliveries.c.due_ms.is_not(None)


def _change(connection: sa.Connection, account: str, **values: object) -> None:
    connection.execute(sa.update(endpoints).where(endpoints.c.account == account).values(**values))


def _give_up(connection: sa.Connection, account: str, error: str | None, *which: sa.ColumnElement[bool]) -> int:
    """Give up the waiting events of an account of which ``which`` holds; without an error they keep their last."""
    values: dict[str, object] = {"due_ms": None} if error is None else {"due_ms": None, "error": error}
    changed = connection.execute(sa.update(deliveries).where(*_waiting(account), *which).values(**values)).rowcount
    _count(connection, Result.ABANDONED, changed)
    return changed


def _count(connection: sa.Connection, result: Result, calls: int) -> None:
    if calls:
        sql.add_to_sums(connection, webhook_calls, [(result.value, calls)])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
