"""The drain through kill -9 at every step, a full disk, a busy database and a Redis that went back in time."""

from __future__ import annotations

import asyncio
import signal

import pytest
import sqlalchemy as sa

from metering import usage_index
from metering.redis import keys
from metering.redis.usage_streams import entries
from serving.store.database import open_database
from tests.contracts.test_drain import SHARDS, Rig, numbered
from tests.databases import new_sqlite
from tests.faults.drainer import POINTS
from tests.processes import ended, start
from tests.records import a_record

pytestmark = pytest.mark.anyio
CHARGE = 2_000_000


@pytest.fixture
def rig(engine, redis_url, tmp_path):
    return Rig(engine, redis_url, tmp_path / "segments")


async def assert_once(rig, names):
    """Every record is in the log once, has one receipt, and is paid for once; nothing is left in Redis."""
    assert sorted(rig.logged()) == sorted(names)
    assert sorted(row.id for row in rig.rows(usage_index.receipts)) == sorted(names)
    assert sum(row.queries for row in rig.rows(usage_index.usage_daily)) == len(names)
    assert rig.balances()["customer:acme"] == -CHARGE * len(names)
    assert (await rig.drain.lag()).records == 0


@pytest.mark.parametrize("any_redis_url", ["embedded", "cluster"], indirect=True)
@pytest.mark.parametrize("point", POINTS)
async def test_a_drainer_killed_at_any_point_loses_and_doubles_nothing(engine, any_redis_url, tmp_path, point):
    async with Rig(engine, any_redis_url, tmp_path / "segments") as rig:
        await rig.capture(*numbered(7), shard=0)
        await rig.capture(a_record(id="other"), shard=1)
        url = engine.url.render_as_string(hide_password=False)
        arguments = (point, any_redis_url, url, str(tmp_path / "segments"), rig.id, str(SHARDS))
        drainer = start("tests.faults.drainer", *arguments, env={}, output=tmp_path / "drainer.log")
        assert await asyncio.to_thread(ended, drainer) == -signal.SIGKILL, (tmp_path / "drainer.log").read_text()
        await rig.capture(a_record(id="later"), shard=0)
        for shard in range(SHARDS):
            await rig.client.delete(keys.drainer(shard))
        await rig.another().flush()
        await assert_once(rig, ["later", "other", *[record.id for record in numbered(7)]])
        assert rig.log.damaged() == []


async def test_a_full_disk_stops_one_shard_and_loses_nothing(rig, monkeypatch):
    async with rig:
        await rig.capture(*numbered(3), shard=0)
        await rig.capture(a_record(id="other"), shard=1)
        real = rig.log.write

        def full(shard, table):
            if shard == 0:
                raise OSError(28, "No space left on device")
            return real(shard, table)

        with monkeypatch.context() as patch:
            patch.setattr(rig.log, "write", full)
            with pytest.raises(OSError, match="No space left"):
                await rig.drain.drain()
        assert rig.logged() == ["other"]
        assert await rig.drain.drain() == 3
        await assert_once(rig, ["other", *[record.id for record in numbered(3)]])


async def test_a_disk_that_fails_in_a_write_leaves_no_segment_behind(rig, monkeypatch):
    async with rig:
        await rig.capture(*numbered(3))

        def fail(_):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("metering.durable.os.fsync", fail)
            with pytest.raises(OSError, match="Input/output error"):
                await rig.drain.drain()
        assert list(rig.log.path("s00/x").parent.iterdir()) == []
        await rig.drain.drain()
        await assert_once(rig, [record.id for record in numbered(3)])


async def test_a_busy_database_is_waited_for_and_then_tried_again(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.store.database._BUSY_TIMEOUT_MS", 100)
    engine = new_sqlite(tmp_path / "db")
    async with Rig(engine, redis_url, tmp_path / "segments") as rig:
        await rig.capture(*numbered(3))
        with engine.connect() as writer:
            writer.execute(sa.update(usage_index.shards).values(fence=usage_index.shards.c.fence))
            with pytest.raises(sa.exc.OperationalError, match="locked"):
                await rig.drain.drain()
        await rig.drain.drain()
        await assert_once(rig, [record.id for record in numbered(3)])
    engine.dispose()


async def test_a_database_that_goes_away_is_used_again_when_it_is_back(redis_url, tmp_path, new_postgres):
    engine = open_database(new_postgres)
    async with Rig(engine, redis_url, tmp_path / "segments") as rig:
        await rig.capture(*numbered(3))
        await rig.drain.drain()
        with sa.create_engine(new_postgres, poolclass=sa.NullPool).connect() as other:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            other.execute(sa.text(f"{query} AND pid <> pg_backend_pid()"))
        await rig.capture(a_record(id="later"))
        await rig.drain.drain()
        await assert_once(rig, ["later", *[record.id for record in numbered(3)]])
    engine.dispose()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-9] + b"x" + data[-8:]])
async def test_a_segment_that_was_damaged_before_it_was_registered_is_named_and_drained_anew(rig, monkeypatch, damage):
    async with rig:
        await rig.capture(*numbered(3))

        def die(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("metering.usage_index.add", die)
            with pytest.raises(KeyboardInterrupt):
                await rig.drain.drain()
        (left,) = rig.log.path("s00/x").parent.glob("*.parquet")
        left.write_bytes(damage(left.read_bytes()))
        await rig.drain.drain()
        assert rig.log.damaged() == [f"s00/{left.stem}.damaged"]
        await assert_once(rig, [record.id for record in numbered(3)])


async def test_a_redis_that_went_back_in_time_doubles_nothing_and_hides_nothing(rig):
    """Its clock and its file are from before: registered records are there again, new ones have ids that look old."""
    async with rig:
        await rig.capture(*numbered(3))
        before = entries(await rig.client.xrange(keys.usage(0)))
        await rig.drain.drain()
        await rig.client.delete(keys.usage(0))
        for entry, data in before:
            await rig.client.xadd(keys.usage(0), {"r": data}, id=entry)
        new = a_record(id="new").encode()
        mark = before[-1][0]
        await rig.client.delete(keys.usage(1))
        await rig.client.xadd(keys.usage(1), {"r": new}, id=mark)
        with rig.engine.begin() as connection:
            connection.execute(sa.update(usage_index.shards).values(last=f"{int(mark.split('-')[0]) + 10**9}-0"))
        await rig.another().drain()
        await rig.drain.flush()
        await assert_once(rig, ["new", *[record.id for record in numbered(3)]])


async def test_large_records_make_smaller_segments(rig, monkeypatch):
    """What the drain holds in memory is bounded by bytes, and not by records alone."""
    monkeypatch.setattr("metering.redis.usage_streams._PAGE", 5)
    monkeypatch.setattr("metering.drain.SEGMENT_BYTES_MAX", 8_000)
    async with rig:
        await rig.capture(*numbered(40))
        assert await rig.drain.drain() == 40
        sizes = [row.records for row in rig.rows(usage_index.segments)]
        assert sum(sizes) == 40
        assert max(sizes) < 40


async def test_a_record_of_a_newer_version_waits_for_that_version_and_holds_up_its_shard_alone(rig):
    newer = a_record(id="newer").encode().replace(b'"format":', b'"format":9', 1)
    async with rig:
        for shard in range(2):
            await rig.client.xadd(keys.usage(shard), {"r": a_record(id=f"known-{shard}").encode()})
        await rig.client.xadd(keys.usage(0), {"r": newer})
        with pytest.raises(ValueError, match="upgrade Patronage"):
            await rig.drain.drain()
        assert [row.id for row in rig.rows(usage_index.receipts)] == ["known-1"]
        assert newer in [data for _, data in entries(await rig.client.xrange(keys.usage(0)))]


async def test_a_record_of_an_older_version_is_completed_and_garbage_stops_its_shard(rig):
    async with rig:
        old = a_record(id="old", format=1).encode().replace(b',"idempotency":""', b"")
        await rig.client.xadd(keys.usage(0), {"r": old})
        await rig.capture(a_record(id="new"), shard=0)
        assert await rig.drain.drain() == 2
        await assert_once(rig, ["old", "new"])
        await rig.client.xadd(keys.usage(0), {"r": b'{"id": 1}'})
        await rig.capture(a_record(id="beside"), shard=1)
        with pytest.raises(ValueError, match="not a usage record"):
            await rig.drain.drain()
        assert "beside" in rig.logged()
        assert (await rig.drain.lag()).records == 1


async def test_the_lag_says_how_long_the_oldest_record_has_waited(rig):
    async with rig:
        assert (await rig.drain.lag()).seconds == pytest.approx(0, abs=0.1)
        await rig.client.xadd(keys.usage(1), {"r": a_record().encode()}, id="1-1")
        lag = await rig.drain.lag()
        assert lag.records == 1
        assert lag.seconds > 365 * 24 * 3600
