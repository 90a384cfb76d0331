"""The schema, as migrations make it: what the code believes it to be, and append-only where it must be."""

from __future__ import annotations

import sqlite3
from contextlib import closing as ending
from contextlib import suppress

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from metering import credit, ledger, period_gate, usage_index, withdrawals
from retrieval import catalogue, sources
from serving.answering import sampled_texts
from serving.closing import ablation, closing, outcomes, transparency_log
from serving.notify import alerts, outbox
from serving.people import identity
from serving.rules import rulebook
from serving.store import deployment, instance, jobs
from serving.store.database import open_database

PARTS = (
    catalogue.METADATA,
    sources.METADATA,
    ledger.METADATA,
    usage_index.METADATA,
    credit.METADATA,
    period_gate.METADATA,
    withdrawals.METADATA,
    identity.METADATA,
    rulebook.METADATA,
    closing.METADATA,
    outcomes.METADATA,
    transparency_log.METADATA,
    deployment.METADATA,
    instance.METADATA,
    jobs.METADATA,
    alerts.METADATA,
    outbox.METADATA,
    ablation.METADATA,
    sampled_texts.METADATA,
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
    "credit_limits",
    "idempotency",
    "closed_periods",
    "segment_hours",
    "outcomes",
    "run_log",
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

    def unchanged(self, engine: sa.Engine, name: str, statement: sa.Executable) -> bool:
        """Whether the database refuses the statement, or ignores it: the table is as before."""
        before = self.rows(engine, name)
        with suppress(sa.exc.DBAPIError), engine.begin() as connection:
            connection.execute(statement)
        return len(before) == 2 and self.rows(engine, name) == before

    def test_no_row_of_money_or_evidence_can_be_replaced_by_an_insert(self, filled: sa.Engine):
        postgresql = filled.dialect.name == "postgresql"
        for name in APPEND_ONLY:
            table = declared().tables[name]
            keys = [column.name for column in table.primary_key.columns]
            row = a_row(table, 3) | {key: a_row(table, 1)[key] for key in keys}
            if postgresql:
                from sqlalchemy.dialects.postgresql import insert  # noqa: PLC0415 # each dialect has its own

                upsert = insert(table).values(row).on_conflict_do_update(index_elements=keys, set_=row)
                assert self.refused(filled, name, upsert), name
            else:
                replace = sa.insert(table).prefix_with("OR REPLACE").values(row)
                assert self.unchanged(filled, name, replace), name

    @pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
    @pytest.mark.parametrize("recursive", ["ON", "OFF"])
    def test_no_program_replaces_a_row_of_sqlite(self, filled: sa.Engine, recursive: str):
        """Another program does not ask for recursive triggers, without which REPLACE deletes unseen."""
        with ending(sqlite3.connect(str(filled.url.database), isolation_level=None)) as connection:
            connection.execute(f"PRAGMA recursive_triggers={recursive}")
            for name in APPEND_ONLY:
                table = declared().tables[name]
                before = self.rows(filled, name)
                uniques = [each.columns for each in table.constraints if isinstance(each, sa.UniqueConstraint)]
                keys = [[each.name for each in columns] for columns in (table.primary_key.columns, *uniques)]
                for key in keys if keys[0] == ["version"] else [*keys, ["rowid"]]:  # a version is the row's number
                    row = a_row(table, 3) | {each: 1 if each == "rowid" else a_row(table, 1)[each] for each in key}
                    columns, holes = ", ".join(f'"{each}"' for each in row), ", ".join("?" * len(row))
                    with suppress(sqlite3.IntegrityError):
                        connection.execute(f"REPLACE INTO {name} ({columns}) VALUES ({holes})", list(row.values()))
                    assert self.rows(filled, name) == before, f"{name} by {key}"
                for verb in (f"UPDATE {name} SET rowid = rowid + 5", f"DELETE FROM {name}"):
                    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                        connection.execute(verb)

    @pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
    def test_no_replication_role_and_no_merge_changes_a_row_of_postgresql(self, filled: sa.Engine):
        for name in APPEND_ONLY:
            column = next(iter(declared().tables[name].columns)).name
            for statement in (
                f"UPDATE {name} SET {column} = {column}",
                f"DELETE FROM {name}",
                f"TRUNCATE {name}",
                f"WITH gone AS (DELETE FROM {name} RETURNING 1) SELECT count(*) FROM gone",
                f"MERGE INTO {name} t USING {name} s ON t.{column} = s.{column} WHEN MATCHED THEN DELETE",
            ):
                with filled.connect() as connection:
                    connection.execute(sa.text("SET session_replication_role = replica"))
                    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
                        connection.execute(sa.text(statement))
            assert len(self.rows(filled, name)) == 2

    @pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
    def test_no_table_of_money_or_evidence_can_be_truncated(self, filled: sa.Engine):
        for name in APPEND_ONLY:
            assert self.refused(filled, name, sa.text(f"TRUNCATE {name}")), name

    def test_a_row_can_always_be_added(self, filled: sa.Engine):
        for name in APPEND_ONLY:
            table = declared().tables[name]
            with filled.begin() as connection:
                connection.execute(sa.insert(table).values(a_row(table, 3)))
            assert len(self.rows(filled, name)) == 3
