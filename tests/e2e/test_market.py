"""Price books, free amounts and invoiced accounts: what is sold at which price, who pays, and that it adds up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from serving.rules.rulebook import NOTICE_MS
from tests.e2e.commands import refused
from tests.e2e.world import Account, World, open_world
from tests.servers import cli, run, wait_for

_ASK = "How long does the ferry to Osk Island take?"
_FREE = {"amount": "0.003", "currency": "USD"}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[World]:
    """A server whose prices the tests change, each in its turn."""
    with open_world(tmp_path_factory.mktemp("market") / "data", e2e_env) as found:
        yield found


def a_list(**changes: Any) -> dict[str, Any]:
    price = {"request": "0.0040", "output_per_1k": "0.0010", "passage": "0.0001", "cost_request": "0.0010"}
    return {"models": {"patronage-extractive": {**price, **changes}}}


def books(world: World) -> list[dict[str, Any]]:
    return world.operator().get("/v1/admin/prices").json()["data"]


def until_in_force(world: World, version: int) -> None:
    wait_for(lambda: next(book["version"] for book in books(world) if book["in_force"]) == version)


def amount(value: dict[str, str]) -> Decimal:
    return Decimal(value["amount"])


def balances(world: World) -> bool:
    return cli(world.data_dir, "audit", env=world.env)["balanced"]


def test_a_new_book_counts_from_its_date_and_the_old_one_until_then(market: World, tmp_path: Path):
    account = market.customer()
    before = account.ask(_ASK)["receipt"]
    file = tmp_path / "prices.json"
    at = (datetime.now(UTC) + timedelta(seconds=15)).isoformat(timespec="milliseconds")
    file.write_text(json.dumps({**a_list(), "effective_from": at}))
    book = cli(market.data_dir, "prices", "set", str(file), env=market.env)
    assert (book["version"], book["in_force"]) == (2, False)
    assert datetime.fromisoformat(book["effective_from"]) == datetime.fromisoformat(at)
    between = account.ask(_ASK)["receipt"]
    until_in_force(market, 2)
    after = account.ask(_ASK)["receipt"]

    assert [each["price_version"] for each in (before, between, after)] == [1, 1, 2]
    assert before["charge"] == between["charge"]
    tokens, documents = after["output_tokens"], after["documents"]
    assert amount(after["charge"]) == Decimal("0.004") + Decimal("0.0001") * documents + Decimal("0.000001") * tokens
    shown = cli(market.data_dir, "prices", "show", env=market.env)["prices"]
    assert shown == books(market)
    assert [each["version"] for each in shown if each["in_force"]] == [2]
    assert balances(market)


def test_books_take_effect_in_the_order_of_their_dates(market: World):
    admin = market.operator()
    for year in ("2098", "2097"):
        reply = admin.post("/v1/admin/prices", json={**a_list(), "effective_from": f"{year}-01-01"})
        assert reply.status_code == 201, reply.text
        assert reply.json()["effective_from"] == f"{year}-01-01T00:00:00.000Z"
    found = books(market)
    assert [each["effective_from"][:4] for each in found[-2:]] == ["2097", "2098"]
    assert found[-2]["version"] == found[-1]["version"] + 1
    # What is shown can be set again.
    again = {"models": found[-1]["models"], "free_per_month": found[-1]["free_per_month"]}
    reply = admin.post("/v1/admin/prices", json={**again, "effective_from": "2099-01-01T02:00:00+02:00"})
    assert (reply.status_code, reply.json()["effective_from"]) == (201, "2099-01-01T00:00:00.000Z")
    assert reply.json()["models"] == found[-1]["models"]


def test_a_book_may_be_set_for_the_last_moment_that_can_be_shown(market: World):
    last = "9999-12-31T23:59:59.999Z"
    reply = market.operator().post(
        "/v1/admin/prices", json={**a_list(), "effective_from": "9999-12-31T23:59:59.999999"}
    )

    assert (reply.status_code, reply.json()["effective_from"]) == (201, last), reply.text
    assert books(market)[-1]["effective_from"] == last


@pytest.mark.parametrize(
    "at", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.9-00:01"]
)
def test_a_date_of_the_command_line_or_the_ledger_that_no_calendar_has_is_refused(
    market: World, tmp_path: Path, subtests: pytest.Subtests, at: str
):
    before = books(market)
    (tmp_path / "prices.json").write_text(json.dumps(a_list()))
    commands = (
        ("prices", "set", str(tmp_path / "prices.json"), "--from", at),
        ("ledger", "balances", "--at", at),
        ("ledger", "show", "bank", "--to", at),
        ("ledger", "export", "--from", at),
    )
    for command in commands:
        with subtests.test(" ".join(command[:2])):
            assert f"{at!r} is not a" in refused(run(market.data_dir, *command, env=market.env))
    reply = market.operator().get("/v1/admin/ledger", params={"at": at})
    assert (reply.status_code, f"{at!r} is not a" in reply.json()["detail"]) == (422, True), reply.text
    assert books(market) == before


def test_the_books_can_be_shown_as_of_the_last_day_there_is(market: World):
    last = "9999-12-31"
    assert cli(market.data_dir, "ledger", "balances", "--at", last, env=market.env)["at"] == f"{last}T23:59:59.999Z"
    exported = run(market.data_dir, "ledger", "export", "--from", last, env=market.env)
    assert (exported.returncode, exported.stderr) == (0, "")
    assert market.operator().get("/v1/admin/ledger", params={"at": last}).status_code == 200


def test_what_is_no_price_list_is_refused_with_its_place(market: World, tmp_path: Path, subtests: pytest.Subtests):
    before = books(market)
    cases: dict[str, Any] = {
        "object": [],
        "models": {"free_per_month": "1"},
        "at least one": {"models": {}},
        "input_per1k": a_list(input_per1k="1"),
        "patronage-extractive.request": a_list(request=0.004),
        "above the price": a_list(cost_request="1"),
        "finer": a_list(passage="0.00000000001"),
        "negative": a_list(passage="-1"),
        "no 'free'": {**a_list(), "free": "1"},
        "free_per_month": {**a_list(), "free_per_month": "-1"},
        "at the earliest": {**a_list(), "effective_from": "2020-01-01"},
        "'soon' is not a time": {**a_list(), "effective_from": "soon"},
        "'20261201' is not a time": {**a_list(), "effective_from": 20261201},
        **{
            f"{at!r} is not a time": {**a_list(), "effective_from": at}
            for at in ("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-00:01")
        },
        "amounts are in USD": a_list(request={"amount": "1", "currency": "EUR"}),
    }
    for word, body in cases.items():
        with subtests.test(word):
            file = tmp_path / "wrong.json"
            file.write_text(json.dumps(body))
            assert word in refused(run(market.data_dir, "prices", "set", str(file), env=market.env))
            if isinstance(body, dict):
                reply = market.operator().post("/v1/admin/prices", json=body)
                assert (reply.status_code, word in reply.json()["detail"]) == (422, True), reply.text
    (tmp_path / "wrong.json").write_text("{")
    refused(run(market.data_dir, "prices", "set", str(tmp_path / "wrong.json"), env=market.env))
    refused(run(market.data_dir, "prices", "set", str(tmp_path / "none.json"), env=market.env))
    assert books(market) == before


@pytest.fixture(scope="module")
def generous(market: World) -> World:
    """The market with a free amount a month, from the first moment that can be: no query that runs meets it."""
    asked = datetime.now(UTC).replace(microsecond=0)  # the server's moments may be whole milliseconds
    reply = market.operator().post("/v1/admin/prices", json={**a_list(), "free_per_month": _FREE["amount"]})
    assert reply.status_code == 201, reply.text
    assert datetime.fromisoformat(reply.json()["effective_from"]) >= asked + timedelta(milliseconds=NOTICE_MS)
    until_in_force(market, reply.json()["version"])
    return market


def test_a_free_amount_is_used_first_and_once_a_month(generous: World):
    account = generous.customer("0.010")
    shown = account.client.get("/v1/account").json()
    assert shown["free"] == {"per_month": _FREE | {"amount": "0.003000"}, "left": _FREE | {"amount": "0.003000"}}
    replies = [account.client.post("/v1/query", json={"question": _ASK}) for _ in range(2)]
    first, second = (reply.json()["receipt"] for reply in replies)

    assert amount(first["free"]) == Decimal("0.003")
    assert amount(second["free"]) == 0
    assert (replies[0].headers["x-patronage-free"], "x-patronage-free" in replies[1].headers) == ("0.003000", False)
    paid = sum(amount(each["charge"]) - amount(each["free"]) for each in (first, second))
    assert account.balance == Decimal("0.010") - paid
    assert account.client.get("/v1/account").json()["free"]["left"]["amount"] == "0.000000"
    assert account.client.get(f"/v1/receipts/{first['id']}").json()["free"] == first["free"]
    (row,) = account.usage(2)
    assert (amount(row["charge"]) - amount(row["free"]), amount(row["free"])) == (paid, Decimal("0.003"))
    refused_ = account.client.post("/v1/query", json={"question": _ASK})
    assert (refused_.status_code, refused_.json()["error"]["code"]) == (402, "insufficient_funds")


def test_contributors_are_paid_for_what_is_free_and_the_books_balance(generous: World):
    """The operator pays: the charge, and so the royalty, is the same as if the customer had paid."""
    accounts = [generous.customer(None) for _ in range(3)]
    rich = generous.customer("1")
    rich.ask(_ASK)
    for each in accounts:
        reply = each.client.post("/v1/query", json={"question": _ASK})
        assert reply.status_code == 402, "the free amount does not cover the whole ceiling, and there is no money"
    cheap = {**a_list(request="0.0010", cost_request="0"), "free_per_month": "0.50"}
    made = generous.operator().post("/v1/admin/prices", json=cheap)
    until_in_force(generous, made.json()["version"])
    receipts = [each.ask(_ASK)["receipt"] for each in accounts]
    full = [each.client.get(f"/v1/receipts/{got['id']}").json() for each, got in zip(accounts, receipts, strict=True)]

    for each in full:
        assert each["free"] == each["charge"]
        assert amount(each["charge"]) == amount(each["cost"]) + amount(each["platform"]) + amount(each["pool"])
        assert amount(each["pool"]) > 0
    assert [each.balance for each in accounts] == [0, 0, 0]
    assert balances(generous)
    preview = generous.operator().get(f"/v1/admin/periods/{full[0]['created'][:7]}/preview").json()
    parts = sum(amount(preview[name]) for name in ("cost", "platform", "credited", "residual"))
    assert amount(preview["charged"]) == parts


@pytest.fixture(scope="module")
def strict(market: World) -> World:
    """The market with nothing for free."""
    until_in_force(market, market.operator().post("/v1/admin/prices", json=a_list()).json()["version"])
    return market


class TestInvoiced:
    @pytest.fixture
    def account(self, strict: World) -> Account:
        made = cli(
            strict.data_dir, "customer", "add", "Late", "--id", f"late-{time.time_ns()}",
            "--invoiced", "--credit-limit", "0.02", env=strict.env,
        )  # fmt: skip
        assert made["balance"]["amount"] == "0.000000"
        return Account(made["id"], made["api_key"], strict.client(made["api_key"]), strict.operator())

    def spend(self, account: Account) -> int:
        """Ask until it is refused; how often it was answered."""
        for count in range(100):
            reply = account.client.post("/v1/query", json={"question": _ASK})
            if reply.status_code == 402:
                return count
            assert reply.status_code == 200, reply.text
        raise AssertionError("it is never refused")

    def test_it_owes_up_to_its_limit_and_pays_by_reference(self, market: World, account: Account):
        assert self.spend(account) > 0
        shown = cli(market.data_dir, "customer", "show", account.id, env=market.env)
        owed = amount(shown["balance"])
        assert (shown["billing"], shown["credit_limit"]["amount"]) == ("invoiced", "0.020000")
        assert Decimal("-0.02") <= owed < 0
        for _ in range(2):
            paid = cli(
                market.data_dir, "customer", "credit", account.id, str(-owed), "--reference", "invoice-1",
                env=market.env,
            )  # fmt: skip
            assert paid["balance"]["amount"] == "0.000000"
        assert self.spend(account) > 0
        assert balances(market)

    def test_a_lower_limit_lets_nothing_more_be_spent_and_what_is_owed_stays_owed(
        self, market: World, account: Account
    ):
        self.spend(account)
        owed = account.balance
        for limit in ("0", "0.0001"):
            shown = cli(market.data_dir, "customer", "limit", account.id, limit, env=market.env)
            assert amount(shown["balance"]) == owed
            assert amount(shown["available"]) < 0
            assert self.spend(account) == 0
        market.server.stop()
        market.server.start()
        account.client.base_url = market.server.url
        assert self.spend(account) == 0
        assert balances(market)
        cli(market.data_dir, "customer", "limit", account.id, "0.05", env=market.env)
        assert self.spend(account) > 0
        assert balances(market)

    def test_what_is_no_limit_is_refused(self, market: World, account: Account):
        refused(run(market.data_dir, "customer", "add", "X", "--invoiced", env=market.env), 2)
        refused(run(market.data_dir, "customer", "add", "X", "--credit-limit", "5", env=market.env), 2)
        assert "nobody" in refused(run(market.data_dir, "customer", "limit", "nobody", "5", env=market.env))
        assert "zero or more" in refused(run(market.data_dir, "customer", "limit", account.id, "-5", env=market.env))
        path = f"/v1/admin/customers/{account.id}/credit-limit"
        assert market.operator().put(path, json={"amount": "-1"}).status_code == 422
        assert market.operator().put("/v1/admin/customers/nobody/credit-limit", json={"amount": "1"}).status_code == 404
        assert market.operator().get("/v1/admin/customers/nobody").status_code == 404


def test_usage_is_grouped_as_asked(market: World):
    account = market.customer()
    other = market.operator().post("/v1/admin/keys", json={"role": "customer", "owner": account.id}).json()["api_key"]
    for key in (account.key, account.key, other):
        assert market.client(key).post("/v1/query", json={"question": _ASK}).status_code == 200
    rows = account.usage(3)
    assert sorted(row["queries"] for row in rows) == [1, 2]

    def by(groups: str, **more: str) -> list[dict[str, Any]]:
        reply = account.client.get("/v1/usage", params={"group_by": groups, **more})
        assert reply.status_code == 200, reply.text
        return reply.json()["data"]

    today = rows[0]["day"]
    assert by("day,model,key") == rows
    assert [row["queries"] for row in by("model")] == [3]
    assert set(by("model")[0]) == {"model", "queries", "input_tokens", "output_tokens", "charge", "free"}
    assert {row["key"]: row["queries"] for row in by("key")} == {row["key"]: row["queries"] for row in rows}
    assert by("")[0]["queries"] == 3
    assert by("day", **{"from": today, "to": today}) == by("day", start=today, end=today) == by("day")
    assert by("", **{"from": "2020-01-01", "to": "2020-01-02"}) == []
    assert account.client.get("/v1/usage", params={"group_by": "question"}).status_code == 422
    assert account.client.get("/v1/usage", params={"from": "yesterday"}).status_code == 422
