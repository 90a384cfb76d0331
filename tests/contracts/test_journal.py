"""The journal: beancount and hledger themselves accept it, and find the balances that the ledger has."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from metering import journal, ledger, sql
from metering.chart import place
from metering.journal import Format
from metering.ledger import DAY_MS, Transfer
from metering.money import Currency
from serving.money.trial_balance import FOREVER_MS
from tests.records import MOMENT_MS

USD = Currency.of("USD")
BEANCOUNT = "beancount==3.2.3"
BALANCES = """
import collections, json, sys
from beancount import loader
from beancount.core import data
entries, errors, options = loader.load_file(sys.argv[1])
found = collections.defaultdict(int)
opened = {}
for entry in entries:
    if isinstance(entry, data.Transaction):
        for posting in entry.postings:
            found[posting.account] += posting.units.number
    elif isinstance(entry, data.Open):
        opened[entry.account] = entry.meta["account"]
count = sum(isinstance(entry, data.Transaction) for entry in entries)
json.dump({"errors": len(errors), "count": count, "opened": opened,
           "balances": {account: str(units) for account, units in found.items()}}, sys.stdout)
"""
NASTY = ("acme", "acme-1", "acme--1", "a_b", "a.b", "ÜÑÎ", "\N{GRINNING FACE}", "A" * 200, "1", "-", "a:b", ";c", "%41")


@pytest.fixture(scope="session")
def beancount() -> Path:
    """A throw-away environment with beancount. It is under the GPL: the tests run it, Patronage never loads it."""
    home = Path(tempfile.gettempdir()) / f"patronage-tests-{BEANCOUNT}"
    if not (home / "bin" / "bean-check").exists():
        building = Path(tempfile.mkdtemp(prefix="patronage-tests-"))
        subprocess.run([sys.executable, "-m", "venv", str(building)], check=True)
        pip = [str(building / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, BEANCOUNT], check=True)
        script = building / "bin" / "bean-check"
        script.write_text(script.read_text().replace(str(building), str(home)))
        shutil.rmtree(home, ignore_errors=True)
        building.rename(home)
    return home / "bin"


@pytest.fixture
def kept(engine: sa.Engine) -> sa.Engine:
    """Four days of transfers between accounts of every kind, with names and reasons that a text could stumble on."""
    dice = random.Random(7)
    accounts = [
        ledger.BANK, ledger.IN_TRANSIT, ledger.RESIDUAL, ledger.COMPUTE, ledger.PLATFORM, ledger.pool("2026-01"),
        *[ledger.customer(name) for name in NASTY], *[ledger.contributor(name) for name in NASTY],
    ]  # fmt: skip
    texts = (
        "plain",
        'a "quoted" \\ word',
        "semi; colon | bar = @ {1}",
        "ünï \N{GRINNING FACE}",
        "2026-01-01 * !",
        "# ;",
    )
    batch = []
    for i in range(400):
        debit, credit = dice.sample(accounts, 2)
        batch.append(
            Transfer(
                id=f"t{i}/{dice.choice(texts)}",
                at_ms=MOMENT_MS + dice.randrange(4 * DAY_MS),
                debit=debit,
                credit=credit,
                amount=dice.choice(
                    [1, dice.randrange(1, 10**6), dice.randrange(1, 2**49)]
                ),  # a customer may have 2**53
                kind=dice.choice([ledger.FUNDING, ledger.CHARGE, ledger.CORRECTION]),
                reference=dice.choice(texts),
                reason=dice.choice([None, *texts]),
            )
        )
    with engine.begin() as connection:
        ledger.post(connection, batch)
    return engine


def written(engine: sa.Engine, form: Format, start_ms: int = 0, end_ms: int = FOREVER_MS) -> tuple[str, int]:
    sink = io.StringIO()
    with sql.snapshot(engine) as connection:
        count = journal.write(connection, USD, form, sink, start_ms, end_ms, "a test")
    return sink.getvalue(), count


def expected(engine: sa.Engine, at_ms: int | None = None) -> dict[str, Decimal]:
    """The ledger's balances under their legal names, debits positive, without what is nothing."""
    with engine.connect() as connection:
        found = ledger.balances(connection, at_ms)
    return {place(account).journal_name: Decimal(-units).scaleb(-9) for account, units in found.items() if units}


def bean_check(bin_: Path, file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(bin_ / "bean-check"), str(file)], capture_output=True, text=True, check=False)


RANGES = {
    "all": (0, FOREVER_MS),
    "from a day on": (MOMENT_MS // DAY_MS * DAY_MS + 2 * DAY_MS, FOREVER_MS),
    "a part of two days": (MOMENT_MS + DAY_MS // 2, MOMENT_MS + DAY_MS),
    "before everything": (0, 1),
    "after everything": (MOMENT_MS + 9 * DAY_MS, FOREVER_MS),
}


@pytest.mark.parametrize("span", RANGES)
def test_beancount_accepts_it_and_finds_the_balances(kept, beancount, tmp_path, span):
    start_ms, end_ms = RANGES[span]
    text, count = written(kept, Format.beancount, start_ms, end_ms)
    file = tmp_path / "books.beancount"
    file.write_text(text, encoding="utf-8")
    done = bean_check(beancount, file)
    assert (done.returncode, done.stderr) == (0, "")
    found = subprocess.run(
        [str(beancount / "python"), "-c", BALANCES, str(file)], capture_output=True, text=True, check=True
    )
    read = json.loads(found.stdout)
    assert read["errors"] == 0
    balances = {name: Decimal(units) for name, units in read["balances"].items() if Decimal(units)}
    assert balances == expected(kept, end_ms)
    assert all(place(account).journal_name == name for name, account in read["opened"].items())
    assert read["count"] - count in (0, 1), "one more for what came before"


def test_beancount_refuses_a_journal_that_was_changed(kept, beancount, tmp_path):
    """The assertions at its end are to the last unit."""
    text, _ = written(kept, Format.beancount)
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith("1 USD") and line.startswith("  Liabilities"))
    for changed in (lines[at].replace("1 USD", "2 USD"), ""):
        file = tmp_path / "changed.beancount"
        file.write_text("\n".join([*lines[:at], changed, *lines[at + 1 :]]), encoding="utf-8")
        assert bean_check(beancount, file).returncode == 1


@pytest.mark.skipif(shutil.which("hledger") is None, reason="hledger is not on the PATH")
@pytest.mark.parametrize("span", RANGES)
def test_hledger_accepts_it_and_finds_the_balances(kept, tmp_path, span):
    start_ms, end_ms = RANGES[span]
    text, _ = written(kept, Format.hledger, start_ms, end_ms)
    file = tmp_path / "books.journal"
    file.write_text(text, encoding="utf-8")
    command = [str(shutil.which("hledger")), "-f", str(file), "--strict"]
    utf8 = {"LC_ALL": "C.UTF-8"}
    shown = subprocess.run(
        [*command, "balance", "--flat", "-O", "json"], capture_output=True, text=True, check=True, env=utf8
    )
    rows, _ = json.loads(shown.stdout)
    balances = {
        name: Decimal(amount["aquantity"]["decimalMantissa"]).scaleb(-amount["aquantity"]["decimalPlaces"])
        for name, _, _, amounts in rows
        for amount in amounts
    }
    assert balances == expected(kept, end_ms)


def test_both_dialects_have_every_transfer_with_all_its_decimals(kept):
    for form in Format:
        text, count = written(kept, form)
        assert count == 400
        amounts = [line.split("  ")[-1] for line in text.splitlines() if line.startswith("  ") and line.endswith("USD")]
        assert all(len(amount.split(" ")[-2].partition(".")[2]) == 9 for amount in amounts)


def test_memory_does_not_grow_with_the_transfers(engine, tmp_path):
    def fill(start: int, count: int) -> None:
        batch = [
            Transfer(f"t{i}", MOMENT_MS + i * 1_000, ledger.BANK, ledger.customer(f"c{i % 9}"), 1, ledger.FUNDING, "r")
            for i in range(start, start + count)
        ]
        with engine.begin() as connection:
            ledger.post(connection, batch)

    def peak() -> int:
        with (tmp_path / "books").open("w") as sink, sql.snapshot(engine) as connection:
            tracemalloc.start()
            journal.write(connection, USD, Format.beancount, sink, 0, FOREVER_MS, "a test")
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return found

    fill(0, 1_000)
    peak()
    few = peak()
    fill(1_000, 10_000)
    assert peak() < 2 * few, "eleven times the transfers"
