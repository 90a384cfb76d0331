"""The row of the one server that the database has: who used it last, and until when it is sure to be alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from metering import sql
from metering.redis.instance import Mark, Place
from serving.store import deployment

METADATA = sa.MetaData()

table = sa.Table(
    "instance",
    METADATA,
    sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("generation", sa.String(32), nullable=False),
    sa.Column("previous", sa.String(32), nullable=False),
    sa.Column("place", sa.String(200), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("beat", sa.BigInteger, nullable=False),
    sa.Column("ends_ms", sa.BigInteger, nullable=False),
)
"""One row: a mark, and ``previous``, the generation before it, which Redis and the data directory may have still."""

_ONE: Final = {"one": 1}


class InstanceError(RuntimeError):
    """The books are used, or were used since, from another place; the message says where and what to do."""


class StillServed(InstanceError):
    """A server at another place has the lease of the books."""


@dataclass(frozen=True, slots=True)
class Last:
    """What the database knows of the server that used it last."""

    mark: Mark
    previous: str

    @property
    def generations(self) -> tuple[str, ...]:
        """Those that Redis and the data directory may have."""
        return tuple(each for each in (self.mark.generation, self.previous) if each)


def refuse_living(mark: Mark | None, here: Place) -> None:
    """Refuse where a server at another place has a lease that has not ended.

    Raises:
        StillServed: it has.
    """
    if mark is not None and mark.place.id != here.id and mark.left_ms > 0:
        raise StillServed(
            f"the books are in use by the server on {mark.place.host} in {mark.place.folder}, whose lease lasts for "
            f"{mark.left_ms / 1000:.0f} s yet: stop it, or wait until then if it has died. A copy of its data "
            "directory is not used beside it"
        )


def load(connection: sa.Connection) -> Last | None:
    """The row; None where no server of this version has used the database."""
    left = table.c.ends_ms - _now_ms(connection)
    row = connection.execute(sa.select(table, left.label("left_ms"))).first()
    if row is None:
        return None
    place = Place(row.place, row.host, row.folder)
    return Last(Mark(row.generation, place, row.beat, max(0, int(row.left_ms))), row.previous)


def take(
    engine: sa.Engine,
    before: Last | None,
    generation: str,
    here: Place,
    *,
    lease_ms: int,
    moving: Callable[[sa.Connection], None],
) -> Last | None:
    """Begin a generation here. One that begins at another place than the last fences that off.

    Args:
        engine: of the books.
        before: the row as it was looked at.
        generation: the new one.
        here: where it begins.
        lease_ms: for how long its lease lasts from now.
        moving: is called in the transaction where the place is another, and raises what stands against it.

    Returns:
        The row from now on; None, and nothing is changed, if somebody else was faster.

    Raises:
        InstanceError: a server at another place has a lease that has not ended.
    """
    with engine.begin() as connection:
        connection.execute(sa.update(table).values(beat=table.c.beat + 1))  # a write first: others wait from here on
        last = load(connection)
        if (last and last.mark.generation) != (before and before.mark.generation):
            connection.rollback()
            return None
        values = _values(generation, here) | {"ends_ms": _now_ms(connection) + lease_ms}
        if last is None:
            if not sql.insert_new(connection, table, [_ONE | _values(generation, here) | _begin()]):
                return None
        else:
            refuse_living(last.mark, here)
            values["previous"] = last.mark.generation
            if last.mark.place.id != here.id:
                moving(connection)
                deployment.fence_off(connection, generation)
        connection.execute(sa.update(table).values(values))
        return load(connection)


def settle(engine: sa.Engine) -> None:
    """Redis and the data directory have the generation too, and what they had before is not accepted any more."""
    with engine.begin() as connection:
        connection.execute(sa.update(table).values(previous=""))


def sign(engine: sa.Engine) -> Last | None:
    """Give a sign of life that is no lease: a copy that was made before is older from now on."""
    with engine.begin() as connection:
        connection.execute(sa.update(table).values(beat=table.c.beat + 1))
        return load(connection)


def renew(engine: sa.Engine, generation: str, lease_ms: int) -> tuple[Last | None, bool]:
    """Let the lease of a generation last for so long from now; the row, and whether it is still that generation."""
    with engine.begin() as connection:
        ends = {"ends_ms": _now_ms(connection) + lease_ms, "beat": table.c.beat + 1}
        done = connection.execute(sa.update(table).where(table.c.generation == generation).values(ends))
        return load(connection), done.rowcount == 1


def replace(connection: sa.Connection, mark: Mark) -> None:
    """Make this the generation that counts, whatever was there, in a transaction of the caller's."""
    place = mark.place
    sql.insert_new(connection, table, [_ONE | _values(mark.generation, place) | _begin()])
    values = _values(mark.generation, place) | _begin() | {"beat": mark.beat}
    connection.execute(sa.update(table).values(values))


def _values(generation: str, place: Place) -> dict[str, Any]:
    return {"generation": generation, "place": place.id, "host": place.host, "folder": place.folder}


def _begin() -> dict[str, Any]:
    return {"previous": "", "beat": 1, "ends_ms": 0}


def _now_ms(connection: sa.Connection) -> sa.ColumnElement[int]:
    """The database's clock: where several machines use it, theirs need not agree."""
    if connection.dialect.name == "postgresql":
        seconds: sa.ColumnElement[Any] = sa.extract("epoch", sa.func.clock_timestamp())
    else:
        seconds = (sa.func.julianday("now") - 2_440_587.5) * 86_400
    return sa.cast(seconds * 1000, sa.BigInteger)
