"""Books on each database that Patronage runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.assembly import open_books
from serving.books import Books
from serving.settings import Settings
from tests.databases import new_data_dir


@pytest.fixture(params=["sqlite", "postgresql"])
def any_books(request: pytest.FixtureRequest, tmp_path: Path, model_cache: Path) -> Iterator[Books]:
    """Fresh books on either database, in a data directory of the test's own."""
    url = request.getfixturevalue("new_postgres") if request.param == "postgresql" else None
    with open_books(
        Settings(data_dir=new_data_dir(tmp_path / "data"), database_url=url, model_cache=model_cache)
    ) as found:
        yield found
