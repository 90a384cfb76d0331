"""One real server, shared by the end-to-end tests. A test that spends makes a customer of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import Account, World, open_world


@pytest.fixture(scope="session")
def e2e_env(model_cache: Path) -> dict[str, str]:
    """What every process of these tests is started with."""
    return {"PATRONAGE_MODEL_CACHE": str(model_cache)}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[World]:
    """The shared server. Tests leave its open period open and its corpus as it is."""
    with open_world(tmp_path_factory.mktemp("world") / "data", e2e_env) as found:
        yield found


@pytest.fixture
def customer(world: World) -> Account:
    """A new customer with 1.00 USD."""
    return world.customer()
