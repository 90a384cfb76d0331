"""Jobs: long work whose caller is answered before it is done. What is promised is stored first.

A job is queued, is in work, and ends as done, failed or cancelled. What it does and that it is done are one
transaction, so a job that a crash interrupts has no effect and is begun again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

METADATA = sa.MetaData()

ATTEMPTS_MAX: Final = 5
"""How often a job is begun: one that the server fails at, or ends over, is given up."""
_DAY_MS: Final = 86_400_000

table = sa.Table(
    "jobs",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(40), nullable=False, unique=True),
    sa.Column("role", sa.String(20), nullable=False),
    sa.Column("owner", sa.String(200), nullable=False, index=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("subject", sa.String(200), nullable=False),
    # Of the request, so that the same one again is the same job.
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("basis", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(20), nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("done", sa.BigInteger, nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_ms", sa.BigInteger, nullable=True, index=True),
    sa.Column("result", sa.Text, nullable=True),
    sa.Column("error", sa.Text, nullable=True),
)

requests = sa.Table(
    "job_requests",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("request", sa.Text, nullable=False),
)
"""What the jobs that have not ended are to do: megabytes, which are not rewritten whenever one of them gets further."""


class Kind(StrEnum):
    """What a job does."""

    DOCUMENT = "document"
    CLOSE = "close"


class State(StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TooMuchWaits(RuntimeError):
    """The caller's jobs that have not ended are as many, or as large, as they may be."""


class JobOver(RuntimeError):
    """The job was cancelled meanwhile, so nothing of it may take effect."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose jobs they are."""

    role: str
    id: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What a job is to do: ``request`` to ``subject``; ``size`` is what counts against the owner's bound."""

    kind: Kind
    subject: str
    request: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is stored."""

    id: str
    owner: Owner
    kind: Kind
    subject: str
    basis: str
    """The state of the subject when the job was asked for."""
    state: State
    attempts: int
    done: int
    total: int
    """How much there is to do, in passages or records; 0 until it is known."""
    created_ms: int
    ended_ms: int | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None


_UNFINISHED: Final = table.c.state.in_([State.QUEUED, State.RUNNING])


class Jobs:
    """The jobs of a deployment. Thread-safe; only the one server works on them."""

    def __init__(self, engine: sa.Engine, kept_days: int) -> None:
        """Those that ended are kept for ``kept_days``."""
        self._engine = engine
        self._kept_ms = kept_days * _DAY_MS
        self._adding = threading.Lock()

    def add(
        self,
        owner: Owner,
        wish: Wish,
        *,
        count_max: int,
        size_max: int,
        basis: Callable[[sa.Connection], str] = lambda _: "",
    ) -> Job:
        """Store a job; it survives a restart from then on. The same request, while it waits, is the same job.

        What its owner asked for before of the same kind and subject, and is not done, is cancelled: the last word
        counts. ``basis`` gives the state of the subject, or raises what stands against the job; if that state has
        changed, the same request is another job, for the one that waits would fail.

        Raises:
            TooMuchWaits: ``count_max`` of them, or a ``size`` of ``size_max``, is what may wait.
        """
        now = _now_ms()
        identifier = f"job_{secrets.token_hex(12)}"
        digest = hashlib.sha256(wish.request.encode()).hexdigest()
        mine = sa.and_(table.c.role == owner.role, table.c.owner == owner.id, _UNFINISHED)
        same = sa.and_(mine, table.c.kind == wish.kind, table.c.subject == wish.subject)
        # PostgreSQL would let two of them pass each other, and neither see the other.
        with self._adding, self._engine.begin() as connection:
            # First a write, so that the database's lock is waited for.
            self._cancel(connection, sa.and_(same, table.c.digest != digest), now, "superseded")
            found = basis(connection)
            self._cancel(connection, sa.and_(same, table.c.basis != found), now, "superseded")
            known = connection.execute(sa.select(table).where(same)).first()
            if known is not None:
                return _job(known)
            waiting = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(table.c.size), 0)).where(mine)
            count, size = connection.execute(waiting).one()
            if count >= count_max or size + wish.size > size_max:
                raise TooMuchWaits(
                    f"{count} of your jobs wait already; {count_max} may, of {size_max:,} characters together"
                )
            row = {
                "id": identifier,
                "role": owner.role,
                "owner": owner.id,
                "kind": wish.kind,
                "subject": wish.subject,
                "digest": digest,
                "basis": found,
                "size": wish.size,
                "state": State.QUEUED,
                "attempts": 0,
                "done": 0,
                "total": 0,
                "created_ms": now,
            }
            (number,) = connection.execute(sa.insert(table).values(row).returning(table.c.number)).one()
            connection.execute(sa.insert(requests).values(number=number, request=wish.request))
            return _job(connection.execute(sa.select(table).where(table.c.number == number)).one())

    def get(self, owner: Owner, identifier: str) -> Job | None:
        """A job of this owner, or None."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(table).where(_of(owner), table.c.id == identifier)).first()
        return None if row is None else _job(row)

    def newest(self, owner: Owner, limit: int) -> list[Job]:
        """The owner's jobs, the newest first."""
        query = sa.select(table).where(_of(owner)).order_by(table.c.number.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(query)]

    def cancel(self, owner: Owner, identifier: str) -> Job | None:
        """Cancel a job of this owner if it has not ended, and give it as it is then; None if there is none."""
        with self._engine.begin() as connection:
            self._cancel(connection, sa.and_(_of(owner), table.c.id == identifier, _UNFINISHED), _now_ms(), "cancelled")
        return self.get(owner, identifier)

    def recover(self, working: Collection[str]) -> int:
        """Queue again what nobody works on, though it was begun; ``working`` are the ids of those that somebody does.

        Answers how many.
        """
        lost = sa.and_(table.c.state == State.RUNNING, table.c.id.not_in(list(working)))
        with self._engine.begin() as connection:
            return connection.execute(sa.update(table).where(lost).values(state=State.QUEUED)).rowcount

    def next(self, kind: Kind, busy: Collection[Owner], limit: int) -> list[Job]:
        """The oldest queued job of a kind of each owner who is not ``busy``, those first that have waited longest."""
        first = sa.select(sa.func.min(table.c.number)).where(table.c.state == State.QUEUED, table.c.kind == kind)
        first = first.group_by(table.c.role, table.c.owner)
        query = sa.select(table).where(table.c.number.in_(first)).order_by(table.c.number)
        with self._engine.connect() as connection:
            found = [_job(row) for row in connection.execute(query)]
        return [job for job in found if job.owner not in busy][:limit]

    def unfinished(self) -> int:
        """How many jobs have not ended."""
        with self._engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.count()).where(_UNFINISHED)).scalar_one())

    def begin(self, job: Job) -> str | None:
        """Take a queued job into work, and give its request; None if it is queued no more."""
        mine = sa.and_(table.c.id == job.id, table.c.state == State.QUEUED)
        values = {"state": State.RUNNING, "attempts": table.c.attempts + 1, "done": 0}
        with self._engine.begin() as connection:
            if connection.execute(sa.update(table).where(mine).values(values)).rowcount == 0:
                return None
            query = sa.select(requests.c.request).join(table, table.c.number == requests.c.number)
            request: str = connection.execute(query.where(table.c.id == job.id)).scalar_one()
            return request

    def advance(self, job: Job, done: int, total: int) -> None:
        """Say how far a job is.

        Raises:
            JobOver: it was cancelled.
        """
        with self._engine.begin() as connection:
            _change(connection, job, done=done, total=total)

    def release(self, job: Job, *, counted: bool) -> None:
        """Give a job back to the queue; ``counted`` if this attempt counts against it."""
        attempts = table.c.attempts if counted else table.c.attempts - 1
        with self._engine.begin() as connection:
            _change(connection, job, state=State.QUEUED, attempts=attempts)

    def fail(self, job: Job, error: dict[str, Any]) -> None:
        """Say why a job cannot be done.

        Raises:
            JobOver: it was cancelled.
        """
        with self._engine.begin() as connection:
            _end_running(connection, job, State.FAILED, error=json.dumps(error))

    def prune(self) -> int:
        """Forget jobs that ended long ago; answers how many."""
        over = table.c.ended_ms < _now_ms() - self._kept_ms
        with self._engine.begin() as connection:
            return connection.execute(sa.delete(table).where(over)).rowcount

    @staticmethod
    def _cancel(connection: sa.Connection, which: sa.ColumnElement[bool], now: int, code: str) -> None:
        message = {"cancelled": "it was cancelled", "superseded": "a later request has taken its place"}[code]
        error = json.dumps({"code": code, "message": message})
        _end(connection, which, State.CANCELLED, now, error=error)


def finish(connection: sa.Connection, job: Job, result: dict[str, Any] | None = None) -> None:
    """Say that a job is done, in the transaction of what it did.

    Raises:
        JobOver: it was cancelled.
    """
    values = {"done": table.c.total, "result": None if result is None else json.dumps(result)}
    _end_running(connection, job, State.DONE, **values)


def _change(connection: sa.Connection, job: Job, **values: Any) -> None:
    if connection.execute(sa.update(table).where(_running(job)).values(values)).rowcount == 0:
        raise JobOver(f"job {job.id} was cancelled")


def _end_running(connection: sa.Connection, job: Job, state: State, **values: Any) -> None:
    if _end(connection, _running(job), state, _now_ms(), **values) == 0:
        raise JobOver(f"job {job.id} was cancelled")


def _end(connection: sa.Connection, which: sa.ColumnElement[bool], state: State, now: int, **values: Any) -> int:
    """End jobs and forget what they were to do; gives how many."""
    change = sa.update(table).where(which).values(state=state, ended_ms=now, **values).returning(table.c.number)
    ended = connection.execute(change).scalars().all()
    connection.execute(sa.delete(requests).where(requests.c.number.in_(ended)))
    return len(ended)


def _running(job: Job) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.id == job.id, table.c.state == State.RUNNING)


def _of(owner: Owner) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.role == owner.role, table.c.owner == owner.id)


def _job(row: sa.Row[Any]) -> Job:
    return Job(
        id=row.id,
        owner=Owner(row.role, row.owner),
        kind=Kind(row.kind),
        subject=row.subject,
        basis=row.basis,
        state=State(row.state),
        attempts=row.attempts,
        done=row.done,
        total=row.total,
        created_ms=row.created_ms,
        ended_ms=row.ended_ms,
        result=None if row.result is None else json.loads(row.result),
        error=None if row.error is None else json.loads(row.error),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
