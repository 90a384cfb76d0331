"""Catalogues of a test's own, without the price of migrating a database and embedding a library for each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.catalogue import Catalogue, prepare
from retrieval.documents import Document
from retrieval.embedding import MiniLMEmbedder
from retrieval.passage_table import PreparedPassage
from serving.database import open_database, sqlite_url
from tests.unit.retrieval.library import shelf


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


@pytest.fixture(scope="session")
def prepared_shelf(embedder: MiniLMEmbedder) -> list[tuple[Document, list[PreparedPassage]]]:
    """The whole library, cut, analysed and embedded."""
    return [(each, prepare(each, embedder)) for each in shelf()]


@pytest.fixture
def library(
    catalogue: Catalogue, embedder: MiniLMEmbedder, prepared_shelf: list[tuple[Document, list[PreparedPassage]]]
) -> Catalogue:
    """The same catalogue, with the whole library in it."""
    catalogue.put(prepared_shelf, embedder.name)
    return catalogue
