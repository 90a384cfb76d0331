"""What decides gives the same bytes on every processor and in any number of threads; determinism is invariant 7."""

from __future__ import annotations

import json

import pytest

from retrieval.catalogue import Catalogue
from tests.databases import new_sqlite
from tests.deciding import fill
from tests.processors import configurations, runnable, start


def test_what_decides_has_the_same_bytes_on_every_processor(tmp_path):
    if len(runnable()) < 2:
        pytest.skip("this machine cannot compute as another processor")
    database = tmp_path / "catalogue.sqlite3"
    engine = new_sqlite(database)
    fill(Catalogue(engine))
    engine.dispose()
    processes = {name: start("tests.deciding", [str(database)], environment) for name, environment in configurations()}
    printed = {name: json.loads(process.communicate()[0]) for name, process in processes.items()}
    (first, expected), *others = ((name, each["steps"]) for name, each in printed.items())
    assert len(expected) > 50
    for name, found in others:
        assert found == expected, f"{first} and {name} differ"
    libraries = {json.dumps(each["libraries"]) for each in printed.values()}
    assert len(libraries) > 1, "the variables change nothing here, so that nothing was shown"
