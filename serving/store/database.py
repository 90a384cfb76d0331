"""The SQL database: opened, migrated, and configured so that money is safe in it."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import sqlalchemy as sa

_BUSY_TIMEOUT_MS = 30_000
_CONNECTIONS_MORE = 60
"""Beside the five that are kept: as many as there are threads. Those who wait for a lock leave others one to read."""


class DatabaseError(RuntimeError):
    """The database cannot be used; the message says why and what to do."""


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite file at ``path``, whatever characters that has."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def open_database(url: str) -> sa.Engine:
    """An engine for ``url`` with the schema of this version of Patronage.

    Transactions that write begin with a write, so that SQLite's lock is waited for and never upgraded.

    Raises:
        DatabaseError: it does not answer, or was written by a newer version.
    """
    try:
        engine = sa.create_engine(url, max_overflow=_CONNECTIONS_MORE, pool_pre_ping=not url.startswith("sqlite"))
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise DatabaseError(f"database URL cannot be used: {error}") from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    try:
        _migrate(engine)
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise DatabaseError(f"the database cannot be used: {error.orig}") from error
    except DatabaseError:
        engine.dispose()
        raise
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, not where pysqlite guesses
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",  # what is destroyed is overwritten, and not only forgotten
        "recursive_triggers=ON",  # without it, INSERT OR REPLACE would slip by the triggers that refuse a DELETE
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _migrate(engine: sa.Engine) -> None:
    current = _revision(engine)
    with as_file(files("serving.store.migrations")) as folder:
        known = sorted(path.stem[1:5] for path in (folder / "versions").glob("m[0-9]*.py"))
        if current == known[-1]:
            return
        if current is not None and current not in known:
            raise DatabaseError(
                f"the database was written by a newer version of Patronage (schema {current}): upgrade Patronage"
            )
        from alembic import command  # noqa: PLC0415 # a third of a second that only a migration needs
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _revision(engine: sa.Engine) -> str | None:
    """The revision in the database; migration files are named after theirs, ``m0001_...``."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one())
