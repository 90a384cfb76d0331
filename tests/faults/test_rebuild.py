"""A flushed or lost Redis is refused, and rebuilt from the ledger and the log by one command, on each kind of Redis."""

from __future__ import annotations

import asyncio

import pytest
import redis
import sqlalchemy as sa

from metering import usage_index
from metering.meter import Hold, InsufficientFunds, MeterLost, Request
from metering.pricing import Usage
from metering.redis import keys
from metering.redis.connection import connect
from serving.assembly import open_books, open_metering
from serving.money.funding import credit, open_account
from serving.rules.rulebook import EXTRACTIVE
from serving.settings import Settings
from serving.store.data_dir import DataDirError
from serving.upkeep import rebuilding
from serving.upkeep.audit import audit
from serving.upkeep.rebuilding import RebuildError
from tests.faults.conftest import QUESTIONS
from tests.records import a_record
from tests.redis_servers import until
from tests.servers import cli, run

pytestmark = pytest.mark.anyio
CUSTOMERS = ("acme", "beta", "gamma")
FUNDED = 10**9


@pytest.fixture
def settings(tmp_path, any_redis_url, model_cache):
    return Settings(data_dir=tmp_path / "data", redis_url=any_redis_url, model_cache=model_cache)


@pytest.fixture
def used(settings):
    """Books of customers who paid in, and were charged; all of it is drained."""
    with open_books(settings) as books:
        asyncio.run(begin(books))
        yield books


async def begin(books):
    for name in CUSTOMERS:
        books.identities.add_customer(name, name)
    async with open_metering(books) as metering:
        for name in CUSTOMERS:
            await open_account(books, metering.meter, name)
            await credit(books, metering.meter, name, FUNDED, "invoice")
        for number in range(30):
            await query(books, metering, f"before-{number}", CUSTOMERS[number % 3])
        await metering.drain.flush()


def a_query(books, name, account):
    price, policy = books.rulebook.prices.price(EXTRACTIVE), books.rulebook.policy
    usage = Usage(9, 40, 2)
    charge, cost = price.charge(usage), price.cost(usage)
    platform, royalty = policy.divide(charge, cost)
    return a_record(id=name, account=account, charge=charge, cost=cost, platform=platform, royalty=royalty)


async def query(books, metering, name, account="acme"):
    record = a_query(books, name, account)
    hold = Hold(Request(name, account, "key", record.charge))
    await metering.meter.authorize(hold.request)
    await metering.meter.capture(hold, record)
    return hold, record


async def flush(books):
    client = connect(books.settings.redis_url)
    await client.flushall()
    await client.aclose()


async def spent(books):
    async with open_metering(books) as metering:
        return {name: (await metering.meter.balance(name)).spent for name in CUSTOMERS}


async def failed(books):
    async with open_metering(books) as metering:
        return [check for check in await audit(books, metering) if not check["ok"]]


def reopened(books):
    """The books as another process finds them."""
    return open_books(books.settings)


async def test_a_flushed_redis_is_refused_until_it_is_rebuilt_and_nothing_registered_is_lost(used):
    before = await spent(used)
    await flush(used)
    with pytest.raises(MeterLost):
        await spent(used)
    assert (await rebuilding.look(used))["shards"] == {"held": 0, "old": 0, "lost": 16, "foreign": 0}
    done = await rebuilding.rebuild(used)
    assert (done.shards, done.accounts, done.drained) == (16, 3, 0)
    with reopened(used) as books:
        assert await spent(books) == before
        assert await failed(books) == []
        assert (await rebuilding.look(books))["shards"]["held"] == 16
        with pytest.raises(RebuildError, match="has not lost"):
            await rebuilding.rebuild(books)


async def test_a_capture_that_was_registered_charges_nothing_when_it_is_sent_again(used):
    async with open_metering(used) as metering:
        hold, record = await query(used, metering, "registered")
        await metering.drain.flush()
    before = await spent(used)
    await flush(used)
    assert (await rebuilding.rebuild(used)).marked == 31
    with reopened(used) as books:
        async with open_metering(books) as metering:
            await metering.meter.capture(hold, record)
            await metering.drain.flush()
        assert await spent(books) == before
        assert await failed(books) == []


async def test_what_is_captured_and_still_there_is_drained_first(used):
    """One shard lost its books and kept its stream; another kept both."""
    async with open_metering(used) as metering:
        for account in ("acme", "beta"):
            await query(used, metering, f"waiting-{account}", account)
    before = await spent(used)
    client = connect(used.settings.redis_url)
    await client.delete(keys.deployment(keys.shard_of("acme", used.deployment.shards)))
    await client.aclose()
    done = await rebuilding.rebuild(used)
    assert (done.shards, done.drained) == (1, 2)
    with reopened(used) as books:
        assert await spent(books) == before
        assert await failed(books) == []


async def test_a_segment_that_no_drainer_registered_is_adopted(used, monkeypatch):
    async with open_metering(used) as metering:
        await query(used, metering, "written")

        def die(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("metering.usage_index.add", die)
            with pytest.raises(KeyboardInterrupt):
                await metering.drain.drain()
    before = {"acme": 11, "beta": 10, "gamma": 10}
    await flush(used)
    assert (await rebuilding.rebuild(used)).drained == 1
    charge = a_query(used, "any", "acme").charge
    with reopened(used) as books:
        assert await spent(books) == {name: count * charge for name, count in before.items()}
        assert await failed(books) == []


async def test_streams_go_on_after_what_is_registered_though_the_clock_is_behind(used):
    """The marks are set far ahead, as if the clock had been set back since: new records are not taken for old ones."""
    shard = keys.shard_of("acme", used.deployment.shards)
    ahead = "9999999999999-5"
    with used.engine.begin() as connection:
        connection.execute(
            sa.update(usage_index.shards).where(usage_index.shards.c.shard == shard).values(last=ahead, fence=7)
        )
    await flush(used)
    await rebuilding.rebuild(used)
    with reopened(used) as books:
        async with open_metering(books) as metering:
            await query(books, metering, "after")
            assert await metering.drain.drain() == 1
        client = connect(books.settings.redis_url)
        assert (await client.xinfo_stream(keys.usage(shard)))["last-generated-id"] > ahead.encode()
        assert int(await client.get(keys.fence(shard))) > 7
        await client.aclose()


@pytest.mark.parametrize("step", ["advance_streams", "clear", "mark_captured"])
async def test_a_rebuild_that_dies_serves_nobody_and_is_begun_again(used, monkeypatch, step):
    before = await spent(used)
    await flush(used)

    async def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"metering.redis.rebuild.{step}", die)
        with pytest.raises(KeyboardInterrupt):
            await rebuilding.rebuild(used)
    with reopened(used) as books:
        with pytest.raises(MeterLost, match="not finished"):
            await spent(books)
        await rebuilding.rebuild(books)
    with reopened(used) as books:
        assert await spent(books) == before
        assert await failed(books) == []


async def test_the_books_from_before_a_rebuild_are_never_served_from_again(used):
    """Who still has them open is refused at once, and so is a Redis that comes back with them."""
    async with open_metering(used) as metering:
        await flush(used)
        await rebuilding.rebuild(used)
        with pytest.raises(MeterLost):
            await query(used, metering, "late")
    with pytest.raises(MeterLost):
        await spent(used)


async def test_force_throws_away_what_only_redis_knew(used):
    async with open_metering(used) as metering:
        await metering.meter.authorize(Request("running", "acme", "key", FUNDED // 2))
        with pytest.raises(InsufficientFunds):
            await metering.meter.authorize(Request("too-much", "acme", "key", FUNDED))
    done = await rebuilding.rebuild(used, force=True)
    assert done.shards == 16
    with reopened(used) as books:
        async with open_metering(books) as metering:
            assert (await metering.meter.balance("acme")).held == 0
        assert await failed(books) == []


async def test_records_that_were_trimmed_before_they_were_drained_are_named(used):
    async with open_metering(used) as metering:
        _, record = await query(used, metering, "trimmed")
        client = connect(used.settings.redis_url)
        await client.xtrim(keys.usage(keys.shard_of("acme", used.deployment.shards)), maxlen=0, approximate=False)
        await client.aclose()
        (fault,) = [check for check in await audit(used, metering) if not check["ok"]]
    assert f"records of acme over {record.charge} units were taken from Redis" in fault["detail"]
    await rebuilding.rebuild(used, force=True)
    with reopened(used) as books:
        assert await failed(books) == []


async def test_another_deployments_books_are_never_overwritten(used):
    client = connect(used.settings.redis_url)
    await client.set(keys.deployment(3), "another")
    with pytest.raises(RebuildError, match="another deployment"):
        await rebuilding.rebuild(used, force=True)
    assert await client.get(keys.deployment(3)) == b"another"
    await client.aclose()


async def test_a_rebuild_beside_a_server_is_refused(used):
    await flush(used)
    with used.directory.serving({"pid": 1, "url": "http://somewhere"}), pytest.raises(DataDirError, match="in use"):
        await rebuilding.rebuild(used)


def test_the_whole_story_by_command(server, data_dir, environment, key):
    """Real processes: the server's Redis is flushed under it, it refuses, it is stopped, rebuilt, and serves again."""
    with server.client(key) as client:
        for question in QUESTIONS:
            assert client.post("/v1/query", json={"question": question}).status_code == 200
        drained = f"patronage_drained_records_total {len(QUESTIONS)}.0"
        until(lambda: drained in client.get("/metrics").text, "everything is drained")
        balance = client.get("/v1/account").json()["balance"]
        with redis.Redis(unix_socket_path=str(data_dir / "redis" / "redis.sock")) as books:
            books.flushall()
        assert client.post("/v1/query", json={"question": QUESTIONS[0]}).status_code == 503
    refused = run(data_dir, "meter", "rebuild", env=environment)
    assert refused.returncode == 1
    assert "in use by another server" in refused.stderr
    server.stop()
    shown = cli(data_dir, "meter", "show", env=environment)
    assert shown["shards"]["lost"] == 16
    done = cli(data_dir, "meter", "rebuild", env=environment)
    assert (done["accounts"], done["marked"]) == (1, len(QUESTIONS))
    assert cli(data_dir, "audit", env=environment)["balanced"]
    again = run(data_dir, "meter", "rebuild", env=environment)
    assert again.returncode == 1
    assert "--force" in again.stderr
    server.start()
    with server.client(key) as client:
        assert client.get("/v1/account").json()["balance"] == balance
        assert client.post("/v1/query", json={"question": QUESTIONS[0]}).status_code == 200
