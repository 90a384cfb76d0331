"""The largest amounts: what is beyond is refused before it is booked, and everything can still be read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from metering import ledger
from metering.ledger import MAX_MOVED, Transfer
from metering.money import MAX_UNITS
from serving.store.database import open_database, sqlite_url
from tests.e2e.world import Account, World, open_world
from tests.servers import cli

MOST = Decimal(MAX_UNITS).scaleb(-9)
UNIT = Decimal("0.000000001")


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("rich") / "data", e2e_env) as found:
        yield found


def credit(account: Account, amount: Decimal, reference: str) -> int:
    body = {"amount": f"{amount:f}", "reference": reference}
    return account.operator.post(f"/v1/admin/customers/{account.id}/credits", json=body).status_code


def assert_all_can_be_read(world: World, account: Account, balance: Decimal) -> None:
    assert account.balance == balance
    assert account.operator.get("/v1/admin/customers").status_code == 200
    assert account.operator.get(f"/v1/admin/customers/{account.id}").status_code == 200
    assert cli(world.data_dir, "audit", env=world.env)["balanced"]


def test_a_customer_pays_in_up_to_the_limit_and_not_a_unit_more(rich: World):
    account = rich.customer(None)
    assert credit(account, MOST - 1, "first") == 200
    assert credit(account, 1 + UNIT, "a unit too much") == 422
    assert credit(account, Decimal(1), "the rest") == 200
    assert credit(account, UNIT, "one more") == 422
    assert credit(account, MOST - 1, "first") == 200, "what is booked is not booked again"
    path = f"/v1/admin/customers/{account.id}/credit-limit"
    assert account.operator.put(path, json={"amount": f"{UNIT:f}"}).status_code == 422
    assert_all_can_be_read(rich, account, MOST)


def test_of_many_at_once_as_many_are_booked_as_there_is_room_for(rich: World):
    account, part = rich.customer(None), Decimal(MAX_UNITS // 4).scaleb(-9)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: credit(account, part, f"part {number}"), range(12)))
    assert sorted(found) == [200] * 4 + [422] * 8
    assert_all_can_be_read(rich, account, 4 * part)


def test_all_that_is_paid_in_has_a_limit_and_the_books_stay_readable(rich: World):
    """A thousand of the largest credits would pass what SQL counts in."""
    engine = open_database(sqlite_url(next(rich.data_dir.glob("*.sqlite3"))))
    with engine.begin() as connection:
        left = MAX_MOVED + ledger.balance(connection, ledger.BANK) - 1_000  # nothing was paid back
        transfers = []
        while left > 0:
            amount, number = min(left, MAX_UNITS), len(transfers)
            transfers.append(
                Transfer(f"t{number}", 1, ledger.BANK, ledger.customer(f"other-{number}"), amount, ledger.FUNDING, "r")
            )
            left -= amount
        ledger.post(connection, transfers)
    engine.dispose()
    account = rich.customer(None)
    assert credit(account, 1_001 * UNIT, "too much") == 422
    assert credit(account, 1_000 * UNIT, "the last") == 200
    assert account.balance == 1_000 * UNIT
    assert account.operator.get("/v1/admin/customers").status_code == 200
