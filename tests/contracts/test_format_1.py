"""What a version that knew only format 1 left behind is drained, closed, recomputed and verified, to the same money.

The fixture and what its own version made of it are described in ``tests/fixtures/format_1/README.md``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from attribution.proofs import verify_receipt
from attribution.statements import verify
from metering import ledger
from serving.assembly import open_books, open_metering
from serving.books import Books
from serving.closing import closing, receipts
from serving.settings import Settings
from serving.upkeep.audit import audit

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format_1"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text())
CLOSED, OPEN = sorted(EXPECTED["months"])
DRAINED, WAITING = 19, 5


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


async def drained(books: Books) -> None:
    async with open_metering(books) as metering:
        await metering.drain.settle()


def recorded(books: Books) -> int:
    with books.engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(ledger.receipts)).scalar_one()


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
    assert receipts.find(upgraded.books, EXPECTED["spooled"]).period == OPEN
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
        ids = connection.execute(sa.select(ledger.receipts.c.id)).scalars().all()
    for receipt in ids:
        record = receipts.find(upgraded.books, receipt).record
        checks = verify_receipt({"id": receipt, "inclusion": closing.inclusion(upgraded.books, record)})
        assert all(check["ok"] for check in checks), checks


def test_everything_is_audited(upgraded):
    async def audited() -> list[dict[str, Any]]:
        async with open_metering(upgraded.books) as metering:
            return await audit(upgraded.books, metering)

    assert [check for check in asyncio.run(audited()) if not check["ok"]] == []
