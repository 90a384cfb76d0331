"""The meter on each Redis: the same behaviour embedded, on one external server and on a cluster."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from importlib.resources import files

import pytest
from redis.exceptions import ResponseError

from metering.meter import (
    Funding,
    Hold,
    HoldExpired,
    IdempotencyMismatch,
    IdempotencyRunning,
    InsufficientFunds,
    KeyRevoked,
    Limits,
    MeterLost,
    MeterUnavailable,
    RateLimited,
    Replay,
    Request,
)
from metering.redis import keys
from metering.redis.connection import RedisUnfit, connect, ensure_fit, examine, unavailable_on_failure
from metering.redis.meter import RedisMeter
from metering.redis.scripts import Script
from metering.redis.usage_streams import entries
from tests.records import MOMENT_MS, a_record

SHARDS = 16
pytestmark = pytest.mark.anyio


def a_meter(client, deployment="d", hold_ttl_ms=60_000, ack="none", process="p"):
    return RedisMeter(
        client,
        deployment=deployment,
        shards=SHARDS,
        hold_ttl_ms=hold_ttl_ms,
        replay_ttl_ms=60_000,
        retry_ttl_ms=60_000,
        process=process,
        ack=ack,
    )


@pytest.fixture
async def client(any_redis_url):
    found = connect(any_redis_url)
    yield found
    await found.aclose()


@pytest.fixture
async def meter(client):
    found = a_meter(client)
    await found.claim(fresh=True)
    await found.fund(Funding("acme", 1, 1_000, 0))
    return found


def asked(hold="h", ceiling=100, account="acme", **more):
    return Request(hold, account, "key", ceiling, at_ms=MOMENT_MS, **more)


async def balance(meter, account="acme"):
    found = await meter.balance(account)
    return found.funded, found.spent, found.held


async def captured(client, account="acme"):
    return entries(await client.xrange(keys.usage(keys.shard_of(account, SHARDS))))


async def test_a_hold_becomes_a_charge_and_a_record_in_one_step(client, meter):
    hold = await meter.authorize(asked())
    assert await balance(meter) == (1_000, 0, 100)
    record = a_record(id="h", charge=60)
    await meter.capture(hold, record)
    assert await balance(meter) == (1_000, 60, 0)
    assert [data for _, data in await captured(client)] == [record.encode()]
    assert await meter.find_record("acme", "h") == record.encode()
    assert await meter.find_record("acme", "other") is None


async def test_a_void_charges_nothing(client, meter):
    hold = await meter.authorize(asked())
    await meter.void(hold)
    await meter.void(hold)
    assert await balance(meter) == (1_000, 0, 0)
    assert await captured(client) == []


async def test_an_authorize_that_comes_after_it_was_given_up_holds_nothing(meter):
    """Its caller had no reply, and Redis came to it late."""
    for hold, key in (("late", ""), ("late-too", "k")):
        asks = asked(hold, idempotency_key=key, fingerprint="body")
        for _ in range(2):
            await meter.abandon(asks)
        with pytest.raises(MeterUnavailable):
            await meter.authorize(asks)
        assert await balance(meter) == (1_000, 0, 0)
    assert isinstance(await meter.authorize(asked("new", idempotency_key="k", fingerprint="body")), Hold)


async def test_a_hold_that_is_given_up_is_free_with_its_key_and_its_place(meter):
    limits = Limits(concurrent_requests=1)
    asks = asked("lost", 1_000, limits=limits, idempotency_key="k", fingerprint="body")
    await meter.authorize(asks)
    for _ in range(2):
        await meter.abandon(asks)
    assert await balance(meter) == (1_000, 0, 0)
    again = await meter.authorize(replace(asks, hold="again"))
    await meter.capture(again, a_record(id="again", charge=60), b"the answer")
    await meter.abandon(asks)
    assert await meter.find_replay(replace(asks, hold="once-more")) == Replay(b"the answer", "again")
    assert await balance(meter) == (1_000, 60, 0)


async def test_what_was_given_up_is_forgotten_with_time(client, meter, monkeypatch):
    monkeypatch.setattr("metering.redis.meter.ABANDONED_TTL_MS_MIN", 1)
    fleeting = a_meter(client, hold_ttl_ms=0)
    await fleeting.abandon(asked())
    await asyncio.sleep(0.01)
    await meter.authorize(asked("another"))
    assert await client.hlen(keys.holds(keys.shard_of("acme", SHARDS), "acme")) == 1


async def test_the_holds_of_dead_processes_are_released_and_no_others(client, meter):
    """Those of an older version name no process: they expire."""
    names = [f"account-{number}" for number in range(40)]
    await asyncio.gather(*[meter.fund(Funding(name, 1, 1_000, 0)) for name in names])
    for process in ("dead", "dead-too", "alive"):
        other = a_meter(client, process=process)
        asks = [asked(f"{process}-{name}", 100, name, idempotency_key=process, fingerprint="f") for name in names]
        await asyncio.gather(*[other.authorize(each) for each in asks])
    shard = keys.shard_of(names[0], SHARDS)
    await client.hset(keys.holds(shard, names[0]), "old", "7 0 key")
    assert await meter.release(["dead", "dead-too", "unknown"]) == 80
    assert await meter.release(["dead", "dead-too"]) == 0
    assert {await balance(meter, name) for name in names} == {(1_000, 0, 100)}
    again = asked("again", 100, names[0], idempotency_key="dead", fingerprint="f")
    assert isinstance(await meter.authorize(again), Hold)
    assert await meter.release(["alive", "p"]) == 41
    assert await client.smembers(keys.holding(shard)) == {names[0].encode()}, "it has one that is not released"


async def test_a_capture_that_is_repeated_charges_once(client, meter):
    hold = await meter.authorize(asked())
    await asyncio.gather(*[meter.capture(hold, a_record(id="h", charge=60)) for _ in range(20)])
    assert await balance(meter) == (1_000, 60, 0)
    assert len(await captured(client)) == 1


async def test_a_charge_above_its_ceiling_is_refused(client, meter):
    hold = await meter.authorize(asked())
    with pytest.raises(ValueError, match="above the ceiling"):
        await meter.capture(hold, a_record(id="h", charge=101))
    assert await balance(meter) == (1_000, 0, 100)
    assert await captured(client) == []


async def test_a_thousand_at_once_never_overspend(client, meter):
    """Money for ten of a thousand requests: ten are admitted, charged and logged."""

    async def query(number):
        try:
            hold = await meter.authorize(asked(f"h{number}"))
        except InsufficientFunds as refused:
            return 0 if refused.available < 100 else 1_000_000
        await meter.capture(hold, a_record(id=f"h{number}", charge=100))
        return 1

    assert sum(await asyncio.gather(*[query(number) for number in range(1_000)])) == 10
    assert await balance(meter) == (1_000, 1_000, 0)
    assert len(await captured(client)) == 10


async def test_an_expired_hold_is_given_back_and_captured_only_from_what_is_left(client, meter):
    fleeting = a_meter(client, hold_ttl_ms=0)
    late, too_late = await fleeting.authorize(asked("late", 900)), await fleeting.authorize(asked("too-late", 900))
    assert await balance(meter) == (1_000, 0, 0)
    await meter.capture(late, a_record(id="late", charge=700))
    with pytest.raises(HoldExpired):
        await meter.capture(too_late, a_record(id="too-late", charge=700))
    assert await balance(meter) == (1_000, 700, 0)


async def test_an_idempotency_key_is_answered_once(meter):
    asks = asked("first", idempotency_key="k", fingerprint="body")
    hold = await meter.authorize(asks)
    with pytest.raises(IdempotencyRunning):
        await meter.authorize(asked("second", idempotency_key="k", fingerprint="body"))
    with pytest.raises(IdempotencyMismatch):
        await meter.authorize(asked("third", idempotency_key="k", fingerprint="other"))
    await meter.capture(hold, a_record(id="first", charge=1), b"the answer")
    assert await meter.authorize(asked("fourth", idempotency_key="k", fingerprint="body")) == Replay(
        b"the answer", "first"
    )
    assert await balance(meter) == (1_000, 1, 0)


async def test_an_authorize_that_is_sent_twice_holds_once(meter):
    assert await meter.authorize(asked()) == await meter.authorize(asked()) == Hold(asked())
    assert await balance(meter) == (1_000, 0, 100)


async def test_a_rate_limit_lets_a_minutes_requests_through_and_says_when_to_come_again(meter):
    for number in range(3):
        await meter.authorize(asked(f"h{number}", limits=Limits(requests_per_minute=3)))
    with pytest.raises(RateLimited) as refused:
        await meter.authorize(asked("h3", limits=Limits(requests_per_minute=3)))
    assert 0 < refused.value.retry_after_s <= 20


async def test_a_revoked_key_is_refused(meter):
    await meter.revoke("acme", "key")
    with pytest.raises(KeyRevoked):
        await meter.authorize(asked())
    assert await balance(meter) == (1_000, 0, 0)


async def test_funding_converges_whatever_the_order(meter):
    for view in (Funding("acme", 3, 5_000, 0), Funding("acme", 2, 2_000, 0), Funding("acme", 3, 5_000, 40)):
        await meter.fund(view)
    assert await balance(meter) == (5_000, 40, 0)


async def test_accounts_are_on_every_shard_and_strangers_are_unknown(meter):
    names = [f"account-{number}" for number in range(200)]
    assert {keys.shard_of(name, SHARDS) for name in names} == set(range(SHARDS))
    await asyncio.gather(*[meter.fund(Funding(name, 1, 7, 0)) for name in names])
    assert {await balance(meter, name) for name in names} == {(7, 0, 0)}
    with pytest.raises(KeyError):
        await meter.balance("stranger")
    with pytest.raises(MeterLost):
        await meter.authorize(asked(account="stranger"))


async def test_another_deployments_books_are_refused(client, meter):
    stranger = a_meter(client, deployment="other")
    with pytest.raises(MeterLost, match="another deployment"):
        await stranger.claim(fresh=True)
    with pytest.raises(MeterLost):
        await stranger.check()
    await meter.check()


@pytest.mark.usefixtures("meter")
async def test_no_script_touches_another_deployments_books(client):
    shard = keys.shard_of("acme", SHARDS)
    names = [each.name for each in files("metering.redis.lua").iterdir() if each.name.endswith(".lua")]
    scripts = sorted(name.removesuffix(".lua") for name in names if not name.startswith("_"))
    assert "capture" in scripts
    for name in scripts:
        assert await Script(client, name)(keys=[keys.deployment(shard)], args=["other"]) == [b"lost"], name


async def test_a_shard_that_is_lost_is_refused(client, meter):
    await client.delete(keys.deployment(keys.shard_of("acme", SHARDS)))
    for attempt in (meter.check(), meter.authorize(asked()), meter.balance("acme"), meter.claim(fresh=False)):
        with pytest.raises(MeterLost):
            await attempt


async def test_scripts_that_were_flushed_are_loaded_again(client, meter):
    hold = await meter.authorize(asked())
    await client.script_flush()
    await meter.capture(hold, a_record(id="h", charge=60))
    await client.script_flush()
    assert await balance(meter) == (1_000, 60, 0)


@pytest.mark.usefixtures("meter")
@pytest.mark.parametrize(
    "wrong",
    ["return redis.call('HGET', KEYS[1], 'x')", "return redis.call('GET')", "return nothing.there", "this is no Lua"],
    ids=["type", "arguments", "runtime", "syntax"],
)
async def test_a_script_that_is_wrong_is_a_defect_of_ours_and_no_outage(client, wrong, monkeypatch):
    script = Script(client, "check")
    monkeypatch.setattr(script, "_text", wrong)
    monkeypatch.setattr(script, "_sha", "0" * 40)
    shard = keys.shard_of("acme", SHARDS)
    with pytest.raises(ResponseError), unavailable_on_failure():
        await script(keys=[keys.deployment(shard)], args=["d"])


async def test_waiting_for_the_disk_is_a_feature_that_is_detected(client, meter):
    """With Redis 7.2 or newer on the PATH this waits on the real WAITAOF; an older one is refused, and says so."""
    servers = await examine(client)
    synced = a_meter(client, ack="aof")
    hold = await synced.authorize(asked())
    if all(server.waitaof for server in servers):
        ensure_fit(servers, "aof")
        await synced.capture(hold, a_record(id="h", charge=60))
    else:
        with pytest.raises(RedisUnfit, match="PATRONAGE_REDIS_ACK=aof needs WAITAOF"):
            ensure_fit(servers, "aof")
        with pytest.raises(MeterUnavailable):
            await synced.capture(hold, a_record(id="h", charge=60))
    assert await balance(meter) == (1_000, 60, 0)
    assert len(await captured(client)) == 1


async def test_a_redis_that_is_not_there_is_unavailable():
    for url in ("redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1", "unix:///nowhere/redis.sock"):
        client = connect(url)
        try:
            with pytest.raises(MeterUnavailable):
                await examine(client)
            with pytest.raises(MeterUnavailable):
                await a_meter(client).authorize(asked())
        finally:
            await client.aclose()


async def test_what_carries_money_says_what_it_is(client, any_redis_url):
    servers = await examine(client)
    ensure_fit(servers, "none")
    assert len(servers) == (3 if "cluster" in any_redis_url else 1)
    assert {(each.role, each.eviction, each.appendonly, each.fsync) for each in servers} == {
        ("master", "noeviction", True, "always" if "cluster" in any_redis_url else "everysec")
    }
    assert [each.warnings() for each in servers] == [[]] * len(servers)


async def test_a_librarys_retries_replay_an_answer_three_times_and_the_next_answer_as_often(meter):
    """One more is asked by a program that sends the same again: it is a question of its own."""

    async def send(hold, retries):
        return await meter.authorize(asked(hold, idempotency_key="k", fingerprint="f", retries=retries))

    for turn in ("first", "second"):
        held = await send(turn, 0)
        assert isinstance(held, Hold)
        await meter.capture(held, a_record(id=turn, charge=100), turn.encode())
        for retry in (1, 2, 3):
            assert await send(f"{turn}-{retry}", retry) == Replay(turn.encode(), turn)
    fourth = await send("fourth", 4)
    assert isinstance(fourth, Hold)


async def test_replays_are_requests_of_the_keys_rate_however_many_come_at_once(meter):
    """Neither money nor tokens: a key that has no tokens left and an account without money get what they paid for."""
    limits = Limits(requests_per_minute=3, tokens_per_minute=50)
    asks = asked("first", 1_000, tokens=50, limits=limits, idempotency_key="k", fingerprint="body")
    await meter.capture(await meter.authorize(asks), a_record(id="first", charge=1_000), b"the answer")

    async def again(number):
        ask = meter.authorize if number % 2 else meter.find_replay
        more = {"tokens": 50, "limits": limits, "idempotency_key": "k", "fingerprint": "body"}
        try:
            return (await ask(asked(f"again-{number}", 1_000, **more))).response
        except RateLimited as refused:
            return refused.limit

    found = await asyncio.gather(*[again(number) for number in range(8)])
    assert sorted(found, key=str) == [b"the answer"] * 2 + ["requests"] * 6
    assert await balance(meter) == (1_000, 1_000, 0)


async def test_a_replay_waits_for_a_place_of_its_key_and_takes_none(meter):
    limits = Limits(concurrent_requests=1)
    more = {"limits": limits, "idempotency_key": "k", "fingerprint": "body"}
    await meter.capture(await meter.authorize(asked("first", **more)), a_record(id="first", charge=1), b"the answer")
    running = await meter.authorize(asked("other", limits=limits))
    for ask in (meter.find_replay, meter.authorize):
        with pytest.raises(RateLimited) as refused:
            await ask(asked("again", **more))
        assert refused.value.limit == "concurrent"
    await meter.void(running)
    for ask in (meter.find_replay, meter.authorize):
        assert await ask(asked("again", **more)) == Replay(b"the answer", "first")
    assert isinstance(await meter.authorize(asked("another", limits=limits)), Hold)


async def test_looking_for_a_replay_holds_nothing(meter):
    asks = asked("first", idempotency_key="k", fingerprint="body")
    assert await meter.find_replay(asks) is None
    assert await balance(meter) == (1_000, 0, 0)
    assert isinstance(await meter.authorize(asks), Hold)
    with pytest.raises(IdempotencyRunning):
        await meter.find_replay(asked("second", idempotency_key="k", fingerprint="body"))
    with pytest.raises(IdempotencyMismatch):
        await meter.find_replay(asked("third", idempotency_key="k", fingerprint="other"))
