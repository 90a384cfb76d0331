"""What each database says in its own way: rows that may be there already, sums that grow, one view of the books."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, object]]) -> Sequence[sa.Row[Any]]:
    """Insert the rows whose primary key is not there yet, and give the keys of those."""
    statement = _insert(connection, table).on_conflict_do_nothing().returning(*table.primary_key.columns)
    return connection.execute(statement, list(rows)).all()


def add_to_sums(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[object, ...]]) -> None:
    """Add to the sums of a table, whose columns ``rows`` give in order, beginning those that are new at zero."""
    if rows:
        names = table.columns.keys()
        statement = _insert(connection, table)
        sums = {each.name: each + statement.excluded[each.name] for each in table.columns if not each.primary_key}
        statement = statement.on_conflict_do_update(index_elements=table.primary_key.columns.keys(), set_=sums)
        connection.execute(statement, [dict(zip(names, row, strict=True)) for row in rows])


@contextmanager
def snapshot(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection that sees the books as they are at its first query, whatever is posted meanwhile."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":  # SQLite's transactions are snapshots anyway
            connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


def _insert(connection: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
