"""Fixtures that more than one folder of tests uses. Everything real is started here, and ended with the tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from redis import Redis

from metering.redis_server import RedisServer
from retrieval.embedding import MiniLMEmbedder
from serving.assembly import Books, open_books
from serving.database import open_database, sqlite_url
from serving.settings import Settings
from tests.redis_servers import RedisClusterProcesses, RedisProcess, cluster, external, flush

# `make check` looks quickly. `make test` takes the full profile: 1,000 examples, and more where money is at stake. Both
# take the same examples each time, so that what passed here passes elsewhere. `--hypothesis-profile=explore` takes new
# ones: what it finds becomes an @example and is mended.
_OPTIONS: Any = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("check", max_examples=30, derandomize=True, **_OPTIONS)
settings.register_profile("full", max_examples=1_000, derandomize=True, **_OPTIONS)
settings.register_profile("explore", max_examples=1_000, **_OPTIONS)
settings.load_profile("check")


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
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server of the test session's own; the URL of its maintenance database.

    Its data lies outside pytest's folders, which another session that starts would close to PostgreSQL's user.
    """
    import pgserver  # noqa: PLC0415 # warns at import where the session has no runtime folder

    server = pgserver.get_server(tempfile.mkdtemp(prefix="patronage-postgres-"), cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()


@pytest.fixture
def new_postgres(postgres_server: str) -> Iterator[Callable[[], str]]:
    """Makes fresh databases on the PostgreSQL server, and gives their URLs."""
    admin = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    made: list[str] = []

    def make() -> str:
        name = f"patronage_{id(made):x}_{len(made)}"
        with admin.connect() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
        made.append(name)
        return sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)

    yield make
    with admin.connect() as connection:
        for name in made:
            connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """A migrated database of each kind that Patronage runs on."""
    if request.param == "sqlite":
        found = open_database(sqlite_url(tmp_path / "test.sqlite3"))
    else:
        found = open_database(request.getfixturevalue("new_postgres")())
    yield found
    found.dispose()


@pytest.fixture
def books(tmp_path: Path, model_cache: Path) -> Iterator[Books]:
    """Fresh books in a data directory of the test's own."""
    with open_books(Settings(data_dir=tmp_path / "data", model_cache=model_cache)) as found:
        yield found
