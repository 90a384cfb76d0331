"""One server is one: a copy that meets the original, alive or newer, in the database or in Redis is refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
from contextlib import asynccontextmanager, closing

import pytest

from metering.drain import DrainBusy
from metering.meter import MeterError, MeterLost, MeterUnavailable, Request
from metering.pricing import Usage
from metering.redis.connection import connect
from metering.redis.instance import InstanceMark, Mark, Place
from serving.assembly import open_books, open_metering
from serving.money.funding import credit, open_account
from serving.rules.rulebook import EXTRACTIVE
from serving.settings import Settings
from serving.store import instance, leases
from serving.store.instance import InstanceError
from serving.upkeep import rebuilding
from serving.upkeep.audit import audit
from tests.faults.conftest import QUESTIONS
from tests.processes import ended
from tests.records import a_record
from tests.redis_servers import flush
from tests.servers import Server, cli, run, wait_for

pytestmark = pytest.mark.anyio


OLDER = r"do not belong together|lacks segment"


class Site:
    """A data directory with its settings; copies of it share the Redis or the database, or both, as they say."""

    def __init__(self, folder, **shared):
        self.folder = folder
        self.shared = shared

    def copy(self, folder):
        """As ``cp -a`` makes it, while nothing runs that writes."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("redis.sock"))
        return Site(folder, **self.shared)

    def books(self):
        return open_books(Settings(data_dir=self.folder, **self.shared))

    @asynccontextmanager
    async def open(self, *, serving=False):
        with self.books() as books:
            async with open_metering(books, serving=serving) as metering:
                yield metering

    async def begin(self):
        """Make it, with a customer who has paid in, by a command."""
        async with self.open() as metering:
            metering.books.identities.add_customer("acme", "acme")
            await open_account(metering.books, metering.meter, "acme")
            await credit(metering.books, metering.meter, "acme", 10**9, "invoice")
        return self

    async def serve(self, name):
        """A server's life in which one query is charged; it ends in good order."""
        async with self.open(serving=True) as metering:
            await charge(metering, name)
            await metering.drain.flush()

    async def failed(self):
        async with self.open() as metering:
            return [check for check in await audit(metering.books, metering) if not check["ok"]]


async def charge(metering, name):
    books = metering.books
    price, policy = books.rulebook.prices.price(EXTRACTIVE), books.rulebook.policy
    usage = Usage(9, 40, 2)
    charged, cost = price.charge(usage), price.cost(usage)
    platform, royalty = policy.divide(charged, cost)
    record = a_record(id=name, account="acme", charge=charged, cost=cost, platform=platform, royalty=royalty)
    hold = await metering.meter.authorize(Request(name, "acme", "key", charged))
    await metering.meter.capture(hold, record)


@pytest.fixture(params=["same Redis", "same database", "same both"])
def site(request, tmp_path, model_cache):
    """Copies share what the name says; what they do not share is copied with the directory."""
    shared = {"model_cache": model_cache}
    if request.param != "same database":
        server = request.getfixturevalue("redis_external")
        flush([server])
        shared["redis_url"] = server.url
    if request.param != "same Redis":
        shared["database_url"] = request.getfixturevalue("empty_postgres")
    return Site(tmp_path / "data", **shared)


@pytest.fixture
def one_redis(tmp_path, redis_external, model_cache):
    flush([redis_external])
    return Site(tmp_path / "data", model_cache=model_cache, redis_url=redis_external.url)


async def test_a_copy_beside_the_living_original_is_refused_as_server_and_as_command(site, tmp_path):
    await site.begin()
    await site.serve("before")
    copy = site.copy(tmp_path / "copy")
    async with site.open(serving=True) as original:
        for serving in (True, False):
            with pytest.raises(InstanceError, match=rf"in use by the server on .* in {site.folder}, .* lasts"):
                async with copy.open(serving=serving):
                    pass
        await charge(original, "after")  # it was not disturbed
        async with site.open() as command:  # and commands go on beside it
            await command.drain.flush()
    assert await site.failed() == []


async def test_the_original_is_refused_once_its_copy_has_served(site, tmp_path):
    await site.begin()
    await site.serve("before")
    copy = site.copy(tmp_path / "copy")
    await copy.serve("by the copy")
    for serving in (True, False):
        with pytest.raises(InstanceError, match=OLDER):
            async with site.open(serving=serving):
                pass
    assert await copy.failed() == []
    await copy.serve("again")  # what was refused has changed nothing


async def test_a_copy_from_before_the_originals_last_records_is_refused(site, tmp_path, monkeypatch):
    """It was made while the original served, which went on; in the same life of the server, so no start tells them."""
    monkeypatch.setattr(leases, "LEASE_MS", 300)
    await site.begin()
    async with site.open(serving=True) as metering:
        await charge(metering, "before")
        await metering.drain.flush()
        copy = site.copy(tmp_path / "copy")
        await charge(metering, "after")
        await metering.drain.flush()
        await metering.lease.renew()
    await asyncio.sleep(0.35)  # the copy's own database has the lease of then
    with pytest.raises(InstanceError, match=OLDER):
        async with copy.open():
            pass
    await site.serve("later")
    assert await site.failed() == []


async def test_one_that_slept_while_another_took_over_does_nothing_and_ends(site, tmp_path, monkeypatch):
    """Its lease has ended: with the same Redis no script takes its word, with another it refuses by itself."""
    monkeypatch.setattr(leases, "LEASE_MS", 300)
    await site.begin()
    async with site.open(serving=True) as sleeper:
        copy = site.copy(tmp_path / "copy")
        await charge(sleeper, "not drained")
        await asyncio.sleep(0.35)
        async with copy.open(serving=True) as taker:
            assert not sleeper.lease.held
            with pytest.raises(MeterUnavailable):
                sleeper.lease.ensure()
            if "redis_url" in site.shared:
                with pytest.raises(MeterLost):
                    await charge(sleeper, "late")
            else:
                with pytest.raises(DrainBusy):
                    await sleeper.drain.flush(0)
            await sleeper.lease.renew()
            assert sleeper.lease.over.is_set()
            with pytest.raises(InstanceError, match=f"taken over by the server on .* in {copy.folder}"):
                sleeper.lease.raise_lost()
            await charge(taker, "by the one that counts")
            await taker.drain.flush()
    assert await copy.failed() == []


async def test_a_lease_that_nobody_took_goes_on_after_an_outage(one_redis, redis_external, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_MS", 300)
    await one_redis.begin()
    async with one_redis.open(serving=True) as metering:
        redis_external.kill()
        await asyncio.sleep(0.35)
        await metering.lease.renew()
        redis_external.start()
        await metering.lease.renew()
        assert metering.lease.held
        assert not metering.lease.over.is_set()
        await charge(metering, "after")
    assert await one_redis.failed() == []


async def test_a_lease_outlasts_whoever_has_the_write_lock_of_the_database(one_redis, tmp_path, monkeypatch):
    """However long, as for a document of copies: nothing that is paid waits for it, and no copy gets in."""
    monkeypatch.setattr(leases, "LEASE_MS", 500)
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.1)
    await one_redis.begin()
    copy = one_redis.copy(tmp_path / "copy")
    async with one_redis.open(serving=True) as metering:
        renewing = asyncio.create_task(metering.lease.run())
        with closing(sqlite3.connect(one_redis.folder / "patronage.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for number in range(8):
                await asyncio.sleep(0.25)
                await charge(metering, f"meanwhile-{number}")
            with pytest.raises(InstanceError, match="in use by the server"):
                async with copy.open(serving=True):
                    pass
            other.execute("ROLLBACK")
        await metering.lease.renew()
        await charge(metering, "after")
        renewing.cancel()
    assert await one_redis.failed() == []


async def test_a_redis_that_lost_the_mark_gets_it_again(one_redis, redis_external):
    """With ``everysec`` the last writes may be lost, and the mark of a start among them."""
    await one_redis.begin()
    before = redis_external.client.hgetall("{s00}:instance")
    async with one_redis.open(serving=True) as metering:
        for lost in (before, {}):
            redis_external.client.delete("{s00}:instance")
            if lost:
                redis_external.client.hset("{s00}:instance", mapping=lost)
            await metering.lease.renew()
            assert not metering.lease.over.is_set()
    redis_external.client.hset("{s00}:instance", mapping=before)
    await one_redis.serve("after")
    assert await one_redis.failed() == []


@pytest.mark.parametrize("step", ["keep_generation", "put", "stamp", "settle"])
async def test_a_start_at_another_place_that_dies_is_finished_by_the_next(one_redis, tmp_path, monkeypatch, step):
    await one_redis.begin()
    copy = one_redis.copy(tmp_path / "copy")

    def die(*_, **__):
        raise KeyboardInterrupt

    owners = {"keep_generation": "serving.store.data_dir.DataDir", "settle": "serving.store.instance"}
    with monkeypatch.context() as patch:
        patch.setattr(f"{owners.get(step, 'metering.redis.instance.InstanceMark')}.{step}", die)
        with pytest.raises(KeyboardInterrupt):
            await copy.serve("never")
    await copy.serve("by the copy")
    assert await copy.failed() == []
    with pytest.raises(InstanceError):
        await one_redis.serve("never")


async def test_a_restored_backup_counts_after_a_rebuild_and_the_newer_original_is_refused(one_redis, tmp_path):
    await one_redis.begin()
    await one_redis.serve("before")
    backup = one_redis.copy(tmp_path / "backup")
    async with one_redis.open(serving=True) as original:
        await charge(original, "lost with the newer database")
        await original.drain.flush()
        with backup.books() as books, pytest.raises(rebuilding.RebuildError, match=r"in use .* --force"):
            await rebuilding.rebuild(books)
        with backup.books() as books:
            await rebuilding.rebuild(books, force=True)
        with pytest.raises(MeterError):
            await charge(original, "late")
        await original.lease.renew()
        assert original.lease.over.is_set()
    await backup.serve("after")
    assert await backup.failed() == []
    with pytest.raises((InstanceError, MeterLost)):
        await one_redis.serve("never")


async def test_a_restored_backup_is_rebuilt_without_force_when_nothing_lives(one_redis, tmp_path):
    await one_redis.begin()
    backup = one_redis.copy(tmp_path / "backup")
    await one_redis.serve("lost with the newer database")
    with pytest.raises(InstanceError, match="meter rebuild"):
        await backup.serve("never")
    with backup.books() as books:
        assert (await rebuilding.rebuild(books)).shards == 16
    await backup.serve("after")
    assert await backup.failed() == []


def test_a_row_of_the_database_is_had_by_one(engine):
    """Two that begin at once from the same generation: one does; at another place not while the lease lasts."""
    here, there = Place("here", "a", "/a"), Place("there", "b", "/b")

    def take(before, generation, place, lease_ms=0):
        return instance.take(engine, before, generation, place, lease_ms=lease_ms, moving=lambda _: None)

    first = take(None, "g1", here)
    assert first.mark == Mark("g1", here, 1, 0)
    assert take(None, "g2", here) is None
    second = take(first, "g2", there, lease_ms=10_000)
    assert second.previous == "g1"
    assert 9_000 < second.mark.left_ms <= 10_000
    assert take(first, "g3", here) is None
    with pytest.raises(InstanceError, match="on b in /b"):
        take(second, "g3", here)
    assert take(second, "g3", there).mark.generation == "g3"
    assert instance.renew(engine, "g2", 10_000)[1] is False
    row, kept = instance.renew(engine, "g3", 0)
    assert kept
    assert row.mark.left_ms == 0
    assert take(row, "g4", here).mark.place == here


async def test_a_mark_in_redis_is_had_by_one(any_redis_url):
    client = connect(any_redis_url)
    marks = InstanceMark(client, 2)
    here, there = Place("here", "a", "/a"), Place("there", "b", "/b")
    await client.set("{s00}:deployment", "id")
    await client.set("{s01}:deployment", "id")
    assert await marks.look("id") is None
    assert await marks.put("id", Mark("g1", here, 5, 0), lease_ms=10_000) is None
    assert (await marks.put("id", Mark("g2", there, 6, 0), follows="g1")).generation == "g1"  # it lives
    assert await marks.put("id", Mark("g1", here, 4, 0)) is None  # a command beside it, which read before
    found = await marks.look("id")
    assert (found.generation, found.place, found.beat) == ("g1", here, 5)
    assert 9_000 < found.left_ms <= 10_000
    assert await marks.put("id", Mark("g1", here, 6, 0), lease_ms=0) is None
    assert (await marks.put("id", Mark("g3", there, 7, 0), follows="g0")).generation == "g1"  # it is newer
    assert await marks.put("id", Mark("g2", there, 7, 0), follows="g1", lease_ms=10_000) is None
    await marks.stamp("id/0/fence")
    assert await client.get("{s01}:deployment") == b"id/0/fence"
    assert (await marks.keep("id", Mark("g1", here, 8, 0), follows="", lease_ms=1)).place == there
    await client.delete("{s00}:deployment")
    with pytest.raises(MeterLost):  # lost, and not taken over
        await marks.keep("id", Mark("g1", here, 8, 0), follows="", lease_ms=1)
    await client.aclose()


def test_servers_as_processes(data_dir, environment, key, redis_external, tmp_path):
    """The row of the trial; and what is killed starts again at once, what sleeps too long ends when it wakes."""
    flush([redis_external])
    env = {**environment, "PATRONAGE_REDIS_URL": redis_external.url}
    cli(data_dir, "meter", "rebuild", env=env)  # it was prepared with an embedded Redis
    original = Server(data_dir, env)
    with original:
        ask(original, key)
        original.kill()
        original.start()
        ask(original, key)
        shutil.copytree(data_dir, tmp_path / "copy")
        for words in (("serve", "--port", "0"), ("audit",), ("customer", "credit", "acme", "1", "--reference", "r")):
            refused = run(tmp_path / "copy", *words, env=env)
            assert refused.returncode == 1, words
            assert f"in {data_dir}" in refused.stderr
        assert cli(data_dir, "audit", env=env)["balanced"]
    original.module = ("tests.faults.short_lease",)
    with original:
        with original.client() as client:
            wait_for(lambda: b"patronage_drain_lag_records 0.0" in client.get("/metrics").content)
        os.kill(original.process.pid, signal.SIGSTOP)
        shutil.copytree(data_dir, tmp_path / "newest")
        taker = Server(tmp_path / "newest", env)
        wait_for(lambda: admitted(tmp_path / "newest", env))
        with taker:
            os.kill(original.process.pid, signal.SIGCONT)
            ask(taker, key)
            assert ended(original.process) == 1
            assert "taken over by the server on" in original.log.read_text()
            ask(taker, key)
        assert cli(tmp_path / "newest", "audit", env=env)["balanced"]
    again = run(data_dir, "serve", "--port", "0", env=env)
    assert (again.returncode, "do not belong together" in again.stderr) == (1, True)


def admitted(folder, env):
    """Whether a command is admitted to the books."""
    return run(folder, "customer", "credit", "acme", "1", "--reference", "again", env=env).returncode == 0


def ask(server, key):
    with server.client(key) as client:
        assert client.post("/v1/query", json={"question": QUESTIONS[0]}).status_code == 200
