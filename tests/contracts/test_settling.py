"""Settling, on a real meter: what was left open while it was away is closed when it is back, and waits until then."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager

import pytest

from metering.meter import Funding, Hold, MeterUnavailable, Request
from metering.money import Currency
from metering.processes import Processes
from metering.redis.connection import connect
from metering.redis.meter import RedisMeter
from metering.settling import Settling
from metering.spool import Spool
from serving.store import deployment
from tests.records import a_record

pytestmark = pytest.mark.anyio
CHARGE = 2_000_000
TTLS = {"hold_ttl_ms": 60_000, "replay_ttl_ms": 60_000, "retry_ttl_ms": 60_000}


class Switched:
    """The meter, which can be gone: then it is the same one where nobody listens."""

    def __init__(self, there, gone):
        self.there, self.gone, self.away = there, gone, False

    def __getattr__(self, name):
        return getattr(self.gone if self.away else self.there, name)


@pytest.fixture
async def meter(redis_url, engine):
    with engine.begin() as connection:
        found = deployment.begin(connection, Currency.of("USD"), 4, "here")
    async with connect(redis_url) as client, connect("unix:///nonexistent/redis.sock") as nobody:
        there, gone = (
            RedisMeter(each, deployment=found.id, shards=4, process="p", **TTLS) for each in (client, nobody)
        )
        await there.claim(fresh=True)
        for account in ("acme", "other"):
            await there.fund(Funding(account, 1, 10 * CHARGE, 0))
        yield Switched(there, gone)


@pytest.fixture
def processes(tmp_path):
    return Processes(tmp_path / "processes")


@pytest.fixture
def settling(meter, engine, tmp_path, processes):
    return Settling(meter, Spool(tmp_path / "spool", engine), processes)


@asynccontextmanager
async def running(settling):
    over = asyncio.Event()
    task = asyncio.create_task(settling.run(over))
    yield
    over.set()
    await asyncio.wait_for(task, 5)


def asked(hold, account="acme", **more):
    return Request(hold, account, "key", 2 * CHARGE, **more)


async def spent(meter, account="acme"):
    found = await meter.there.balance(account)
    return found.spent, found.held


async def test_what_is_left_open_is_closed_when_the_meter_is_back_and_waited_for(meter, settling):
    lost, kept = asked("lost"), await meter.authorize(asked("kept"))
    await meter.authorize(lost)
    async with running(settling):
        meter.away = True
        settling.abandon(lost)
        await settling.keep(kept, a_record(id="kept", account="acme", charge=CHARGE), b"")
        for waiting in (settling.paid("acme", 0.2), settling.given_up("lost", 0.2)):
            with pytest.raises(MeterUnavailable):
                await waiting
        await settling.paid("other", 0), "it owes nothing"
        assert await spent(meter) == (0, 4 * CHARGE)
        meter.away = False
        await asyncio.gather(settling.paid("acme", 5), settling.given_up("lost", 5))
    assert await spent(meter) == (CHARGE, 0)
    assert (settling.waiting, settling.is_abandoned("lost")) == (0, False)


async def test_two_passes_at_once_are_one_after_the_other(settling):
    for number in range(20):
        settling.abandon(asked(f"lost-{number}", "other"))
    await asyncio.gather(*[settling.settle() for _ in range(3)])
    assert settling.waiting == 0


async def test_what_was_not_sent_is_told(meter, settling):
    meter.away = True
    settling.abandon(asked("lost"))
    with pytest.raises(MeterUnavailable):
        await settling.settle()
    assert settling.is_abandoned("lost")
    meter.away = False
    await settling.settle()
    assert not settling.is_abandoned("lost")


async def test_accounts_whose_shard_is_away_hold_up_nobody(meter, settling, monkeypatch):
    """As in a cluster: some of what waits cannot be sent, however often it is tried."""
    abandon = meter.there.abandon

    async def some(request):
        if request.account == "other":
            raise MeterUnavailable("its master is down")
        await abandon(request)

    monkeypatch.setattr(meter.there, "abandon", some)
    for number in range(10):
        settling.abandon(asked(f"other-{number}", "other"))
    hold = await meter.authorize(asked("lost"))
    settling.abandon(hold.request)
    for _ in range(4):
        with pytest.raises(MeterUnavailable):
            await settling.settle()
    assert await spent(meter) == (0, 0)
    assert settling.waiting == 10


async def test_what_of_one_kind_cannot_be_closed_holds_up_no_other(meter, settling, processes, monkeypatch):
    """As in a cluster: what is owed, given up or held by the dead may each be on a master that is down."""
    capture, run = meter.there.capture, meter.there._run
    (shard,) = {meter.there._shard("other")} - {meter.there._shard("acme")}

    async def some(hold, *args):
        if hold.request.account == "other":
            raise MeterUnavailable("its master is down")
        await capture(hold, *args)

    async def some_run(name, where, *args):
        if where == shard:
            raise MeterUnavailable("its master is down")
        return await run(name, where, *args)

    owed, lost = await meter.authorize(asked("owed", "other")), await meter.authorize(asked("lost"))
    with processes.register() as dying:
        for account in ("acme", "other"):
            meter.there._process = dying
            await meter.authorize(asked(f"dead-{account}", account))
    monkeypatch.setattr(meter.there, "capture", some)
    monkeypatch.setattr(meter.there, "_run", some_run)
    await settling.keep(owed, a_record(id="owed", account="other", charge=CHARGE), b"")
    settling.abandon(lost.request)
    with pytest.raises(MeterUnavailable):
        await settling.settle()
    monkeypatch.undo()
    assert await spent(meter) == (0, 0)
    assert await spent(meter, "other") == (0, 4 * CHARGE)
    await settling.settle()
    assert await spent(meter, "other") == (CHARGE, 0)


async def test_what_a_dead_process_holds_is_released_and_again_when_nothing_of_its_can_come(
    meter, settling, processes, monkeypatch
):
    async def held_by(process):
        meter.there._process = process
        assert isinstance(await meter.authorize(asked(secrets.token_hex(4))), Hold)

    with processes.register() as living:
        await held_by(living)
        with processes.register() as dying:
            await held_by(dying)
            await settling.settle()
            assert await spent(meter) == (0, 4 * CHARGE), "both live"
        await settling.settle()
        assert await spent(meter) == (0, 2 * CHARGE)
        await held_by(dying)  # it was on its way
        await settling.settle()
        assert await spent(meter) == (0, 4 * CHARGE), "not yet"
        monkeypatch.setattr("metering.settling._LATE_S", 0.0)
        await settling.settle()
        assert await spent(meter) == (0, 2 * CHARGE)
        assert processes.dead() == []
