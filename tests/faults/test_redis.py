"""Redis that dies, moves, fills up, hangs or is not fit: nothing is served unpaid or lost, and it ends by itself."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import ResponseError

from metering import ledger
from metering.drain import Drain
from metering.meter import Funding, MeterUnavailable, Request
from metering.money import Currency
from metering.redis import keys
from metering.redis.connection import REPLY_SECONDS, RedisUnfit, connect, ensure_fit, examine
from metering.redis.meter import RedisMeter
from metering.redis.scripts import Script
from metering.redis.usage_streams import entries
from metering.usage_log import UsageLog
from serving.assembly import open_books, open_metering
from serving.settings import Settings
from serving.store import deployment
from tests.databases import new_sqlite
from tests.records import a_record
from tests.redis_servers import cluster, external
from tests.servers import PATIENCE_SECONDS
from tests.syncing_proxy import SyncingProxy

SHARDS = 16
EVERYSEC_WINDOW_S = 3.0  # two seconds by Redis's rule, and what a loaded machine adds
pytestmark = pytest.mark.anyio


class Rig:
    """A meter on a Redis of its own, with one account on each of some shards."""

    def __init__(self, client, ack="none"):
        self.client = client
        self.meter = RedisMeter(
            client,
            deployment="d",
            shards=SHARDS,
            hold_ttl_ms=60_000,
            replay_ttl_ms=60_000,
            retry_ttl_ms=60_000,
            process="p",
            ack=ack,
        )
        self.number = 0
        self.charged: dict[str, float] = {}
        """When each charge was acknowledged."""

    async def open(self, *accounts):
        await self.meter.claim(fresh=True)
        for account in accounts:
            await self.meter.fund(Funding(account, 1, 10**9, 0))

    async def query(self, account="acme"):
        """One paid query; what was charged is remembered when it is acknowledged."""
        self.number += 1
        name = f"h{self.number}"
        hold = await self.meter.authorize(Request(name, account, "key", 100))
        await self.meter.capture(hold, a_record(id=name, account=account, charge=60))
        self.charged[name] = time.monotonic()

    async def recovered(self, account="acme", seconds=PATIENCE_SECONDS):
        """Query until one succeeds: no client is made anew, nobody helps."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return await self.query(account)
            except MeterUnavailable:
                assert time.monotonic() < deadline, "it did not recover"
                await asyncio.sleep(0.05)

    async def logged(self, *accounts):
        """The ids of the records in the streams of the accounts."""
        shards = {keys.shard_of(account, SHARDS) for account in accounts}
        found = [entries(await self.client.xrange(keys.usage(shard))) for shard in shards]
        return [data.split(b'"id":"')[1].split(b'"')[0].decode() for entries in found for _, data in entries]

    async def assert_whole(self, *accounts):
        """Every acknowledged charge is in the log, once, and the accounts spent what the log says."""
        logged = await self.logged(*accounts)
        assert len(logged) == len(set(logged))
        assert set(self.charged) <= set(logged)
        spent = [(await self.meter.balance(account)).spent for account in accounts]
        assert sum(spent) == 60 * len(logged)


@asynccontextmanager
async def rig(url, *accounts, ack="none", reply_seconds=REPLY_SECONDS):
    client = connect(url, reply_seconds)
    try:
        found = Rig(client, ack)
        await found.open(*accounts)
        yield found
    finally:
        await client.aclose()


async def test_a_server_that_is_killed_and_comes_back_has_lost_nothing():
    with external("--appendfsync", "always") as server:
        async with rig(server.url, "acme") as found:
            for _ in range(3):
                for _ in range(20):
                    await found.query()
                server.kill()
                with pytest.raises(MeterUnavailable):
                    await found.query()
                server.start()
                await found.recovered()
            await found.assert_whole("acme")


async def test_a_killed_server_that_syncs_every_second_has_lost_no_more_than_its_window():
    """While a sync is running Redis puts its writes off for up to two seconds: they are in its memory alone."""
    with external("--appendfsync", "everysec") as server:
        async with rig(server.url, "acme") as found:
            for _ in range(2):
                began = time.monotonic()
                while time.monotonic() < began + EVERYSEC_WINDOW_S + 0.5:
                    await found.query()
                killed = time.monotonic()
                server.kill()
                server.start()
                await found.recovered()
                logged = set(await found.logged("acme"))
                for name in set(found.charged) - logged:
                    assert found.charged.pop(name) > killed - EVERYSEC_WINDOW_S
                await found.assert_whole("acme")


async def test_a_server_that_hangs_is_unavailable_and_what_was_in_doubt_is_charged_once():
    with external() as server:
        async with rig(server.url, "acme", reply_seconds=1.0) as found:
            hold = await found.meter.authorize(Request("doubt", "acme", "key", 100))
            server.client.execute_command("CLIENT PAUSE", 5_000, "ALL")
            record = a_record(id="doubt", charge=60)
            with pytest.raises(MeterUnavailable):
                await found.meter.capture(hold, record)
            await found.recovered()
            await found.meter.capture(hold, record)
            found.charged["doubt"] = time.monotonic()
            await found.assert_whole("acme")


async def test_a_deposed_master_is_left_alone_until_it_is_master_again():
    with external() as server:
        async with rig(server.url, "acme") as found:
            await found.query()
            server.client.replicaof("127.0.0.1", 1)
            with pytest.raises(MeterUnavailable, match="replica"):
                await found.query()
            with pytest.raises(RedisUnfit, match="replica"):
                ensure_fit(await examine(found.client), "none")
            server.client.replicaof("NO", "ONE")
            await found.recovered()
            await found.assert_whole("acme")


def fill(server):
    """Let it use more memory than it may."""
    server.client.config_set("maxmemory", int(server.client.info("memory")["used_memory"]) // 2)


async def test_out_of_memory_admits_nothing_and_captures_what_was_admitted(tmp_path):
    engine = new_sqlite(tmp_path / "db")
    with external() as server:
        async with rig(server.url, "acme") as found:
            with engine.begin() as connection:
                deployment.begin(connection, Currency.of("USD"), SHARDS, "directory")
            kept, dropped = [await found.meter.authorize(Request(hold, "acme", "key", 100)) for hold in "ab"]
            fill(server)
            for refused in (found.query(), found.meter.check(), found.meter.fund(Funding("new", 1, 1, 0))):
                with pytest.raises(MeterUnavailable, match="raise its maxmemory"):
                    await refused
            await found.meter.capture(kept, a_record(id="a", charge=60))
            await found.meter.void(dropped)
            found.charged["a"] = time.monotonic()
            await found.assert_whole("acme")
            assert (await found.meter.balance("acme")).held == 0
            # The drain, which frees memory, is not refused for want of it.
            drain = Drain(found.client, engine, UsageLog(tmp_path / "log"), deployment="d", shards=SHARDS)
            assert await drain.drain() == 1
            assert (await drain.lag()).records == 0
            server.client.config_set("maxmemory", 0)
            await found.recovered()
            assert await drain.drain() == 1
    with engine.connect() as connection:
        assert ledger.balances(connection)["customer:acme"] == -120
    engine.dispose()


@pytest.mark.parametrize(
    ("options", "ack", "what"),
    [
        (("--maxmemory-policy", "allkeys-lru"), "none", "set `maxmemory-policy noeviction`"),
        (("--maxmemory-policy", "volatile-ttl"), "none", "set `maxmemory-policy noeviction`"),
        (("--replicaof", "127.0.0.1", "1"), "none", "lead to the master"),
        (("--appendonly", "no"), "aof", "PATRONAGE_REDIS_ACK=aof needs"),
    ],
)
async def test_a_redis_that_must_not_carry_money_is_refused_at_start(tmp_path, options, ack, what):
    with external(*options) as server:
        settings = Settings(data_dir=tmp_path / "data", redis_url=server.url, redis_ack=ack)
        with open_books(settings) as books, pytest.raises(RedisUnfit) as refused:
            async with open_metering(books):
                pass
        assert what in str(refused.value)
        assert server.client.keys() == []


async def test_a_redis_without_a_file_is_warned_of():
    with external("--appendonly", "no") as server, external("--appendfsync", "no") as lax:
        for each, advice in ((server, "set `appendonly yes`"), (lax, "set `appendfsync everysec`")):
            client = connect(each.url)
            (found,) = await examine(client)
            await client.aclose()
            ensure_fit([found], "none")
            assert any(advice in warning for warning in found.warnings())


async def test_a_configuration_that_is_secret_is_not_demanded():
    with external("--rename-command", "CONFIG", "hidden") as server:
        client = connect(server.url)
        (found,) = await examine(client)
        await client.aclose()
        ensure_fit([found], "none")
        assert (found.fsync, found.appendonly) == ("", True)


async def test_a_capture_waits_for_the_disk_on_the_connection_that_wrote(redis_external):
    redis_external.client.flushall()
    async with SyncingProxy(redis_external.port) as proxy, rig(proxy.url, "acme", ack="aof") as found:
        servers = await examine(found.client)
        ensure_fit([server for server in servers if server.waitaof], "aof")
        assert servers[0].waitaof
        await found.query()
        await asyncio.gather(*[found.query() for _ in range(20)])
        redis_external.client.script_flush()
        await found.query()
        assert set(proxy.waited_after) == {b"EVALSHA"}
        assert len(proxy.waited_after) >= 22
        await found.assert_whole("acme")


async def test_a_capture_that_is_not_synced_in_time_is_not_acknowledged_and_repeated_once(redis_external):
    redis_external.client.flushall()
    async with SyncingProxy(redis_external.port) as proxy, rig(proxy.url, "acme", ack="aof") as found:
        hold = await found.meter.authorize(Request("slow", "acme", "key", 100))
        proxy.synced = 0
        with pytest.raises(MeterUnavailable, match="not synced"):
            await found.meter.capture(hold, a_record(id="slow", charge=60))
        proxy.synced = 1
        await found.meter.capture(hold, a_record(id="slow", charge=60))
        found.charged["slow"] = time.monotonic()
        await found.assert_whole("acme")


def accounts_by_owner(servers):
    """An account on a shard of each master, by the master's port."""
    found = {}
    for number in range(1_000):
        account = f"account-{number}"
        owner = servers.owner(keys.tag(keys.shard_of(account, SHARDS)))
        found.setdefault(owner.port, account)
    return found


async def test_a_cluster_without_one_master_goes_on_with_the_others_and_recovers():
    with cluster() as servers:
        accounts = accounts_by_owner(servers)
        down = servers.nodes[1]
        async with rig(servers.url, *accounts.values()) as found:
            for account in accounts.values():
                await found.query(account)
            down.kill()
            for port, account in accounts.items():
                if port == down.port:
                    with pytest.raises(MeterUnavailable):
                        await found.query(account)
                else:
                    await found.recovered(account)
            with pytest.raises(MeterUnavailable):
                await found.meter.check()
            down.start()
            for account in accounts.values():
                await found.recovered(account)
            await found.assert_whole(*accounts.values())


async def test_a_replica_takes_a_dead_masters_place_by_itself():
    with cluster() as servers:
        accounts = accounts_by_owner(servers)
        master = servers.nodes[2]
        replica = servers.add_replica(master)
        try:
            async with rig(servers.url, *accounts.values()) as found:
                for account in accounts.values():
                    await found.query(account)
                assert master.client.wait(1, 60_000) == 1
                master.kill()
                await found.recovered(accounts[master.port])
                for account in accounts.values():
                    await found.recovered(account)
                assert replica.client.info("replication")["role"] == "master"
                await found.assert_whole(*accounts.values())
        finally:
            replica.close()


async def test_a_slot_that_moves_while_it_is_paid_for_loses_and_doubles_nothing():
    """MOVED, ASK and TRYAGAIN: a shard's keys go one by one from one master to another, under load."""
    with cluster() as servers:
        account = next(iter(accounts_by_owner(servers).values()))
        tag = keys.tag(keys.shard_of(account, SHARDS))
        source = servers.owner(tag)
        target = next(node for node in servers.nodes if node is not source)
        slot = source.client.execute_command("CLUSTER KEYSLOT", tag)
        names = {node: node.client.execute_command("CLUSTER MYID") for node in servers.nodes}
        async with rig(servers.url, account) as found:
            moved = asyncio.Event()

            async def load():
                while not moved.is_set():
                    try:
                        await found.query(account)
                    except MeterUnavailable:
                        await asyncio.sleep(0.01)

            def move():
                target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[source])
                source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[target])
                for key in iter(lambda: source.client.execute_command("CLUSTER GETKEYSINSLOT", slot, 1), []):
                    source.client.execute_command("MIGRATE", "127.0.0.1", target.port, key[0], 0, 20_000)
                for node in (target, source, *servers.nodes):
                    node.client.execute_command("CLUSTER SETSLOT", slot, "NODE", names[target])

            working = [asyncio.create_task(load()) for _ in range(4)]
            for _ in range(20):
                await found.query(account)
            await asyncio.to_thread(move)
            await found.recovered(account)
            moved.set()
            await asyncio.gather(*working)
            assert target.client.exists(keys.deployment(keys.shard_of(account, SHARDS)))
            await found.assert_whole(account)


async def test_a_script_is_loaded_only_where_it_runs():
    """NOSCRIPT on one master while another is down: the one that is there is not held up."""
    with cluster() as servers:
        accounts = accounts_by_owner(servers)
        async with rig(servers.url, *accounts.values()) as found:
            servers.nodes[0].kill()
            servers.nodes[1].client.script_flush()
            await found.recovered(accounts[servers.nodes[1].port])


async def test_an_error_of_a_script_is_not_taken_for_a_failure_of_the_server(redis_external):
    client = connect(redis_external.url)
    with pytest.raises(ResponseError):
        await Script(client, "authorize")(keys=[], args=[])
    await client.aclose()
