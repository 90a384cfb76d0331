"""The drain: records a second into segments and the ledger, against one plain SQL row a record; and its memory.

``python -m tests.benchmarks.drain URL DATABASE FOLDER DEPLOYMENT`` is the child that drains, for its memory alone.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import sqlalchemy as sa
from redis import Redis

from metering.drain import SEGMENT_RECORDS_MAX, Drain
from metering.money import Currency
from metering.records import UsageRecord
from metering.redis import keys
from metering.redis.connection import connect
from metering.redis.server import RedisServer
from metering.usage_log import UsageLog
from serving.store import deployment
from serving.store.database import open_database, sqlite_url
from tests.benchmarks.measure import Result
from tests.records import MOMENT_MS, a_record, a_use

RECORDS, ROUNDS = 50_000, 3
FEW, MANY = 10_000, 1_000_000
SHARDS = 4
CUSTOMERS, DOCUMENTS = 200, 5
_MEGABYTE = 1024 * 1024


def run() -> Iterator[Result]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="patronage-bench-")))
        url = stack.enter_context(RedisServer(folder / "redis", fsync="everysec")).url
        with Redis.from_url(url) as redis:
            for name, database in (("SQLite", sqlite_url), ("PostgreSQL", stack.enter_context(postgres()))):
                ours, theirs = _rates(redis, url, folder / name, database)
                yield Result(f"drain and post, {name}", ours, "one SQL row a record", theirs, "records/s")
            few, many = (_memory(redis, url, folder / str(count), count) for count in (FEW, MANY))
            yield Result(
                f"memory to drain {MANY:,} records", many, f"to drain {FEW:,}", few, "MB", more_is_better=False
            )


def typical(count: int) -> Iterator[UsageRecord]:
    """Records of queries over five documents each, by many customers."""
    uses = tuple(a_use(f"document-{i}", f"contributor-{i}") for i in range(DOCUMENTS))
    values = tuple(i * 1_000_003 % 10**9 for i in range(2**DOCUMENTS))
    for i in range(count):
        yield a_record(id=f"{MOMENT_MS:x}-{i:012x}", account=f"customer-{i % CUSTOMERS}", uses=uses, values=values)


def short(count: int) -> Iterator[UsageRecord]:
    """Records of queries that found nothing: a million of them fit into a Redis for tests."""
    for i in range(count):
        yield a_record(id=f"{i:012x}", account=f"customer-{i % CUSTOMERS}", uses=(), values=(0,))


def _fill(redis: Redis, records: Iterator[UsageRecord]) -> None:
    while True:
        pipeline = redis.pipeline(transaction=False)
        for place, record in zip(range(5_000), records, strict=False):
            pipeline.xadd(keys.usage(place % SHARDS), {"r": record.encode()})
        if not pipeline.execute():
            return


def _rates(redis: Redis, url: str, folder: Path, database: Callable[[Path], str]) -> tuple[float, float]:
    best = [0.0, 0.0]
    for round_ in range(ROUNDS):
        for place, contender in enumerate((_ours, _rows)):
            place_ = folder / f"{round_}-{place}"
            place_.mkdir(parents=True)
            redis.flushall()
            _fill(redis, typical(RECORDS))
            seconds = contender(redis, url, place_, database(place_ / "database"))
            best[place] = max(best[place], RECORDS / seconds)
    return best[0], best[1]


def _ours(redis: Redis, url: str, folder: Path, database: str) -> float:
    engine = open_database(database)
    name = _begin(redis, engine)
    began = time.perf_counter()
    assert asyncio.run(_drain(url, engine, folder, name)) == RECORDS
    seconds = time.perf_counter() - began
    engine.dispose()
    return seconds


def _rows(redis: Redis, _: str, __: Path, database: str) -> float:
    """What one would write first: each record a row with its numbers and its text, a page a transaction."""
    engine = open_database(database)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE usage (id TEXT PRIMARY KEY, account TEXT, charge BIGINT, body TEXT)")
    mark = "?" if engine.dialect.name == "sqlite" else "%s"
    insert = f"INSERT INTO usage VALUES ({', '.join([mark] * 4)})"  # a constant
    began = time.perf_counter()
    for shard in range(SHARDS):
        stream = keys.usage(shard)
        while page := redis.xrange(stream, count=SEGMENT_RECORDS_MAX):
            found = [(json.loads(fields[b"r"]), fields[b"r"].decode()) for _, fields in page]
            with engine.begin() as connection:
                rows = [(record["id"], record["account"], record["charge"], text) for record, text in found]
                connection.exec_driver_sql(insert, rows)
            redis.xdel(stream, *[entry for entry, _ in page])
    seconds = time.perf_counter() - began
    engine.dispose()
    return seconds


def _memory(redis: Redis, url: str, folder: Path, count: int) -> float:
    """The most memory that a process takes which does nothing but drain, in megabytes."""
    folder.mkdir()
    redis.flushall()
    _fill(redis, short(count))
    database = sqlite_url(folder / "database")
    engine = open_database(database)
    command = [sys.executable, "-m", "tests.benchmarks.drain", url, database, str(folder), _begin(redis, engine)]
    engine.dispose()
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert done["records"] == count
    return float(done["bytes"]) / _MEGABYTE


def _begin(redis: Redis, engine: sa.Engine) -> str:
    with engine.begin() as connection:
        name = deployment.begin(connection, Currency.of("USD"), SHARDS, "directory").id
    for shard in range(SHARDS):
        redis.set(keys.deployment(shard), name)
    return name


async def _drain(url: str, engine: sa.Engine, folder: Path, name: str) -> int:
    client = connect(url)
    try:
        return await Drain(client, engine, UsageLog(folder / "segments"), deployment=name, shards=SHARDS).drain()
    finally:
        await client.aclose()


@contextmanager
def postgres() -> Iterator[Callable[[Path], str]]:
    """A PostgreSQL server; gives a fresh database's URL for each folder."""
    import pgserver  # noqa: PLC0415 # warns at import where the session has no runtime folder

    server = pgserver.get_server(tempfile.mkdtemp(prefix="patronage-postgres-"), cleanup_mode="delete")
    url = sa.make_url(server.get_uri().replace("postgresql://", "postgresql+psycopg://"))
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")

    def make(path: Path) -> str:
        name = f"bench_{path.parent.name.replace('-', '_')}"
        with admin.connect() as connection:
            connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
        return url.set(database=name).render_as_string(hide_password=False)

    try:
        yield make
    finally:
        admin.dispose()
        server.cleanup()


def _child(url: str, database: str, folder: str, name: str) -> None:
    engine = sa.create_engine(database)
    process, over = psutil.Process(), threading.Event()
    sizes = [process.memory_info().rss]

    def watch() -> None:
        while not over.wait(0.01):
            sizes.append(process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    records = asyncio.run(_drain(url, engine, Path(folder), name))
    over.set()
    watching.join()
    sys.stdout.write(json.dumps({"records": records, "bytes": max(sizes)}))


if __name__ == "__main__":
    _child(*sys.argv[1:])
