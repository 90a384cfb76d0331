"""Admission under pressure: however many requests at once, an account pays for what was delivered and no more."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import httpx
import pytest

from tests.e2e.world import World, open_world
from tests.faults.accident import redis_of
from tests.faults.customers import wait_for
from tests.servers import cli

REQUESTS = 1_000
CEILING = Decimal("0.0034")
"""More than what one of these questions may cost."""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[World]:
    """A server that takes a thousand queries at once."""
    env = {**e2e_env, "PATRONAGE_CONCURRENT_QUERIES": str(2 * REQUESTS)}
    with open_world(tmp_path_factory.mktemp("busy") / "data", env) as found:
        yield found


async def ask_all(url: str, keys: list[str], count: int) -> list[httpx.Response]:
    """Different questions, all at once; the responses that came, in order."""
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=240, limits=limits) as client:

        async def ask(i: int) -> httpx.Response | None:
            body = {"question": f"How long does the ferry number {i} to Osk Island take?"}
            try:
                headers = {"authorization": f"Bearer {keys[i % len(keys)]}"}
                return await client.post("/v1/query", json=body, headers=headers)
            except httpx.HTTPError:
                return None

        return [reply for reply in await asyncio.gather(*map(ask, range(count))) if reply is not None]


def test_a_thousand_requests_at_once_on_money_for_a_hundred_overspend_nothing(busy: World):
    funds = 100 * CEILING
    account = busy.customer(str(funds))
    replies = asyncio.run(ask_all(busy.server.url, [account.key], REQUESTS))

    assert len(replies) == REQUESTS
    assert {reply.status_code for reply in replies} == {200, 402}
    assert {reply.json()["error"]["code"] for reply in replies if reply.status_code == 402} == {"insufficient_funds"}
    delivered = [reply for reply in replies if reply.status_code == 200]
    assert len(delivered) >= 100
    spent = sum(Decimal(reply.headers["x-patronage-charge"]) for reply in delivered)
    assert spent <= funds
    assert account.money() == (funds - spent, 0)
    assert sum(row["queries"] for row in account.usage(len(delivered))) == len(delivered)
    assert sum(Decimal(row["charge"]["amount"]) for row in account.usage()) == spent
    assert cli(busy.data_dir, "audit", env=busy.env)["balanced"]


def test_every_limit_holds_at_once(busy: World):
    """Two keys of one invoiced account: each within its own limits, together within the credit limit."""
    account, admin = busy.customer(None), busy.operator()
    reply = admin.put(f"/v1/admin/customers/{account.id}/credit-limit", json={"amount": str(30 * CEILING)})
    assert reply.json()["billing"] == "invoiced"
    keys = []
    for limits in ({"requests_per_minute": 2, "tokens_per_minute": 50_000}, {"day_cap": str(9 * CEILING)}):
        made = admin.post("/v1/admin/keys", json={"role": "customer", "owner": account.id, "limits": limits})
        keys.append(made.json()["api_key"])
    replies = asyncio.run(ask_all(busy.server.url, keys, 200))

    assert len(replies) == 200
    first, second = replies[0::2], replies[1::2]
    assert Counter(reply.status_code for reply in first) == {200: 2, 429: 98}
    assert {reply.status_code for reply in second} == {200, 402}
    assert {reply.json()["error"]["code"] for reply in second if reply.status_code == 402} == {"spending_cap"}
    spent = [
        sum(Decimal(reply.headers["x-patronage-charge"]) for reply in each if reply.status_code == 200)
        for each in (first, second)
    ]
    assert spent[1] <= 9 * CEILING
    assert account.money() == (-sum(spent), 0)


@pytest.mark.parametrize("victim", ["server", "redis"])
def test_a_kill_in_the_middle_overspends_nothing_and_loses_no_answer_that_was_given(busy: World, victim: str):
    funds = 60 * CEILING
    account = busy.customer(str(funds))
    replies: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: replies.extend(asyncio.run(ask_all(busy.server.url, [account.key], REQUESTS // 2)))
    )
    asking.start()
    wait_for(lambda: account.money()[1] > 0)
    if victim == "server":
        busy.server.kill()
    else:
        redis_of(busy.data_dir).kill()
    asking.join()
    if victim == "server":
        busy.server.start()
    for client in busy.opened:
        client.base_url = busy.server.url
    wait_for(lambda: account.client.get("/v1/account").status_code == 200)

    assert cli(busy.data_dir, "audit", env=busy.env)["balanced"]
    delivered = [Decimal(reply.headers["x-patronage-charge"]) for reply in replies if reply.status_code == 200]
    spent = funds - account.balance
    assert sum(delivered) <= spent <= funds
    assert spent == sum(Decimal(row["charge"]["amount"]) for row in account.usage(len(delivered)))
