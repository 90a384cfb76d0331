"""Fixtures that more than one folder of tests uses. Everything real is started here, and ended with the tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from redis import Redis

from metering.redis.server import RedisServer
from retrieval.embedding import MiniLMEmbedder
from serving.assembly import open_books
from serving.books import Books
from serving.settings import Settings
from serving.store.database import open_database
from tests.databases import Postgres, new_data_dir, new_sqlite, postgres
from tests.redis_servers import RedisClusterProcesses, RedisProcess, cluster, external, flush
from tests.repeating import pytest_terminal_summary
from tests.scratch import pytest_configure, pytest_unconfigure

ROOT = Path(__file__).parents[1]

# Tests run in more processes than there are cores. A sum that torch divides among threads waits for the last of them by
# counting, on the core that this one needs: three such tests beside each other took ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A change is tested with few examples, and more where money is at stake: the same ones each time, so that what passed
# here passes elsewhere. `make explore` takes many new ones each time and keeps those that failed, to begin with them
# when it is run again; what it finds becomes an @example and is mended.
_OPTIONS: Any = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("check", max_examples=30, derandomize=True, **_OPTIONS)
settings.register_profile("full", max_examples=100, derandomize=True, **_OPTIONS)
settings.register_profile(
    "explore",
    max_examples=1_000,
    database=DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "examples"),
    print_blob=True,
    **_OPTIONS,
)
settings.load_profile("check")

__all__ = ["pytest_configure", "pytest_terminal_summary", "pytest_unconfigure"]  # pytest finds its hooks in this module


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutines that are tests run on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def model_cache() -> Path:
    """One folder for the model files, whatever the data directories: they take seconds to make."""
    return Path(tempfile.gettempdir()) / "patronage-tests-models"


@pytest.fixture(scope="session")
def embedder(model_cache: Path) -> MiniLMEmbedder:
    """The packaged embedding model."""
    return MiniLMEmbedder(model_cache)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An embedded Redis of the test session's own; its URL."""
    with RedisServer(tmp_path_factory.mktemp("redis"), fsync="everysec") as server:
        yield server.url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The session's Redis, empty: the tests of one session are different deployments."""
    with Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture(scope="session")
def redis_external() -> Iterator[RedisProcess]:
    """A Redis of the test session's own that runs outside of Patronage."""
    with external() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisClusterProcesses]:
    """A Redis Cluster of three masters, of the test session's own."""
    with cluster() as servers:
        yield servers


@pytest.fixture(params=["embedded", "server", "cluster"])
def any_redis_url(request: pytest.FixtureRequest) -> str:
    """Each of the three ways to have a Redis, empty."""
    if request.param == "embedded":
        return str(request.getfixturevalue("redis_url"))
    if request.param == "server":
        server: RedisProcess = request.getfixturevalue("redis_external")
        flush([server])
        return server.url
    servers: RedisClusterProcesses = request.getfixturevalue("redis_cluster")
    flush(servers.nodes)
    return servers.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server of the test session's own."""
    with postgres() as found:
        yield found


@pytest.fixture
def new_postgres(postgres_server: Postgres) -> Iterator[str]:
    """The URL of a new PostgreSQL database with the schema of this version."""
    url = postgres_server.make()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def empty_postgres(postgres_server: Postgres) -> Iterator[str]:
    """The URL of a new PostgreSQL database without a schema."""
    url = postgres_server.make_empty()
    yield url
    postgres_server.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """A migrated database of each kind that Patronage runs on."""
    if request.param == "sqlite":
        found = new_sqlite(tmp_path / "test.sqlite3")
    else:
        found = open_database(request.getfixturevalue("new_postgres"))
    yield found
    found.dispose()


@pytest.fixture
def books(tmp_path: Path, model_cache: Path) -> Iterator[Books]:
    """Fresh books in a data directory of the test's own."""
    with open_books(Settings(data_dir=new_data_dir(tmp_path / "data"), model_cache=model_cache)) as found:
        yield found
