"""A period from its first query to its statements: nothing is lost or made, and every copy computes the same."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from metering import periods
from tests.e2e.corpus import CONTRIBUTORS
from tests.e2e.world import Account, World, open_world, problem
from tests.servers import cli, run, this_period, wait_for

_QUESTIONS = (
    "When was the Vellmar lighthouse built?",
    "How tall is the Tarn Point lighthouse?",
    "What name do guests call the great owl?",
    "How long does the ferry to Osk Island take?",
    "How much honey does a hive on Osk Island give?",
    "Which quantum algorithm factors integers?",
    "Who restored the clock tower of Vellmar?",
    "How much is a return ticket of the ferry?",
)
_RUN_FILES = (
    "manifest.json",
    "hours.json",
    "records.parquet",
    "credits.parquet",
    "outcomes.parquet",
    "checkpoint.txt",
    "statements.jsonl",
)


@dataclass
class Month:
    """A world whose period was closed, and what was seen on the way."""

    world: World
    copies: list[Path]
    """Copies of the data directory as it was before the close."""
    receipts: list[dict[str, Any]]
    earnings: dict[str, dict[str, Any]]
    preview: dict[str, Any]
    closed: dict[str, Any]
    later: list[dict[str, Any]]
    """Answers to queries after the close."""
    period: str
    bundles: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Statements by contributor, as they were just after the close."""


def _amount(value: dict[str, str]) -> Decimal:
    assert value["currency"] == "USD"
    return Decimal(value["amount"])


def _earnings(world: World, period: str, records: int) -> dict[str, dict[str, Any]]:
    """What every contributor sees of the open period, once so many records are in the log."""
    preview = f"/v1/admin/periods/{period}/preview"
    wait_for(lambda: world.operator().get(preview).json()["records"] == records)
    return {name: world.contributor(name).get("/v1/earnings").json() for name in CONTRIBUTORS}


def _wait_for_redis_to_end(data_dir: Path) -> None:
    """The embedded Redis ends just after its last user; its supervisor holds this lock until then."""
    with (data_dir / "redis" / "supervisor.lock").open("ab") as lock:

        def ended() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        wait_for(ended)


def _ask_all(world: World) -> tuple[list[Account], list[dict[str, Any]]]:
    accounts = [world.customer(), world.customer(credit="0.5")]
    receipts = []
    for turn, question in enumerate(_QUESTIONS * 2):
        account = accounts[turn % 2 if turn < len(_QUESTIONS) else 0]
        answer = account.ask(question, top_k=1 + turn % 6)
        receipts.append(account.client.get(f"/v1/receipts/{answer['id']}").json())
    return accounts, receipts


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[Month]:
    """Queries, a stop, two copies, a restart, the close, and queries after it."""
    folder, period = tmp_path_factory.mktemp("month"), this_period()
    with open_world(folder / "data", e2e_env) as world:
        (payer, _), receipts = _ask_all(world)
        world.server.stop()
        _wait_for_redis_to_end(world.data_dir)
        ignored = shutil.ignore_patterns("*.sock")
        copies = [Path(shutil.copytree(world.data_dir, folder / name, ignore=ignored)) for name in ("one", "two")]
        world.server.start()
        payer.client = world.client(payer.key)
        earnings = _earnings(world, period, len(receipts))
        admin = world.operator()
        preview = admin.get(f"/v1/admin/periods/{period}/preview").json()
        reply = admin.post(f"/v1/admin/periods/{period}/close", json={"early": True})
        assert reply.status_code == 200, reply.text
        found = Month(world, copies, receipts, earnings, preview, reply.json(), [], period)
        found.bundles = {name: _statement(found, name) for name in CONTRIBUTORS}
        found.later = [payer.ask(question) for question in _QUESTIONS[:3]]
        yield found


def _statement(month: Month, contributor: str, accept: str = "application/json") -> Any:
    reply = month.world.contributor(contributor).get(f"/v1/statements/{month.period}", headers={"accept": accept})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith(accept)
    return reply.json() if accept == "application/json" else reply.text


def test_every_query_conserves_its_charge_to_the_unit(month: Month):
    for receipt in month.receipts:
        parts = sum(_amount(receipt[name]) for name in ("cost", "platform", "pool"))
        assert parts == _amount(receipt["charge"]), receipt["id"]


def test_the_period_conserves_every_charge_to_the_unit(month: Month):
    closed = {
        name: _amount(month.closed[name]) for name in ("charged", "cost", "platform", "pool", "credited", "residual")
    }

    assert closed["charged"] == sum(_amount(receipt["charge"]) for receipt in month.receipts)
    assert closed["cost"] == sum(_amount(receipt["cost"]) for receipt in month.receipts)
    assert closed["platform"] == sum(_amount(receipt["platform"]) for receipt in month.receipts)
    assert closed["pool"] == sum(_amount(receipt["pool"]) for receipt in month.receipts)
    assert closed["charged"] == closed["cost"] + closed["platform"] + closed["credited"] + closed["residual"]
    assert closed["pool"] == closed["credited"] + closed["residual"]
    assert closed["credited"] == sum(_amount(each["credited"]) for each in month.closed["statements"])
    assert month.closed["records"] == len(month.receipts)
    assert min(closed.values()) > 0, "the questions leave no sum trivially zero"


def test_a_preview_says_what_the_close_gives_and_closes_nothing(month: Month):
    assert month.preview == month.closed


def test_earnings_of_the_open_period_were_what_the_statement_says(month: Month):
    credited = {each["contributor"]: each["credited"] for each in month.closed["statements"]}

    for name, earned in month.earnings.items():
        assert earned["period"] == month.period
        assert earned["estimated"] == credited[name]
        lines: dict[str, Decimal] = defaultdict(Decimal)
        for line in month.bundles[name]["statement"]["documents"]:
            lines[line["document"]] += _amount(line["credited"])
        assert {each["document"]: _amount(each["estimated"]) for each in earned["documents"]} == lines


def test_every_contributor_has_a_statement_that_adds_up_and_verifies(month: Month, tmp_path: Path):
    credited = {each["contributor"]: _amount(each["credited"]) for each in month.closed["statements"]}

    assert set(credited) == set(CONTRIBUTORS)
    for name, bundle in month.bundles.items():
        statement = bundle["statement"]
        assert (statement["contributor"], statement["period"]) == (name, month.period)
        assert _amount(statement["credited"]) == credited[name]
        assert sum(_amount(line["credited"]) for line in statement["documents"]) == credited[name]
    file = tmp_path / "statement.json"
    file.write_text(json.dumps(month.bundles["mary"]))
    assert cli(tmp_path / "elsewhere", "verify", str(file))["valid"] is True


def test_splits_divide_a_documents_credit_in_their_proportion(month: Month):
    """600,000 to 399,999 to 1 of a million; each query may round by one unit."""
    unit = Decimal("0.000000001")
    shares = {}
    for name, bundle in month.bundles.items():
        lines = [line for line in bundle["statement"]["documents"] if line["document"] == "cleo/ferry"]
        assert len(lines) == 1, name
        shares[lines[0]["role"]] = _amount(lines[0]["credited"])
    total = sum(shares.values())

    assert total > 0
    for role, ppm in (("author", 600_000), ("translator", 399_999), ("editor", 1)):
        assert abs(shares[role] - total * ppm / 1_000_000) <= unit * len(month.receipts)


def test_a_statement_counts_how_often_each_document_was_retrieved_and_cited(month: Month):
    retrieved: dict[str, list[bool]] = defaultdict(list)
    for receipt in month.receipts:
        for source in receipt["sources"]:
            retrieved[source["document_id"]].append(source["cited"])
    lines = {line["document"]: line for bundle in month.bundles.values() for line in bundle["statement"]["documents"]}

    assert set(lines) == set(retrieved)
    for document, uses in retrieved.items():
        assert (lines[document]["retrieved"], lines[document]["cited"]) == (len(uses), sum(uses)), document


def test_a_statement_comes_as_csv_with_the_same_sums(month: Month):
    rows = list(csv.DictReader(io.StringIO(_statement(month, "mary", "text/csv"))))
    statement = month.bundles["mary"]["statement"]

    assert {row["period"] for row in rows} == {month.period}
    assert [(row["document"], row["role"], row["credited"]) for row in rows[:-1]] == [
        (line["document"], line["role"], line["credited"]["amount"]) for line in statement["documents"]
    ]
    assert Decimal(rows[-1]["credited"]) == sum(Decimal(row["credited"]) for row in rows[:-1])
    assert {row["currency"] for row in rows} == {"USD"}


def test_a_statement_comes_as_a_page_that_stands_alone(month: Month):
    page = _statement(month, "mary", "text/html")
    statement = month.bundles["mary"]["statement"]

    assert page.lstrip().lower().startswith("<!doctype html>")
    assert all(text in page for text in ("mary", month.period, statement["credited"]["amount"], "mary/light"))
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script src" not in page


def test_statements_are_listed(month: Month):
    listed = month.world.contributor("bo").get("/v1/statements").json()["data"]

    assert month.period in [each["period"] for each in listed]


def test_a_closed_period_is_not_closed_again(month: Month):
    reply = month.world.operator().post(f"/v1/admin/periods/{month.period}/close", json={"early": True})

    assert reply.status_code == 409
    problem(reply)


def test_what_comes_after_the_close_belongs_to_the_next_period(month: Month):
    charges = sum(_amount(answer["receipt"]["charge"]) for answer in month.later)
    wait_for(lambda: month.world.contributor("mary").get("/v1/earnings").json()["documents"])
    earned = month.world.contributor("mary").get("/v1/earnings").json()

    assert earned["period"] == periods.following(month.period)
    assert Decimal(0) < _amount(earned["estimated"]) < charges
    for name, bundle in month.bundles.items():
        assert _statement(month, name) == bundle, "the closed one stays as it was"


def test_the_open_period_can_be_previewed_when_its_month_has_not_begun(month: Month):
    """After an early close the open period is the next month, and what it holds is the operator's to see."""
    reply = month.world.operator().get(f"/v1/admin/periods/{periods.following(month.period)}/preview")

    assert reply.status_code == 200, reply.text
    assert reply.json()["records"] == len(month.later)
    charges = sum(_amount(answer["receipt"]["charge"]) for answer in month.later)
    assert _amount(reply.json()["charged"]) == charges


def test_the_books_balance_beside_the_running_server(month: Month):
    audit = cli(month.world.data_dir, "audit", env=month.world.env)

    assert audit["balanced"], audit["checks"]
    assert all(check["ok"] for check in audit["checks"])


def test_accounts_and_receipts_are_what_they_were_before_the_restart(month: Month):
    listed = {each["id"]: each for each in month.world.operator().get("/v1/admin/customers").json()["data"]}
    spent = sum(_amount(receipt["charge"]) for receipt in month.receipts)
    spent += sum(_amount(answer["receipt"]["charge"]) for answer in month.later)

    assert len(listed) == 2
    assert sum(_amount(each["balance"]) for each in listed.values()) == Decimal("1.5") - spent


def test_copies_that_are_closed_separately_are_equal_to_the_byte(month: Month):
    """One by the command line, one by the command line again, one by HTTP after a restart: one result."""
    for copy in month.copies:
        closed = cli(copy, "period", "close", month.period, "--early", env=month.world.env)
        assert closed == month.closed
    folders = [folder / "runs" / month.period for folder in (month.world.data_dir, *month.copies)]

    assert (folders[0] / "credits.parquet").stat().st_size > 0
    for name in _RUN_FILES:
        first, *others = [(folder / name).read_bytes() for folder in folders]
        assert others == [first, first], name


def test_an_altered_run_is_found_by_the_audit(month: Month, tmp_path: Path):
    """So that a green audit says something. Segments are what every sum is computed from."""
    copy = Path(shutil.copytree(month.copies[0], tmp_path / "data", ignore=shutil.ignore_patterns("*.sock")))
    segment = next(iter(sorted(copy.glob("segments/**/*.parquet"))))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    done = run(copy, "--json", "audit", env=month.world.env)

    assert done.returncode == 1
    assert json.loads(done.stdout)["balanced"] is False
    assert "Traceback" not in done.stderr
