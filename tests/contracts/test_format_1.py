"""What a version that knew only format 1 left behind is drained, closed, recomputed and verified, to the same money.

The fixture and what its own version made of it are described in ``tests/fixtures/format_1/README.md``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from attribution.runs.proofs import verify_receipt
from attribution.runs.statements import verify
from metering import ledger, periods, usage_index
from metering.meter import Hold, Request
from metering.pricing import Usage
from metering.records import UsageRecord
from metering.usage_log import records
from serving.assembly import open_books, open_metering
from serving.books import Books
from serving.closing import closing, lookup
from serving.rules.rulebook import EXTRACTIVE
from serving.settings import Settings
from serving.upkeep.audit import audit
from tests.records import a_provenance, a_record, a_use

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format_1"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text())
CLOSED, OPEN = sorted(EXPECTED["months"])
DRAINED, WAITING = 19, 5
DECEMBER_31 = 20_453
"""Days since the epoch: of 2025."""
NEWER = [f"newer-{number}" for number in range(6)]


@dataclass
class Upgraded:
    """The fixture under this version."""

    books: Books
    before: int
    """Records in the ledger when it was opened."""


def unpacked(folder: Path) -> Path:
    """A copy of the data directory, as its killed server left it."""
    with tarfile.open(FIXTURE / "data.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "data"


async def drained(books: Books, *newer: UsageRecord) -> None:
    """What waits, and further records that are captured before any of it is drained."""
    async with open_metering(books) as metering:
        for record in newer:
            hold = Hold(Request(record.id, record.account, record.key, record.charge))
            await metering.meter.authorize(hold.request)
            await metering.meter.capture(hold, record)
        await metering.drain.flush()


async def audited(books: Books) -> list[dict[str, Any]]:
    """The checks that fail."""
    async with open_metering(books) as metering:
        return [check for check in await audit(books, metering) if not check["ok"]]


def recorded(books: Books) -> int:
    with books.engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(usage_index.receipts)).scalar_one()


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory, model_cache):
    """The fixture, drained and its open month closed by this version."""
    folder = unpacked(tmp_path_factory.mktemp("format-1"))
    with open_books(Settings(data_dir=folder, model_cache=model_cache)) as books:
        before = recorded(books)
        asyncio.run(drained(books))
        closing.close(books, OPEN, early=False)
        yield Upgraded(books, before)


def test_what_was_in_redis_and_in_the_spool_is_drained_once(upgraded):
    assert upgraded.before == DRAINED
    assert recorded(upgraded.books) == DRAINED + WAITING
    assert lookup.find(upgraded.books, EXPECTED["spooled"]).period == OPEN
    assert not list(upgraded.books.directory.spool.iterdir())


@pytest.mark.parametrize("period", [CLOSED, OPEN])
def test_each_month_has_the_run_that_its_own_version_gives(upgraded, period):
    """To the byte: input root, totals, credits, statements and signature."""
    expected, folder = EXPECTED["months"][period], upgraded.books.directory.run(period)
    assert json.loads((folder / "manifest.json").read_bytes()) == expected["manifest"]
    assert (folder / "checkpoint.txt").read_text() == expected["checkpoint"]
    for name, sha256 in expected["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256, name


def test_the_ledger_has_moved_the_same_money(upgraded):
    table = ledger.transfers
    accounts = (table.c.debit, table.c.credit, table.c.kind)
    with upgraded.books.engine.connect() as connection:
        query = sa.select(*accounts, sa.func.sum(table.c.amount)).group_by(*accounts).order_by(*accounts)
        moved = [[debit, credit, kind, int(units)] for debit, credit, kind, units in connection.execute(query)]
    assert moved == EXPECTED["transfers"]


@pytest.mark.parametrize("period", [CLOSED, OPEN])
def test_every_statement_verifies(upgraded, period):
    key = upgraded.books.signer.public_key
    for contributor in ("ada", "ben", "cleo"):
        bundle = closing.statement(upgraded.books, contributor, period)
        checks = verify(bundle, key)
        assert checks
        assert all(check["ok"] for check in checks), checks


def test_every_record_is_proved_in_its_run(upgraded):
    with upgraded.books.engine.connect() as connection:
        ids = connection.execute(sa.select(usage_index.receipts.c.id)).scalars().all()
    for receipt in ids:
        record = lookup.find(upgraded.books, receipt).record
        checks = verify_receipt({"id": receipt, "inclusion": closing.inclusion(upgraded.books, record)})
        assert all(check["ok"] for check in checks), checks


def test_everything_is_audited(upgraded):
    assert asyncio.run(audited(upgraded.books)) == []


def a_newer_record(books: Books, name: str) -> UsageRecord:
    """A query of the open month, answered by this version under the prices and the policy of then."""
    price, policy = books.rulebook.price_book(2).price(EXTRACTIVE), books.rulebook.policy
    usage = Usage(9, 40, 2)
    charge, cost = price.charge(usage), price.cost(usage)
    platform, royalty = policy.divide(charge, cost)
    at_ms = periods.HOUR_MS * (DECEMBER_31 * 24 + 23)
    uses = (a_use("ada/light", "ada", cited=True), a_use("ben/tarn", "ben"))
    return a_record(
        id=name, account="acme", charge=charge, cost=cost, platform=platform, royalty=royalty, uses=uses,
        started_ms=at_ms, finished_ms=at_ms + 5, price_version=2, policy_version=policy.version,
    )  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, model_cache):
    """The fixture, whose open month this version goes on with before what waited is drained, and then closes."""
    folder = unpacked(tmp_path_factory.mktemp("mixed"))
    with open_books(Settings(data_dir=folder, model_cache=model_cache)) as books:
        asyncio.run(drained(books, *[a_newer_record(books, name) for name in NEWER]))
        closing.close(books, OPEN, early=False)
        yield books


def test_a_month_of_two_formats_is_one_month(mixed):
    formats: Counter[int] = Counter()
    of_both = 0
    for segment in closing.segments_of(mixed.engine, OPEN):
        found = {record.id: record for record in records(mixed.log.read(segment.name, segment.sha256))}
        formats.update(record.format for record in found.values())
        of_both += len({record.format for record in found.values()}) == 2
    assert formats == {1: EXPECTED["months"][OPEN]["manifest"]["records"], 2: len(NEWER)}
    assert of_both, "a stream had records of both"
    assert asyncio.run(audited(mixed)) == []


def test_each_record_is_proved_by_the_bytes_of_its_own_format(mixed):
    for receipt, number in ((EXPECTED["spooled"], 1), (NEWER[0], 2)):
        record = lookup.find(mixed, receipt).record
        inclusion = closing.inclusion(mixed, record)
        content = json.loads(inclusion["record"]["content"])
        assert (content["format"], "provenance" in content) == (number, number == 2)
        checks = verify_receipt({"id": receipt, "inclusion": inclusion})
        assert all(check["ok"] for check in checks), checks


def test_a_contributor_is_not_shown_how_an_answer_came_about(mixed):
    made = a_provenance()
    bundles = [closing.statement(mixed, name, OPEN) for name in ("ada", "ben", "cleo")]
    shown = json.dumps([bundle["statement"] for bundle in bundles] + [bundle["run"] for bundle in bundles])
    for told in (made.machine, made.engine, made.tokenizer, made.embedder, "provenance", "newer-0", "acme"):
        assert told not in shown
