"""Databases for tests: every one is a copy of a database that was migrated once, for migrating takes most of a test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import sqlalchemy as sa

from serving.store.database import open_database, sqlite_url
from tests.scratch import memory

_TEMPLATE = "patronage_template"


@cache
def _migrated() -> bytes:
    """The file of an empty SQLite database with the schema of this version."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.sqlite3"
        open_database(sqlite_url(path)).dispose()
        return path.read_bytes()


def new_sqlite(path: Path) -> sa.Engine:
    """A new SQLite database at ``path``."""
    path.write_bytes(_migrated())
    return open_database(sqlite_url(path))


def new_data_dir(path: Path) -> Path:
    """A new data directory at ``path``, of which there is the database so far."""
    path.mkdir(mode=0o700)
    (path / "patronage.sqlite3").write_bytes(_migrated())
    return path


class Postgres:
    """A PostgreSQL server that makes databases."""

    def __init__(self, url: str) -> None:
        """``url`` is of its maintenance database."""
        self._url = sa.make_url(url)
        self._admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        # What is synced only matters to a machine that fails.
        self._run("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()")
        self._made = 0
        self._run(f"CREATE DATABASE {_TEMPLATE}")
        open_database(self._named(_TEMPLATE)).dispose()

    def make(self) -> str:
        """A new database with the schema of this version; its URL."""
        # By copying files, which is much the fastest where nothing is synced.
        return self._make(f"TEMPLATE {_TEMPLATE} STRATEGY file_copy")

    def make_empty(self) -> str:
        """A new database without a schema; its URL."""
        return self._make("")

    def _make(self, options: str) -> str:
        self._made += 1
        name = f"patronage_{self._made}"
        self._run(f"CREATE DATABASE {name} {options}")
        return self._named(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        self._run(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")

    def close(self) -> None:
        self._admin.dispose()

    def _named(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    def _run(self, *statements: str) -> None:
        with self._admin.connect() as connection:
            for each in statements:
                connection.execute(sa.text(each))


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of our own.

    Its data lies outside pytest's folders, which another session that starts would close to PostgreSQL's user.
    """
    import pgserver  # noqa: PLC0415 # warns at import where the session has no runtime folder

    server = pgserver.get_server(tempfile.mkdtemp(prefix="pg-", dir=memory()), cleanup_mode="delete")
    found = Postgres(server.get_uri().replace("postgresql://", "postgresql+psycopg://"))
    try:
        yield found
    finally:
        found.close()
        server.cleanup()
