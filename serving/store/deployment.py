"""The deployment: what is decided once, when the data directory is made."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from metering import sql, usage_index
from metering.money import Currency

METADATA = sa.MetaData()

table = sa.Table(
    "deployment",
    METADATA,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.String(400), nullable=False),
)

_REBUILDS: Final = "rebuilds"
_FENCE: Final = "fence"


@dataclass(frozen=True, slots=True)
class Deployment:
    """The identity of one set of books."""

    id: str
    currency: Currency
    shards: int
    directory: str
    """The id of the data directory that holds the log and the keys."""
    rebuilds: int = 0
    """How often the meter was rebuilt."""
    fence: str = ""
    """Made anew when the books are taken over to another place or rebuilt; empty until then."""

    @property
    def origin(self) -> str:
        """The name under which this deployment signs."""
        return f"patronage/{self.id}"

    @property
    def meter(self) -> str:
        """The id that the meter's books carry: another one after each rebuild, and for whoever takes them over.

        So older books are refused, and so is a server that does not know yet that another has its books.
        """
        if self.fence:
            return f"{self.id}/{self.rebuilds}/{self.fence}"
        return f"{self.id}/{self.rebuilds}" if self.rebuilds else self.id


def load(engine: sa.Engine) -> Deployment | None:
    """The deployment of a database, or None if it is new."""
    with engine.connect() as connection:
        values = {row.name: row.value for row in connection.execute(sa.select(table))}
    if not values:
        return None
    currency = Currency(values["currency"], int(values["scale"]))
    return Deployment(
        values["id"],
        currency,
        int(values["shards"]),
        values["directory"],
        int(values.get(_REBUILDS, "0")),
        values.get(_FENCE, ""),
    )


def begin(connection: sa.Connection, currency: Currency, shards: int, directory: str) -> Deployment:
    """Decide what is decided once, in a transaction of the caller's."""
    deployment = Deployment(uuid.uuid4().hex, currency, shards, directory)
    values = {
        "id": deployment.id,
        "currency": currency.code,
        "scale": str(currency.scale),
        "shards": str(shards),
        "directory": directory,
    }
    connection.execute(sa.insert(table), [{"name": name, "value": value} for name, value in values.items()])
    usage_index.begin(connection, shards)
    return deployment


def meter_begun(engine: sa.Engine) -> bool:
    """Whether a meter has carried this deployment's books before: then one that does not has lost them."""
    with engine.connect() as connection:
        return connection.execute(sa.select(table.c.value).where(table.c.name == "meter")).first() is not None


def begin_meter(engine: sa.Engine) -> None:
    """Remember that a meter carries the books."""
    with engine.begin() as connection:
        sql.insert_new(connection, table, [{"name": "meter", "value": "begun"}])


def rebuilt_meter(connection: sa.Connection, rebuilds: int, fence: str) -> None:
    """Serve from the meter's books of this rebuild, and from no older ones, once the caller's transaction is in."""
    sql.insert_new(connection, table, [{"name": "meter", "value": "begun"}, {"name": _REBUILDS, "value": "0"}])
    connection.execute(sa.update(table).where(table.c.name == _REBUILDS).values(value=str(rebuilds)))
    fence_off(connection, fence)


def fence(connection: sa.Connection) -> str:
    """The fence of the books, as it is now."""
    return connection.execute(sa.select(table.c.value).where(table.c.name == _FENCE)).scalar() or ""


def fence_off(connection: sa.Connection, fence: str) -> None:
    """Refuse everybody who knows another fence, from this transaction on."""
    sql.insert_new(connection, table, [{"name": _FENCE, "value": fence}])
    connection.execute(sa.update(table).where(table.c.name == _FENCE).values(value=fence))
