"""A catalogue of a test's own, without the price of migrating a database for each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.catalogue import Catalogue
from serving.database import open_database, sqlite_url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database with the schema of this version."""
    path = tmp_path_factory.mktemp("database") / "empty.sqlite3"
    open_database(sqlite_url(path)).dispose()
    return path


@pytest.fixture
def catalogue(migrated_file: Path, tmp_path: Path) -> Iterator[Catalogue]:
    """An empty catalogue."""
    engine = open_database(sqlite_url(Path(shutil.copy(migrated_file, tmp_path / "catalogue.sqlite3"))))
    yield Catalogue(engine)
    engine.dispose()
