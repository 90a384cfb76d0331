"""The spool, on a real meter and every database: what waits is charged once, whatever happens on the way."""

from __future__ import annotations

import asyncio

import pytest

from metering.drain import Drain
from metering.meter import Funding, Hold, MeterUnavailable, Request
from metering.money import Currency
from metering.redis.connection import connect
from metering.redis.meter import RedisMeter
from metering.spool import MAGIC, Spool, SpoolFull
from metering.usage_log import UsageLog
from serving.store import deployment
from tests.records import a_record

pytestmark = pytest.mark.anyio
CHARGE = 2_000_000


@pytest.fixture
async def client(redis_url):
    async with connect(redis_url) as found:
        yield found


@pytest.fixture
async def meter(client, engine):
    with engine.begin() as connection:
        found = deployment.begin(connection, Currency.of("USD"), 4, "here")
    made = RedisMeter(
        client,
        deployment=found.id,
        shards=4,
        hold_ttl_ms=60_000,
        replay_ttl_ms=60_000,
        retry_ttl_ms=60_000,
        process="p",
    )
    await made.claim(fresh=True)
    await made.fund(Funding("acme", 1, 10 * CHARGE, 0))
    return made


@pytest.fixture
def away(meter):
    """The same meter, and nobody there."""
    nobody = connect("unix:///nonexistent/redis.sock")
    return RedisMeter(
        nobody, deployment=meter._deployment, shards=4, hold_ttl_ms=1, replay_ttl_ms=1, retry_ttl_ms=1, process="p"
    )


@pytest.fixture
def spool(tmp_path, engine):
    return Spool(tmp_path / "spool", engine)


async def held(meter, name="one"):
    hold = await meter.authorize(Request(name, "acme", "key", 2 * CHARGE))
    assert isinstance(hold, Hold)
    return hold, a_record(id=name, account="acme", charge=CHARGE)


async def test_what_waits_is_charged_once_and_gone(meter, spool):
    hold, record = await held(meter)
    spool.put(hold, record, b"sealed")
    assert spool.waiting == 1
    assert spool.find("one") == record

    assert await spool.resend(meter) == 1
    assert await spool.resend(meter) == 0
    assert (await meter.balance("acme")).spent == CHARGE
    assert (spool.waiting, spool.find("one"), spool.state().waiting) == (0, None, ())


async def test_a_charge_that_was_taken_before_is_not_taken_again(meter, spool):
    """As after a crash between the charge and the end of the file, or a reply that was lost."""
    hold, record = await held(meter)
    spool.put(hold, record)
    await meter.capture(hold, record)

    assert await spool.resend(meter) == 1
    assert (await meter.balance("acme")).spent == CHARGE


async def test_a_charge_that_the_ledger_has_is_never_sent(meter, spool, client, engine, tmp_path):
    """Also when the meter has forgotten the capture: a spool may be copied back after weeks."""
    hold, record = await held(meter)
    await meter.capture(hold, record)
    found = deployment.load(engine)
    drain = Drain(client, engine, UsageLog(tmp_path / "segments"), deployment=found.id, shards=4)
    assert await drain.drain() == 1
    for key in await client.keys("*:done:*"):
        await client.delete(key)
    spool.put(hold, record)

    assert await spool.resend(meter) == 1
    assert (await meter.balance("acme")).spent == CHARGE
    assert (await drain.lag()).records == 0


async def test_it_waits_on_while_the_meter_is_away(meter, away, spool):
    hold, record = await held(meter)
    spool.put(hold, record)
    with pytest.raises(MeterUnavailable):
        await spool.resend(away)

    assert spool.state().waiting == ("one.capture",)
    assert await spool.resend(meter) == 1


async def test_another_process_finds_it_and_sends_it_once(meter, spool, tmp_path, engine):
    hold, record = await held(meter)
    spool.put(hold, record)
    other = Spool(tmp_path / "spool", engine)
    assert other.waiting == 1
    assert await other.resend(meter) == 1
    assert await spool.resend(meter) == 0
    assert spool.waiting == 0
    assert (await meter.balance("acme")).spent == CHARGE


async def test_what_the_meter_refuses_is_put_aside(meter, spool):
    """The hold is gone, and the money too: the operator sees it, and nobody goes below zero."""
    _, record = await held(meter)
    poor = Hold(Request("one", "poor", "key", CHARGE))
    await meter.fund(Funding("poor", 1, CHARGE - 1, 0))
    spool.put(poor, record)

    assert await spool.resend(meter) == 0
    assert spool.state().refused == ("one.refused",)
    assert spool.waiting == 0
    assert (await meter.balance("poor")).spent == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(MAGIC) + 3],
        lambda data: data[:0],
        lambda data: data + b"x",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[: len(MAGIC)] + bytes([data[len(MAGIC)] ^ 1]) + data[len(MAGIC) + 1 :],
        lambda data: b"another format\n" + data,
    ],
    ids=["torn", "torn-header", "empty", "longer", "flipped", "length", "format"],
)
async def test_a_damaged_file_is_put_aside_and_holds_up_nobody(meter, spool, tmp_path, damage):
    hold, record = await held(meter)
    second, other = await held(meter, "two")
    spool.put(hold, record)
    spool.put(second, other)
    path = tmp_path / "spool" / "one.capture"
    path.write_bytes(damage(path.read_bytes()))

    assert spool.find("one") is None
    assert await spool.resend(meter) == 1
    assert spool.state().damaged == ("one.damaged",)
    assert (await meter.balance("acme")).spent == CHARGE


async def test_it_is_bounded(meter, tmp_path, engine):
    small = Spool(tmp_path / "small", engine, captures_max=1)
    hold, record = await held(meter)
    small.put(hold, record)
    with pytest.raises(SpoolFull):
        small.put(*await held(meter, "two"))
    assert await small.resend(meter) == 1


async def test_a_full_disk_leaves_nothing_behind(meter, spool, monkeypatch, tmp_path):
    hold, record = await held(meter)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            spool.put(hold, record)
    assert list((tmp_path / "spool").iterdir()) == []
    assert spool.waiting == 0


@pytest.mark.parametrize("name", ["../keys/signing", "one", "", "a/b", ".."])
def test_a_receipt_that_is_not_there_is_not_found(spool, name):
    assert spool.find(name) is None


async def test_two_processes_that_send_at_once_send_one_after_the_other(meter, spool, tmp_path, engine):
    sending, most = 0, 0

    class Counting:
        async def capture(self, *capture):
            nonlocal sending, most
            sending += 1
            most = max(most, sending)
            await asyncio.sleep(0.01)
            await meter.capture(*capture)
            sending -= 1

    for number in range(4):
        spool.put(*await held(meter, f"h{number}"))
    assert spool.waits_for("acme")
    found = await asyncio.gather(*[Spool(tmp_path / "spool", engine).resend(Counting()) for _ in range(3)])
    assert (sorted(found), most) == ([0, 0, 4], 1)
    assert await spool.resend(meter) == 0
    assert not spool.waits_for("acme"), "another process sent it"
