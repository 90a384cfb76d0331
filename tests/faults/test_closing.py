"""Closing a period: whatever dies in between, the same run comes out, once; whatever the order, the same bytes."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from attribution.runs.outcomes import Outcome
from attribution.runs.proofs import verify_growth, verify_receipt
from attribution.runs.statements import verify
from metering import ledger, periods, usage_index
from metering.meter import Funding, Hold, Request
from metering.pricing import Usage
from metering.records import VALUE_ONE, Split
from metering.usage_log import parse, records
from serving.assembly import open_books, open_metering
from serving.closing import closing, lookup, outcomes, transparency_log
from serving.rules.rulebook import EXTRACTIVE
from serving.settings import Settings
from serving.upkeep.audit import audit
from tests.records import MOMENT_MS, a_record, a_use

PERIOD = periods.of(MOMENT_MS)
FILES = (
    "manifest.json",
    "hours.json",
    "records.parquet",
    "credits.parquet",
    "outcomes.parquet",
    "checkpoint.txt",
    "statements.jsonl",
)


def queries(books, count: int, seed: int = 1):
    """Records of many shapes: contributors with several documents, splits, games of all sizes."""
    dice = random.Random(seed)
    price, policy = books.rulebook.prices.price(EXTRACTIVE), books.rulebook.policy
    for i in range(count):
        uses = tuple(
            a_use(
                f"doc-{place}-{dice.randrange(5)}",
                f"contributor-{dice.randrange(4)}",
                splits=(Split("contributor-0", "author", 333_333), Split("translator", "translator", 666_667))
                if dice.random() < 0.3
                else None,
                cited=dice.random() < 0.5,
            )
            for place in range(dice.randrange(6))
        )
        worths = [dice.randrange(VALUE_ONE // 6) for _ in uses]
        values = tuple(sum(w for j, w in enumerate(worths) if s >> j & 1) for s in range(2 ** len(uses)))
        usage = Usage(dice.randrange(1, 60), dice.randrange(300), len(uses))
        charge, cost = price.charge(usage), price.cost(usage)
        platform, royalty = policy.divide(charge, cost)
        yield a_record(
            id=f"{i:08d}",
            account=f"customer-{i % 3}",
            charge=charge,
            cost=cost,
            platform=platform,
            royalty=royalty,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            uses=uses,
            values=values,
            started_ms=MOMENT_MS + i,
        )


async def use(books, found) -> None:
    """Pay for records as the server does, and drain them."""
    for number in range(3):
        customer = f"customer-{number}"
        books.identities.add_customer(customer, customer)
        funding = ledger.Transfer(f"f-{number}", 1, ledger.BANK, ledger.customer(customer), 10**9, ledger.FUNDING, "r")
        with books.engine.begin() as connection:
            ledger.post(connection, [funding])
    for each in ("contributor-0", "contributor-1", "contributor-2", "contributor-3", "translator", "nobody"):
        books.catalogue.add_contributor(each, each)
    async with open_metering(books) as metering:
        for number in range(3):
            await metering.meter.fund(Funding(f"customer-{number}", 1, 10**9, 0))
        for i, record in enumerate(found):
            hold = Hold(Request(record.id, record.account, "key", record.charge))
            await metering.meter.authorize(hold.request)
            await metering.meter.capture(hold, record)
            if i % 37 == 0:
                await metering.drain.drain()
        await metering.drain.flush()


async def use_more(books, found) -> None:
    """Pay for further records, of the customers that there are."""
    async with open_metering(books) as metering:
        for each in found:
            record = msgspec.structs.replace(each, id=f"more-{each.id}")
            hold = Hold(Request(record.id, record.account, "key", record.charge))
            await metering.meter.authorize(hold.request)
            await metering.meter.capture(hold, record)
        await metering.drain.flush()


async def checks(books) -> list[str]:
    async with open_metering(books) as metering:
        return [check["name"] for check in await audit(books, metering) if not check["ok"]]


@pytest.fixture
def used(books):
    asyncio.run(use(books, queries(books, 150)))
    return books


def run_files(books) -> dict[str, bytes]:
    return {name: (books.directory.run(PERIOD) / name).read_bytes() for name in FILES}


def test_a_close_conserves_and_its_statements_verify(used):
    found = closing.close(used, PERIOD, early=False)
    totals = found.tally.totals
    assert totals.records == 150
    assert totals.charged == totals.cost + totals.platform + totals.credited + totals.residual
    assert sum(found.tally.credited_to().values()) == totals.credited
    bundles = [closing.statement(used, name, PERIOD) for name in found.issue.contributors]
    assert all(check["ok"] for bundle in bundles for check in verify(bundle))
    assert closing.statement(used, "nobody", PERIOD)["statement"]["documents"] == []
    assert asyncio.run(checks(used)) == []


def test_copies_close_to_the_same_bytes(used, tmp_path, model_cache):
    copy = tmp_path / "copy"
    shutil.copytree(used.directory.path, copy)
    closing.close(used, PERIOD, early=False)
    with open_books(Settings(data_dir=copy, model_cache=model_cache)) as other:
        closing.close(other, PERIOD, early=False)
        assert run_files(other) == run_files(used)


def test_the_order_and_the_partition_of_the_segments_do_not_matter(used, tmp_path):
    """The same records, cut into other segments and shuffled, give the same manifest and credits."""
    segments = closing.segments_of(used.engine, PERIOD)
    expected = closing.compute_run(used, used.log, segments, PERIOD, 1, tmp_path / "expected")
    every = [record.encode() for each in segments for record in records(used.log.read(each.name, each.sha256))]
    for seed, size in ((1, 1), (2, 7), (3, 150)):
        random.Random(seed).shuffle(every)
        log = type(used.log)(tmp_path / str(seed))
        cut = []
        for start in range(0, len(every), size):
            entries = [(f"{start + i + 1}-0", data) for i, data in enumerate(every[start : start + size])]
            cut.append(log.write(0, parse(entries)))
        random.Random(seed).shuffle(cut)
        found = closing.compute_run(used, log, cut, PERIOD, 1, tmp_path / f"parts-{seed}")
        assert found.issue.manifest == expected.issue.manifest
        assert found.issue.statements == expected.issue.statements
        assert found.hours == expected.hours


@pytest.mark.parametrize("step", ["_compute_run", "_write", "_transfers", "canonical"])
def test_a_close_that_dies_is_resumed_to_the_same_run(used, tmp_path, model_cache, monkeypatch, step):
    copy = tmp_path / "copy"
    shutil.copytree(used.directory.path, copy)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(closing, step, die)
        with pytest.raises(KeyboardInterrupt):
            closing.close(used, PERIOD, early=False)
    closing.close(used, PERIOD, early=False)
    with open_books(Settings(data_dir=copy, model_cache=model_cache)) as other:
        closing.close(other, PERIOD, early=False)
        assert run_files(other) == run_files(used)
    assert asyncio.run(checks(used)) == []


def test_records_that_come_after_the_pin_are_not_in_the_run(used, monkeypatch):
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(closing, "_compute_run", die)
        with pytest.raises(KeyboardInterrupt):
            closing.close(used, PERIOD, early=False)

    async def later() -> None:
        record = a_record(id="later", account="customer-0")
        async with open_metering(used) as metering:
            hold = Hold(Request("later", "customer-0", "key", record.charge))
            await metering.meter.authorize(hold.request)
            await metering.meter.capture(hold, record)
            await metering.drain.flush()

    asyncio.run(later())
    assert closing.close(used, PERIOD, early=False).tally.totals.records == 150
    assert closing.preview(used, periods.following(PERIOD)).tally.totals.records == 1


def test_the_log_of_runs_grows_and_every_record_is_provably_in_it(used):
    closing.close(used, PERIOD, early=False)
    before = transparency_log.checkpoint(used)
    asyncio.run(use_more(used, queries(used, 5, seed=2)))
    closing.close(used, periods.following(PERIOD), early=False)
    answer = transparency_log.consistency(used, before["size"])
    assert (answer["from"], answer["to"]) == (1, 2)
    assert all(check["ok"] for check in verify_growth(answer, before))
    for size in (-1, 3):
        with pytest.raises(transparency_log.LogSizeError):
            transparency_log.consistency(used, size)
    for name in ("00000000", "00000149", "more-00000003"):
        record = lookup.find(used, name).record
        receipt = {"id": name, "inclusion": closing.inclusion(used, record)}
        assert [check["name"] for check in verify_receipt(receipt) if not check["ok"]] == []
    assert asyncio.run(checks(used)) == []


@pytest.mark.parametrize("seed", range(3))
def test_outcomes_move_no_money_between_customers(used, seed):
    """What each customer's queries gave to documents is the same, and who said nothing has moved nothing."""
    dice = random.Random(seed)
    plain = closing.preview(used, PERIOD)
    for number in range(0, 150, 3):
        outcome = (
            Outcome(None, dice.randrange(-(10**6), 10**6)) if dice.random() < 0.5 else Outcome(number * 1000, None)
        )
        assert outcomes.report(used.engine, "customer-0", f"{number:08d}", outcome) == 1
    found = closing.close(used, PERIOD, early=False)
    assert found.moved
    assert {account for account, _, _ in found.moved} == {"customer-0"}
    assert sum(units for _, _, units in found.moved) == 0
    assert found.tally.totals == plain.tally.totals
    assert found.tally.credited == plain.tally.credited
    assert sum(found.tally.credited_to().values()) == found.tally.totals.credited
    assert asyncio.run(checks(used)) == []
    with pytest.raises(outcomes.OutcomeRefused, match="is closed"):
        outcomes.report(used.engine, "customer-0", "00000000", Outcome(None, 0))


def test_an_outcome_is_revised_so_many_times_and_no_more(used):
    for turn in range(outcomes.REVISIONS_MAX):
        assert outcomes.report(used.engine, "customer-0", "00000000", Outcome(turn, None)) == turn + 1
    assert outcomes.latest_of(used.engine, "00000000") == Outcome(outcomes.REVISIONS_MAX - 1, None)
    with pytest.raises(outcomes.OutcomeRefused, match="100 times"):
        outcomes.report(used.engine, "customer-0", "00000000", Outcome(0, 0))


def test_a_closed_period_is_not_closed_again(used):
    closing.close(used, PERIOD, early=False)
    with pytest.raises(closing.ClosingError, match="already closed"):
        closing.close(used, PERIOD, early=False)


def test_of_closes_at_once_one_closes_and_the_others_are_refused(used):
    barrier = threading.Barrier(4)

    def close(_: int) -> bool:
        barrier.wait()
        try:
            return closing.close(used, PERIOD, early=False).tally.totals.records == 150
        except closing.ClosingError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(close, range(4))) == [False, False, False, True]
    assert len(run_files(used)) == len(FILES)
    assert asyncio.run(checks(used)) == []


def test_while_a_period_is_closed_no_other_caller_closes_one(used, model_cache, monkeypatch):
    """Even one that has books of its own, as a command beside the server has."""
    real, refused = closing._compute_run, []

    def meanwhile(*args: object, **options: object):
        with open_books(Settings(data_dir=used.directory.path, model_cache=model_cache)) as other:
            for period in (PERIOD, periods.following(PERIOD)):
                with pytest.raises(closing.ClosingError, match="being closed at this moment") as caught:
                    closing.close(other, period, early=False)
                refused.append(caught.value)
        return real(*args, **options)

    monkeypatch.setattr(closing, "_compute_run", meanwhile)
    assert closing.close(used, PERIOD, early=False).tally.totals.records == 150
    assert len(refused) == 2
    assert asyncio.run(checks(used)) == []


def test_a_full_disk_stops_a_close_and_loses_nothing(used, monkeypatch):
    real = Path.open

    def full(self, mode="r", *args, **options):
        if self.name.startswith(".credits.parquet"):
            raise OSError(28, "No space left on device")
        return real(self, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space left"):
            closing.close(used, PERIOD, early=False)
    closing.close(used, PERIOD, early=False)
    assert asyncio.run(checks(used)) == []


def damage_segment(books) -> None:
    path = books.log.path(closing.segments_of(books.engine, PERIOD)[0].name)
    path.write_bytes(path.read_bytes()[:-3])


def damage_credits(books) -> None:
    path = books.directory.run(PERIOD) / "credits.parquet"
    path.write_bytes(path.read_bytes() + b"x")


def damage_statement(books) -> None:
    with books.engine.begin() as connection:
        connection.execute(sa.text("DROP TRIGGER statements_no_update"))
        row = connection.execute(sa.select(closing.statements).limit(1)).one()
        bundle = json.loads(row.bundle)
        bundle["statement"]["credited"]["amount"] = "99.000000"
        table = closing.statements
        change = sa.update(table).where(table.c.contributor == row.contributor)
        connection.execute(change.values(bundle=json.dumps(bundle)))


def damage_ledger(books) -> None:
    with books.engine.begin() as connection:
        connection.execute(sa.text("DROP TRIGGER transfers_no_update"))
        table = ledger.transfers
        row = connection.execute(sa.select(table).where(table.c.kind == ledger.CHARGE).limit(1)).one()
        connection.execute(sa.update(table).where(table.c.id == row.id).values(amount=row.amount + 1))


def damage_receipts(books) -> None:
    with books.engine.begin() as connection:
        connection.execute(sa.text("DROP TRIGGER receipts_no_delete"))
        one = sa.select(usage_index.receipts.c.id).limit(1).scalar_subquery()
        connection.execute(sa.delete(usage_index.receipts).where(usage_index.receipts.c.id == one))


def damage_outcomes(books) -> None:
    """An outcome that comes after the close, past the door."""
    with books.engine.begin() as connection:
        row = connection.execute(sa.select(usage_index.receipts).limit(1)).one()
        late = {"receipt": row.id, "revision": 1, "account": row.account, "at_ms": 1, "value": 0, "rating_ppm": None}
        connection.execute(sa.insert(outcomes.outcomes), late)


def damage_run_log(books) -> None:
    with books.engine.begin() as connection:
        connection.execute(sa.text("DROP TRIGGER run_log_no_update"))
        connection.execute(sa.update(transparency_log.run_log).values(leaf="0" * 64))


def damage_hours(books) -> None:
    path = books.directory.run(PERIOD) / "hours.json"
    path.write_text(path.read_text().replace('"records":', '"records":1'))


def damage_records(books) -> None:
    path = books.directory.run(PERIOD) / "records.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(len(table)))[::-1]), path)


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (damage_segment, "segments are intact and in sequence"),
        (damage_credits, "every run recomputes to the same bytes"),
        (damage_outcomes, "every run recomputes to the same bytes"),
        (damage_hours, "every run recomputes to the same bytes"),
        (damage_records, "every run recomputes to the same bytes"),
        (damage_run_log, "the transparency log has every run once, and in order"),
        (damage_statement, "every statement verifies against its signed root"),
        (damage_ledger, "the ledger balances, and agrees with the log"),
        (damage_receipts, "every record has one receipt and is counted once"),
    ],
)
def test_the_audit_names_what_was_tampered_with(used, damage, check):
    closing.close(used, PERIOD, early=False)
    damage(used)
    assert check in asyncio.run(checks(used))
