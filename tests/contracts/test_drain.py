"""The drain and the ledger on both databases: everything captured is registered once, whatever dies in between."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Self

import pytest
import sqlalchemy as sa

from metering import ledger, period_gate, periods, usage_index
from metering.credit import funding_view
from metering.drain import Drain, DrainBusy
from metering.ledger import LedgerError, Transfer
from metering.money import Currency
from metering.redis import keys
from metering.redis.connection import connect
from metering.redis.meter import CAPTURED_TTL_MS
from metering.redis.usage_streams import REGISTERED_TTL_MS
from metering.usage_log import SegmentError, UsageLog, parse, records
from serving.store import deployment
from tests.records import MOMENT_MS, a_record

SHARDS = 2
USD = Currency.of("USD")
pytestmark = pytest.mark.anyio
DAY_MS = 24 * 3600 * 1000


class Rig:
    """A drain with its Redis, database and log."""

    def __init__(self, engine: sa.Engine, url: str, folder: Path) -> None:
        self.engine = engine
        self.log = UsageLog(folder)
        with engine.begin() as connection:
            self.id = deployment.begin(connection, USD, SHARDS, "directory").id
        self._url = url

    async def __aenter__(self) -> Self:
        self.client = connect(self._url)
        for shard in range(SHARDS):
            await self.client.set(keys.deployment(shard), self.id)
        self.drain = self.another()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    def another(self) -> Drain:
        return Drain(self.client, self.engine, self.log, deployment=self.id, shards=SHARDS)

    async def capture(self, *found, shard: int = 0) -> None:
        for record in found:
            await self.client.xadd(keys.usage(shard), {"r": record.encode()})

    def rows(self, table: sa.Table) -> list:
        with self.engine.connect() as connection:
            return connection.execute(sa.select(table)).all()

    def balances(self) -> dict[str, int]:
        with self.engine.connect() as connection:
            return ledger.balances(connection)

    def logged(self) -> list[str]:
        return [
            record.id
            for row in self.rows(usage_index.segments)
            for record in records(self.log.read(row.name, row.sha256))
        ]


@pytest.fixture
def rig(engine, any_redis_url, tmp_path):
    return Rig(engine, any_redis_url, tmp_path / "segments")


def numbered(count: int, **given):
    return [a_record(id=f"r{i:05d}", **given) for i in range(count)]


async def test_captured_records_reach_the_log_and_the_ledger_once(rig):
    async with rig:
        await rig.capture(*numbered(7), shard=0)
        await rig.capture(a_record(id="other", account="beta", charge=1_000), shard=1)
        assert await rig.drain.drain() == 8
        assert await rig.drain.drain() == 0
        assert (await rig.drain.lag()).records == 0
        assert sorted(rig.logged()) == ["other", *[f"r{i:05d}" for i in range(7)]]
        balances = rig.balances()
        assert balances["customer:acme"] == -7 * 2_000_000
        assert balances["customer:beta"] == -1_000
        assert balances["pool:2026-01"] == 7 * 900_000 + 450
        assert sum(balances.values()) == 0
        assert len(rig.rows(usage_index.receipts)) == 8
        usage = {row.account: (row.queries, row.charge) for row in rig.rows(usage_index.usage_daily)}
        assert usage == {"acme": (7, 14_000_000), "beta": (1, 1_000)}


async def test_what_is_free_is_paid_by_the_operator_and_earns_the_same(rig):
    async with rig:
        parts = {"cost": 100, "platform": 500, "royalty": 400, "charge": 1_000}
        for number, free in enumerate((0, 300, 550, 700, 1_000)):
            await rig.capture(a_record(id=f"r{number}", free=free, **parts))
        await rig.drain.drain()
        balances = rig.balances()
        assert balances["customer:acme"] == -(1_000 + 700 + 450 + 300 + 0)
        assert balances["operator:promotions"] == -(300 + 550 + 700 + 1_000)
        assert (balances["operator:compute"], balances["operator:platform"]) == (500, 2_500)
        assert balances["pool:2026-01"] == 2_000
        assert sum(balances.values()) == 0
        with rig.engine.connect() as connection:
            view = funding_view(connection, "acme")
        assert (view.spent, view.free_used) == (2_450, 2_550)
        assert rig.drain.take_charged() == {"acme"}
        assert rig.drain.take_charged() == set()


async def test_records_survive_the_log_unchanged(rig):
    record = a_record(id="r1", account="ünï-cödé", idempotency="f" * 64)
    async with rig:
        await rig.capture(record)
        await rig.drain.drain()
        row = rig.rows(usage_index.receipts)[0]
        segment = rig.rows(usage_index.segments)[0]
        assert rig.log.find(segment.name, segment.sha256, row.row) == record
        table = rig.log.read(segment.name, segment.sha256)
        assert table["leaf"].to_pylist() == [record.leaf()]


async def test_a_drainer_that_dies_before_it_registers_repeats_the_same_segment(rig, monkeypatch):
    async with rig:
        await rig.capture(*numbered(3))

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("metering.usage_index.add", die)
            with pytest.raises(KeyboardInterrupt):
                await rig.drain.drain()
        assert rig.rows(usage_index.segments) == []
        (left,) = Path(rig.log.path("s00/x").parent).glob("*.parquet")
        await rig.capture(*[a_record(id="later")])
        await rig.client.delete("{s00}:drainer")
        assert await rig.another().drain() == 4
        names = [row.name for row in rig.rows(usage_index.segments)]
        assert names[0] == f"s00/{left.stem}"
        assert len(names) == 2
        assert sorted(rig.logged()) == ["later", "r00000", "r00001", "r00002"]


async def test_a_drainer_that_dies_before_it_trims_registers_nothing_twice(rig, monkeypatch):
    async with rig:
        await rig.capture(*numbered(3))
        real = rig.client.xtrim

        async def die(*_: object, **__: object) -> None:
            if rig.rows(usage_index.segments):
                raise KeyboardInterrupt
            await real("nothing", maxlen=0)

        with monkeypatch.context() as patch:
            patch.setattr(rig.client, "xtrim", die)
            with pytest.raises(KeyboardInterrupt):
                await rig.drain.drain()
        assert (await rig.drain.lag()).records == 3
        await rig.client.delete("{s00}:drainer")
        assert await rig.another().drain() == 0
        assert (await rig.drain.lag()).records == 0
        assert len(rig.logged()) == 3


async def test_redis_soon_forgets_the_captures_that_the_ledger_knows(rig):
    found = numbered(7)
    async with rig:
        marks = [keys.captured(0, each.id) for each in found]
        waiting = keys.captured(0, "not drained yet")
        for mark in (*marks, waiting):
            await rig.client.set(mark, "1-0", px=CAPTURED_TTL_MS)
        await rig.capture(*found)
        await rig.drain.drain()

        assert all([0 < await rig.client.pttl(mark) <= REGISTERED_TTL_MS for mark in marks])
        assert await rig.client.pttl(waiting) > REGISTERED_TTL_MS


async def test_two_drainers_share_the_work_and_double_nothing(rig):
    async with rig:
        first, second = rig.another(), rig.another()
        for round_ in range(10):
            await rig.capture(*[a_record(id=f"{round_}-{i}") for i in range(20)], shard=round_ % SHARDS)
            await asyncio.gather(first.drain(), second.drain())
        await asyncio.gather(first.flush(), second.flush())
        assert len(rig.logged()) == len(set(rig.logged())) == 200
        assert rig.balances()["customer:acme"] == -200 * 2_000_000


async def test_a_stale_fencing_token_registers_nothing(rig):
    async with rig:
        await rig.capture(*numbered(1))
        stale = await rig.drain._take_lease(0, 0)
        await rig.client.delete("{s00}:drainer")
        await rig.another().drain()
        table = parse([("99999999999999-0", a_record(id="stale").encode())])
        segment = rig.log.write(0, table)
        mark, _ = rig.drain._mark(0)
        with rig.engine.begin() as connection:
            connection.execute(sa.update(usage_index.shards).values(fence=stale + 1))
        with pytest.raises(DrainBusy):
            rig.drain._register(segment, table, mark, stale)
        assert rig.logged() == ["r00000"]


async def test_a_moved_mark_registers_nothing(rig):
    async with rig:
        await rig.capture(*numbered(2))
        token = await rig.drain._take_lease(0, 0)
        await rig.drain.drain()
        table = parse([("1-1", a_record(id="again").encode())])
        segment = rig.log.write(0, table)
        with pytest.raises(DrainBusy):
            rig.drain._register(segment, table, "0-0", token)
        assert len(rig.logged()) == 2


async def test_a_segment_belongs_to_one_period(rig):
    async with rig:
        february = MOMENT_MS + 30 * DAY_MS
        await rig.capture(a_record(id="a"), a_record(id="b", finished_ms=february), a_record(id="c"))
        await rig.drain.drain()
        found = {row.name: row.period for row in rig.rows(usage_index.segments)}
        assert list(found.values()) == ["2026-01", "2026-02", "2026-01"]


async def test_what_comes_after_a_close_belongs_to_the_next_period(rig):
    async with rig:
        await rig.capture(a_record(id="before"))
        await rig.drain.drain()
        with rig.engine.begin() as connection:
            period_gate.close(connection, "2026-01", 1)
        await rig.capture(a_record(id="after"))
        await rig.drain.drain()
        assert [row.period for row in rig.rows(usage_index.segments)] == ["2026-01", "2026-02"]
        assert rig.balances()["pool:2026-02"] == 900_000


async def test_an_altered_or_missing_segment_is_named_and_never_skipped(rig):
    async with rig:
        await rig.capture(*numbered(2))
        await rig.drain.drain()
        row = rig.rows(usage_index.segments)[0]
        path = rig.log.path(row.name)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(SegmentError, match=row.name):
            rig.log.read(row.name, row.sha256)
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(SegmentError, match=row.name):
            rig.log.read(row.name, row.sha256)
        path.unlink()
        with pytest.raises(SegmentError, match="cannot be read"):
            rig.log.read(row.name, row.sha256)


async def test_more_records_than_a_segment_holds_become_several(rig, monkeypatch):
    monkeypatch.setattr("metering.drain.SEGMENT_RECORDS_MAX", 10)
    async with rig:
        await rig.capture(*numbered(25))
        assert await rig.drain.drain() == 25
        assert [row.records for row in rig.rows(usage_index.segments)] == [10, 10, 5]


def transfer(name: str, amount: int = 5, debit: str = "bank", credit: str = "customer:a") -> Transfer:
    return Transfer(name, 1, debit, credit, amount, ledger.FUNDING, "ref")


def test_a_transfer_is_posted_once_for_ever(engine):
    with engine.begin() as connection:
        assert ledger.post(connection, [transfer("a"), transfer("b")]) == 2
        assert ledger.post(connection, [transfer("a"), transfer("c")]) == 1
        assert ledger.balance(connection, "customer:a") == 15
    with engine.begin() as connection, pytest.raises(LedgerError, match="other contents"):
        ledger.post(connection, [transfer("a", amount=6)])


@pytest.mark.parametrize("wrong", [transfer("x", amount=0), transfer("x", amount=-1), transfer("x", credit="bank")])
def test_the_database_refuses_what_is_no_transfer(engine, wrong):
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        ledger.post(connection, [wrong])


def test_funding_is_a_view_of_the_ledger(engine):
    with engine.begin() as connection:
        ledger.post(connection, [transfer("a", 100), transfer("b", 50)])
        charge = Transfer("c", 1, "customer:a", "operator:compute", 30, ledger.CHARGE, "segment")
        ledger.post(connection, [charge])
        view = funding_view(connection, "a")
    assert (view.version, view.funded, view.spent) == (2, 150, 30)


def test_periods_of_records_are_those_of_their_end():
    assert periods.of(a_record().finished_ms) == "2026-01"
