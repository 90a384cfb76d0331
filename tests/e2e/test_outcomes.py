"""What an answer was worth: from the customer's report to the contributor's statement, and the proofs after it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from metering import periods
from tests.e2e.corpus import CONTRIBUTORS
from tests.e2e.world import Account, World, open_world, problem
from tests.servers import cli, run, this_period

MARYS = "When was the Vellmar lighthouse built?"
BOS = "How much honey does a hive on Osk Island give?"
UNIT = Decimal("0.000000001")


@dataclass
class Told:
    """A world in which a customer said what two answers were worth, and its period before and after the close."""

    world: World
    payer: Account
    silent: Account
    period: str
    receipts: dict[str, str]
    replies: list[httpx.Response]
    before: dict[str, Any]
    """The first checkpoint."""
    plain: dict[str, Decimal]
    """What everyone would have earned without outcomes."""
    bundles: dict[str, dict[str, Any]] = field(default_factory=dict)


def credited(summary: dict[str, Any]) -> dict[str, Decimal]:
    return {each["contributor"]: Decimal(each["credited"]["amount"]) for each in summary["statements"]}


def report(account: Account, receipt: str, body: dict[str, Any]) -> httpx.Response:
    return account.client.post(f"/v1/receipts/{receipt}/outcome", json=body)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[Told]:
    period = this_period()
    with open_world(tmp_path_factory.mktemp("told") / "data", e2e_env) as world:
        payer, silent = world.customer(), world.customer()
        receipts = {"mary": payer.ask(MARYS)["id"], "bo": payer.ask(BOS)["id"], "other": silent.ask(MARYS)["id"]}
        admin = world.operator()
        before = world.client().get("/v1/checkpoint").json()
        plain = credited(admin.get(f"/v1/admin/periods/{period}/preview").json())
        # At once after an answer: before its record can be in the log.
        fresh = payer.ask(BOS)["id"]
        replies = [report(payer, fresh, {"rating": 0})]
        plain = credited(admin.get(f"/v1/admin/periods/{period}/preview").json())
        replies += [
            report(payer, receipts["mary"], {"rating": -1}),
            report(payer, receipts["mary"], {"rating": 1}),
            report(payer, receipts["mary"], {"rating": 1}),
            report(payer, receipts["bo"], {"value": "0", "rating": 0.5}),
        ]
        closed = admin.post(f"/v1/admin/periods/{period}/close", json={"early": True})
        assert closed.status_code == 200, closed.text
        found = Told(world, payer, silent, period, receipts, replies, before, plain)
        found.bundles = {name: world.contributor(name).get(f"/v1/statements/{period}").json() for name in CONTRIBUTORS}
        yield found


def test_an_outcome_can_be_revised_and_the_same_again_changes_nothing(told: Told):
    assert [reply.status_code for reply in told.replies] == [200] * 5
    assert [reply.json()["revision"] for reply in told.replies] == [1, 1, 2, 2, 1]
    assert told.replies[4].json() == {
        "receipt": told.receipts["bo"],
        "revision": 1,
        "value": {"amount": "0.000000", "currency": "USD"},
        "rating": 0.5,
    }


def test_good_answers_earn_more_and_bad_ones_less_of_the_customers_own_money(told: Told):
    total = Decimal(0)
    for name, bundle in told.bundles.items():
        lines = bundle["statement"]["documents"]
        moved = sum(Decimal(line["outcomes"]["amount"]) for line in lines)
        earned = Decimal(bundle["statement"]["credited"]["amount"])
        assert earned == told.plain[name] + moved
        assert earned == sum(Decimal(line["credited"]["amount"]) for line in lines)
        total += moved
    assert total == 0
    assert Decimal(told.bundles["mary"]["statement"]["credited"]["amount"]) > told.plain["mary"]
    assert Decimal(told.bundles["bo"]["statement"]["credited"]["amount"]) < told.plain["bo"]


def test_statements_with_outcomes_verify_and_the_books_balance(told: Told, tmp_path: Path):
    for name, bundle in told.bundles.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(bundle))
        assert cli(tmp_path / "elsewhere", "verify", str(file))["valid"], name
    audit = cli(told.world.data_dir, "audit", env=told.world.env)
    assert audit["balanced"], audit["checks"]


def test_after_the_close_an_outcome_comes_too_late(told: Told):
    reply = report(told.payer, told.receipts["mary"], {"rating": 0})
    assert reply.status_code == 409
    assert problem(reply)["error"]["code"] == "outcome_refused"


def test_an_outcome_is_the_customers_own(told: Told):
    later = told.payer.ask(MARYS)["id"]
    for account, receipt in ((told.silent, later), (told.payer, "nope")):
        reply = report(account, receipt, {"rating": 1})
        assert reply.status_code == 404
        problem(reply)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"rating": None},
        {"rating": 1.01},
        {"rating": "good"},
        {"rating": True, "value": "x"},
        {"value": "-1"},
        {"value": {"amount": "1", "currency": "EUR"}},
        {"value": "1e3"},
        {"value": "99999999999"},
        {"value": "0.0000000001"},
        [],
    ],
)
def test_what_is_no_outcome_is_refused_and_changes_nothing(told: Told, body: Any):
    receipt = told.payer.ask(BOS)["id"]
    reply = told.payer.client.post(f"/v1/receipts/{receipt}/outcome", json=body)
    assert reply.status_code == 422
    problem(reply)
    assert "outcome" not in told.payer.client.get(f"/v1/receipts/{receipt}").json()


def test_a_receipt_proves_that_it_is_in_the_run(told: Told, tmp_path: Path):
    receipt = told.payer.client.get(f"/v1/receipts/{told.receipts['bo']}").json()
    assert receipt["outcome"] == {"value": {"amount": "0.000000", "currency": "USD"}, "rating": 0.5}
    assert receipt["inclusion"]["run"]["period"] == told.period
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(receipt))
    key = receipt["inclusion"]["log"]["public_key"]
    found = cli(tmp_path / "elsewhere", "verify", str(file), "--public-key", key)
    assert found["valid"], found
    assert [check["name"] for check in found["checks"]] == ["signature", "log", "hour", "record", "receipt"]

    other = told.payer.client.get(f"/v1/receipts/{told.receipts['mary']}").json()
    forged = {
        "log": lambda it: it["inclusion"]["run"].update(records=7),
        "hour": lambda it: it["inclusion"]["hour"].update(records=10**6),
        "record": lambda it: it["inclusion"]["record"].update(index=10**6),
        "receipt": lambda it: it.update(inclusion=other["inclusion"]),
        "signature": lambda it: it["inclusion"]["log"].update(checkpoint="x"),
        "format": lambda it: it.update(format=10**6),
        "inclusion": lambda it: it.pop("inclusion"),
    }
    for name, forge in forged.items():
        changed = json.loads(json.dumps(receipt))
        forge(changed)
        file.write_text(json.dumps(changed))
        failed = cli(tmp_path / "elsewhere", "verify", str(file), status=1)
        assert name in [check["name"] for check in failed["checks"] if not check["ok"]]


def test_a_receipt_of_the_open_period_has_no_proof_yet(told: Told):
    receipt = told.payer.ask(MARYS)["id"]
    assert "inclusion" not in told.payer.client.get(f"/v1/receipts/{receipt}").json()


def test_the_log_grew_and_anyone_can_have_it_proved(told: Told, tmp_path: Path):
    anyone = told.world.client()
    now = anyone.get("/v1/checkpoint").json()
    assert (told.before["size"], now["size"]) == (0, 1)
    assert anyone.get("/v1/checkpoint", headers={"accept": "text/plain"}).text == now["checkpoint"]
    answer = anyone.get("/v1/checkpoint/consistency", params={"from": told.before["size"]}).json()
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(told.before))
    new.write_text(json.dumps(answer))
    assert cli(tmp_path / "elsewhere", "verify", str(new), "--since", str(old))["valid"]
    old.write_text(json.dumps(now))
    new.write_text(json.dumps(told.before | {"path": []}))
    shrunk = cli(tmp_path / "elsewhere", "verify", str(new), "--since", str(old), status=1)
    assert [check["name"] for check in shrunk["checks"] if not check["ok"]] == ["consistency"]


@pytest.mark.parametrize("size", ["2", "-1", "x", ""])
def test_a_size_that_the_log_never_had_is_refused(told: Told, size: str):
    reply = told.world.client().get("/v1/checkpoint/consistency", params={"from": size})
    assert reply.status_code == 422
    problem(reply)


def test_a_credit_is_explained_to_the_operator(told: Told, tmp_path: Path):
    page = tmp_path / "credit.html"
    arguments = ("period", "explain", told.receipts["bo"], "-o", str(page))
    found = cli(told.world.data_dir, *arguments, env=told.world.env)
    receipt = told.payer.client.get(f"/v1/receipts/{told.receipts['bo']}").json()

    assert found["charge"]["amount"] == found["charge"]["recomputed"] == receipt["charge"]
    assert sum(part["units"] for part in found["picture"]) * UNIT == Decimal(receipt["charge"]["amount"])
    assert sum(each["units"] for each in found["credits"]) * UNIT == Decimal(found["credited"]["amount"])
    for each in found["credits"]:
        assert abs(Decimal(each["exact"]) - each["units"]) < 1
    assert found["outcome"]["weight"] == pytest.approx(2 / 3)
    assert 0.5 <= found["outcome"]["factor"] < 1
    assert found["period"] == told.period
    text = run(told.world.data_dir, *arguments[:3], env=told.world.env).stdout
    for step in found["steps"]:
        assert step["title"] in text
    html = page.read_text()
    assert all(each["document"] in html for each in found["players"])
    assert html.lstrip().lower().startswith("<!doctype html>")

    unknown = run(told.world.data_dir, "period", "explain", "nope", env=told.world.env)
    assert (unknown.returncode, unknown.stderr.strip()) == (1, "patronage: there is no record nope in the log")


def test_a_query_nothing_was_said_of_is_explained_too(told: Told):
    rated = cli(told.world.data_dir, "period", "explain", told.receipts["other"], env=told.world.env)
    assert rated["outcome"] is None
    assert periods.parse(rated["period"]) == told.period
