"""The schema, as migrations make it: what the code believes it to be, and append-only where it must be."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from metering import ledger
from retrieval import catalogue
from serving import ablation, closing, deployment, identity, rulebook, samples
from serving.database import open_database

PARTS = (
    catalogue.METADATA,
    ledger.METADATA,
    identity.METADATA,
    rulebook.METADATA,
    closing.METADATA,
    deployment.METADATA,
    ablation.METADATA,
    samples.METADATA,
)
APPEND_ONLY = (
    "transfers",
    "segments",
    "receipts",
    "runs",
    "statements",
    "price_books",
    "policies",
    "versions",
    "ablations",
)


def declared() -> sa.MetaData:
    """The tables of every package in one place."""
    whole = sa.MetaData()
    for part in PARTS:
        for table in part.tables.values():
            assert table.name not in whole.tables, f"{table.name} is declared twice"
            table.to_metadata(whole)
    return whole


def a_row(table: sa.Table, seed: int) -> dict[str, object]:
    """A row of values that differ by column and seed and fit their types."""
    row: dict[str, object] = {}
    for column in table.columns:
        if isinstance(column.type, sa.Integer):
            row[column.name] = seed
        else:
            assert isinstance(column.type, sa.String)
            row[column.name] = f"{seed}{column.name}"[: column.type.length]
    return row


def test_the_migrated_schema_is_what_the_packages_declare(engine: sa.Engine):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, declared()) == []


def test_checks_and_keys_are_what_the_packages_declare(engine: sa.Engine):
    """Alembic compares neither."""
    inspector = sa.inspect(engine)
    for table in declared().tables.values():
        checks = {str(each.name) for each in table.constraints if isinstance(each, sa.CheckConstraint)}
        assert {each["name"] for each in inspector.get_check_constraints(table.name)} == checks
        keys = inspector.get_pk_constraint(table.name)["constrained_columns"]
        assert keys == [column.name for column in table.primary_key.columns]


def test_a_database_that_is_opened_again_is_left_as_it_is(engine: sa.Engine):
    with engine.begin() as connection:
        connection.execute(sa.insert(deployment.METADATA.tables["deployment"]).values(name="a", value="kept"))
    again = open_database(engine.url.render_as_string(hide_password=False))
    try:
        with again.connect() as connection:
            query = sa.select(deployment.METADATA.tables["deployment"].c.value)
            assert connection.execute(query).scalars().all() == ["kept"]
            assert compare_metadata(MigrationContext.configure(connection), declared()) == []
    finally:
        again.dispose()


class TestAppendOnly:
    @pytest.fixture
    def filled(self, engine: sa.Engine) -> sa.Engine:
        """Every append-only table with two rows."""
        tables = declared().tables
        with engine.begin() as connection:
            for name in APPEND_ONLY:
                connection.execute(sa.insert(tables[name]), [a_row(tables[name], seed) for seed in (1, 2)])
        return engine

    def rows(self, engine: sa.Engine, name: str) -> list[tuple[object, ...]]:
        with engine.connect() as connection:
            return sorted(map(tuple, connection.execute(sa.select(declared().tables[name]))))

    def refused(self, engine: sa.Engine, name: str, statement: sa.Executable) -> bool:
        """Whether the database refuses the statement and the table is as before."""
        before = self.rows(engine, name)
        assert len(before) == 2
        try:
            with engine.begin() as connection:
                connection.execute(statement)
        except sa.exc.DBAPIError as error:
            return "is append-only" in str(error.orig) and self.rows(engine, name) == before
        return False

    def test_no_row_of_money_or_evidence_can_be_updated(self, filled: sa.Engine):
        for name in APPEND_ONLY:
            table = declared().tables[name]
            for column in table.columns:
                value = column if column.primary_key else a_row(table, 3)[column.name]
                assert self.refused(filled, name, sa.update(table).values({column: value})), f"{name}.{column.name}"

    def test_no_row_of_money_or_evidence_can_be_deleted(self, filled: sa.Engine):
        for name in APPEND_ONLY:
            table = declared().tables[name]
            first = next(iter(table.primary_key.columns))
            assert self.refused(filled, name, sa.delete(table)), name
            assert self.refused(filled, name, sa.delete(table).where(first == a_row(table, 1)[first.name])), name

    def test_no_row_of_money_or_evidence_can_be_replaced_by_an_insert(self, filled: sa.Engine):
        """SQLite's REPLACE deletes the old row, and fires no trigger for it unless told to."""
        postgresql = filled.dialect.name == "postgresql"
        for name in APPEND_ONLY:
            table = declared().tables[name]
            keys = [column.name for column in table.primary_key.columns]
            row = a_row(table, 3) | {key: a_row(table, 1)[key] for key in keys}
            if postgresql:
                from sqlalchemy.dialects.postgresql import insert  # noqa: PLC0415 # each dialect has its own

                statement: sa.Executable = (
                    insert(table).values(row).on_conflict_do_update(index_elements=keys, set_=row)
                )
            else:
                statement = sa.insert(table).prefix_with("OR REPLACE").values(row)
            assert self.refused(filled, name, statement), name

    def test_no_table_of_money_or_evidence_can_be_truncated(self, filled: sa.Engine):
        if filled.dialect.name == "sqlite":
            pytest.skip("SQLite has no TRUNCATE")
        for name in APPEND_ONLY:
            assert self.refused(filled, name, sa.text(f"TRUNCATE {name}")), name

    def test_a_row_can_always_be_added(self, filled: sa.Engine):
        for name in APPEND_ONLY:
            table = declared().tables[name]
            with filled.begin() as connection:
                connection.execute(sa.insert(table).values(a_row(table, 3)))
            assert len(self.rows(filled, name)) == 3
