"""Catalogues of a test's own, without the price of embedding a library for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.catalogue import Catalogue, prepare
from retrieval.documents import Document
from retrieval.embedding import MiniLMEmbedder
from retrieval.passage_table import PreparedPassage
from tests.databases import new_sqlite
from tests.unit.retrieval.library import shelf


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    """An empty catalogue."""
    engine = new_sqlite(tmp_path / "catalogue.sqlite3")
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
