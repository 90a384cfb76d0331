"""The operator's books from outside: balances, corrections, refunds, payouts and the journal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.assembly import open_books, open_metering
from serving.money import funding
from serving.settings import Settings
from tests.e2e.commands import refused
from tests.e2e.world import World, problem
from tests.servers import cli, run

_NUMBERS = count(1)


async def add_customers(data_dir: Path, number: int) -> None:
    """Customers c00, c01 and so on, who pay in 1, 2 and so on; not by as many commands, which take minutes."""
    with open_books(Settings(data_dir=data_dir)) as books:
        async with open_metering(books) as metering:
            for n in range(number):
                books.identities.add_customer(f"c{n:02}", f"Customer {n}")
                await funding.open_account(books, metering.meter, f"c{n:02}")
                paid = books.currency.parse(str(n + 1))
                await funding.credit(books, metering.meter, f"c{n:02}", paid, "opening")


class TestCommandLine:
    """A month of an operator's hands."""

    @pytest.fixture
    def ask(self, tmp_path: Path, e2e_env: dict[str, str]) -> Callable[..., dict[str, Any]]:
        data = tmp_path / "data"

        def run_one(*arguments: str) -> dict[str, Any]:
            return cli(data, *arguments, env=e2e_env)

        run_one("customer", "add", "Acme", "--id", "acme", "--credit", "25")
        run_one("contributor", "add", "Mary", "--id", "mary")
        give = ("--debit", "bank", "--credit", "contributor:mary", "--amount", "7")
        run_one("ledger", "correct", *give, "--reason", "a prize", "--reference", "prize")
        return run_one

    def test_balances_refunds_and_payouts(self, ask, tmp_path: Path, e2e_env: dict[str, str]):
        assert ask("customer", "refund", "acme", "5", "--reference", "r1", "--reason", "asked") == {
            "balance": {"amount": "20.000000", "currency": "USD"}
        }
        started = ask("payout", "start", "mary", "--reference", "wire/1", "--amount", "3")
        assert (started["state"], started["amount"]["amount"]) == ("started", "3.000000")
        assert ask("payout", "settle", "wire/1")["state"] == "settled"
        ask("payout", "start", "mary", "--reference", "wire/2")
        assert ask("payout", "cancel", "wire/2", "--reason", "returned")["reason"] == "returned"
        listed = ask("payout", "list")["payouts"]
        assert [(each["reference"], each["state"]) for each in listed] == [
            ("wire/2", "cancelled"),
            ("wire/1", "settled"),
        ]
        found = ask("ledger")
        assert found == ask("ledger", "balances") | {"at": found["at"]}
        balances = {each["account"]: each["balance"]["amount"] for each in found["accounts"]}
        assert balances == {
            "bank": "-24.000000",
            "contributor:mary": "4.000000",
            "customer:acme": "20.000000",
            "payouts": "0.000000",
        }
        assert found["total"]["amount"] == "0.000000"
        assert [(each["root"], each["group"], each["accounts"]) for each in found["groups"]] == [
            ("Assets", "Bank", 1),
            ("Liabilities", "Contributors", 1),
            ("Liabilities", "Customers", 1),
            ("Liabilities", "Payouts", 1),
        ]
        assert ask("ledger", "balances", "--at", "2020-01-01")["accounts"] == []
        shown = ask("ledger", "show", "contributor:mary", "--limit", "2")
        assert [each["kind"] for each in shown["transfers"]] == ["payout", "cancellation"]
        assert (shown["opening"]["amount"], shown["closing"]["amount"], shown["more"]) == ("4.000000", "4.000000", True)
        written = ask("ledger", "export", "-o", str(tmp_path / "books"))
        assert written == {"written": str(tmp_path / "books"), "transfers": 7}
        printed = run(tmp_path / "data", "ledger", "export", env=e2e_env)
        assert printed.stdout == (tmp_path / "books").read_text()
        assert ask("audit")["balanced"]

    @pytest.mark.usefixtures("ask")
    def test_what_people_see(self, tmp_path: Path, e2e_env: dict[str, str]):
        asyncio.run(add_customers(tmp_path / "data", 23))
        shown = run(tmp_path / "data", "ledger", env=e2e_env).stdout
        assert "customer:c22" in shown
        assert "customer:c00" not in shown, "the largest of each group"
        assert "and 4 more: --all" in shown
        every = run(tmp_path / "data", "ledger", "balances", "--all", env=e2e_env).stdout
        assert "customer:c00" in every
        assert every.splitlines()[-1].split() == ["total", "0.000000"]
        lines = run(tmp_path / "data", "ledger", "show", "contributor:mary", env=e2e_env).stdout
        assert "prize: a prize" in " ".join(lines.split())


class TestHttp:
    @pytest.fixture
    def owed(self, world: World) -> tuple[str, Any, Any]:
        """A new contributor who is owed five dollars, and clients of the operator and of the contributor."""
        name, admin = f"writer-{next(_NUMBERS)}", world.operator()
        reply = admin.post("/v1/admin/contributors", json={"name": name, "id": name})
        body = {"debit": "bank", "credit": f"contributor:{name}", "amount": "5", "reason": "a prize", "reference": name}
        given = admin.post("/v1/admin/ledger/corrections", json=body)
        assert given.status_code == 201, given.text
        assert admin.post("/v1/admin/ledger/corrections", json=body).json() == given.json()
        return name, admin, world.client(reply.json()["api_key"])

    def test_a_payout_from_start_to_end(self, owed):
        name, admin, writer = owed
        body = {"contributor": name, "amount": "2", "reference": f"wire/{name}"}
        for _ in range(2):
            started = admin.post("/v1/admin/payouts", json=body)
            assert started.status_code == 201, started.text
        assert started.json()["state"] == "started"
        seen = writer.get("/v1/payouts").json()
        assert {each: seen[each]["amount"] for each in ("owed", "in_transit", "paid")} == {
            "owed": "3.000000", "in_transit": "2.000000", "paid": "0.000000"
        }  # fmt: skip
        assert [each["reason"] for each in seen["corrections"]] == ["a prize"]
        assert seen["data"] == [started.json()]
        settled = admin.post(f"/v1/admin/payouts/wire/{name}/settle")
        assert settled.json()["state"] == "settled"
        assert admin.post(f"/v1/admin/payouts/wire/{name}/settle").json() == settled.json()
        refused = admin.post(f"/v1/admin/payouts/wire/{name}/cancel", json={"reason": "late"})
        assert refused.status_code == 409
        assert "settled already" in problem(refused)["detail"]
        too_much = admin.post("/v1/admin/payouts", json={"contributor": name, "amount": "4", "reference": f"x{name}"})
        assert too_much.status_code == 409
        assert "has only 3.000000" in problem(too_much)["detail"]
        listed = admin.get("/v1/admin/payouts", params={"contributor": name}).json()
        assert listed == {"data": [settled.json()], "next": None}
        assert admin.get("/v1/admin/payouts", params={"contributor": name, "state": "started"}).json()["data"] == []

    def test_nobody_sees_anothers_payouts(self, world: World, owed):
        name, admin, _ = owed
        admin.post("/v1/admin/payouts", json={"contributor": name, "reference": f"only-{name}"})
        for other in ("bo", "cleo"):
            client = world.contributor(other)
            assert name not in client.get("/v1/payouts").text
            foreign = client.get("/v1/payouts", params={"after": f"only-{name}"})
            absent = client.get("/v1/payouts", params={"after": "none"})
            assert (foreign.status_code, absent.status_code) == (404, 404)
            assert foreign.json()["detail"].replace(f"only-{name}", "X") == absent.json()["detail"].replace("none", "X")

    def test_a_refund_leaves_what_is_held_and_shows_at_once(self, world: World):
        account, admin = world.customer("1.00"), world.operator()
        path = f"/v1/admin/customers/{account.id}/refunds"
        body = {"amount": "0.40", "reference": "r", "reason": "asked for it"}
        for _ in range(2):
            assert admin.post(path, json=body).json() == {"balance": {"amount": "0.600000", "currency": "USD"}}
        assert account.money() == (Decimal("0.6"), Decimal(0))
        refused = admin.post(path, json={**body, "amount": "0.61", "reference": "r2"})
        assert refused.status_code == 409
        assert "only 0.600000" in problem(refused)["detail"]
        again = admin.post(path, json={**body, "amount": "0.41"})
        assert (again.status_code, problem(again)["error"]["param"]) == (409, "reference")
        account.ask("When was the Vellmar lighthouse built?")
        assert 0 < account.balance < Decimal("0.6")

    def test_a_customer_is_credited_up_to_what_is_counted_exactly_and_not_beyond(self, world: World):
        """Nothing of what is refused is booked, and the account and all that list it are as well as before."""
        account, admin = world.customer("1.00"), world.operator()
        path, most = f"/v1/admin/customers/{account.id}", Decimal("9007199.254740991")

        def paid(reference: str) -> httpx.Response:
            return admin.post(f"{path}/credits", json={"amount": "4000000", "reference": reference})

        with ThreadPoolExecutor(5) as pool:
            statuses = sorted(reply.status_code for reply in pool.map(paid, "abcde"))
        assert statuses == [200, 200, 422, 422, 422]
        left = most - 1 - 2 * 4_000_000
        account.ask("When was the Vellmar lighthouse built?")  # what is spent makes no room
        assert admin.put(f"{path}/credit-limit", json={"amount": str(left)}).status_code == 200
        correction = {"debit": "bank", "credit": f"customer:{account.id}", "reason": "r", "reference": f"x{account.id}"}
        for above in (left + Decimal("0.000000001"), most):
            body = {"amount": str(above), "reference": "too much"}
            refusals = [
                admin.post(f"{path}/credits", json=body),
                admin.post("/v1/admin/ledger/corrections", json={**correction, "amount": str(above)}),
            ]
            assert [reply.status_code for reply in refusals] == [422, 422]
            assert all(f"above {most}" in problem(reply)["detail"] for reply in refusals)
        args = ("customer", "credit", account.id, str(most), "--reference", "too much")
        assert f"above {most}" in refused(run(world.data_dir, *args, env=world.env))
        for _ in range(2):
            assert admin.post(f"{path}/credits", json={"amount": str(left), "reference": "all"}).status_code == 200
        found = admin.get(path).json()
        assert found["credit_limit"]["amount"] == "0.000000"  # no room is left for it
        receipt = account.ask("When was the Vellmar lighthouse built?")["receipt"]
        assert account.balance == Decimal(found["balance"]["amount"]) - Decimal(receipt["charge"]["amount"])
        assert admin.get("/v1/admin/customers").status_code == 200
        assert cli(world.data_dir, "audit", env=world.env)["balanced"] is True

    def test_the_ledger_is_paged_and_balances(self, owed):
        _, admin, _ = owed
        found, after = [], ""
        while after is not None:
            page = admin.get("/v1/admin/ledger", params={"limit": 3, "after": after}).json()
            assert page["total"]["amount"] == "0.000000"
            found += page["accounts"]
            after = page["next"]
        names = [each["account"] for each in found]
        assert names == sorted(set(names))
        assert sum(page["accounts"] for page in page["groups"]) == len(names)
        assert admin.get("/v1/admin/ledger", params={"at": "2020-01-01T00:00:00Z"}).json()["accounts"] == []

    def test_bad_input_is_refused_in_words(self, owed):
        name, admin, _ = owed
        good = {"debit": "bank", "credit": f"contributor:{name}", "amount": "1", "reason": "why", "reference": "bad"}
        for path, body, status, says in (
            ("ledger/corrections", {**good, "credit": "contributor:nobody"}, 404, "contributor:nobody"),
            ("ledger/corrections", {**good, "credit": "pool:2026-01"}, 422, "periods alone"),
            ("ledger/corrections", {**good, "amount": "-1"}, 422, "above zero"),
            ("ledger/corrections", {**good, "amount": None}, 422, "needed"),
            ("ledger/corrections", {**good, "reason": "a\nb"}, 422, "reason"),
            ("ledger/corrections", {**good, "of": "none"}, 404, "no transfer none"),
            ("payouts", {"contributor": "nobody", "reference": "bad"}, 404, "nobody"),
            ("payouts", {"contributor": name, "reference": ""}, 422, "reference"),
            ("payouts", {"contributor": name, "amount": "0", "reference": "bad"}, 422, "above zero"),
            ("payouts/nothing/settle", {}, 404, "no payout nothing"),
            ("payouts/nothing/cancel", {}, 422, "reason"),
            ("customers/nobody/refunds", {"amount": "1", "reason": "x", "reference": "bad"}, 404, "nobody"),
        ):
            reply = admin.post(f"/v1/admin/{path}", json=body)
            assert (reply.status_code, says in problem(reply)["detail"]) == (status, True), reply.text
        for path, params in (("ledger", {"at": "now"}), ("ledger", {"limit": 0}), ("payouts", {"state": "lost"})):
            assert admin.get(f"/v1/admin/{path}", params=params).status_code == 422


def test_an_audit_beside_a_busy_server_finds_nothing(world: World):
    """What is charged while it reads is no fault: it compares what the database said at one moment."""
    account, over = world.customer("50.00"), threading.Event()

    def ask() -> int:
        asked = 0
        while not over.is_set():
            account.ask(f"When do spring tides come, {asked}?")
            asked += 1
        return asked

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask)
        try:
            account.usage()
            found = cli(world.data_dir, "audit", env=world.env)["checks"]
        finally:
            over.set()
        assert asking.result() > 0
    assert [check for check in found if not check["ok"]] == []
