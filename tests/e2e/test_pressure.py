"""Admission under pressure: however many requests at once, an account pays for what was delivered and no more."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.e2e.world import Account, World, open_world
from tests.faults.accident import redis_of
from tests.faults.shop import PATH, PLAIN, open_shop
from tests.servers import cli, wait_for
from tests.upstream import Script

REQUESTS = 1_000
PENNY = "0.000001"
"""Less than what any of these queries costs."""


def most(account: Account, path: str, body: dict[str, Any]) -> Decimal:
    """What such a query may cost, as the server says."""
    reply = account.client.post(path, json={**body, "max_price": PENNY})
    assert reply.json()["error"]["code"] == "max_price_exceeded", reply.text
    found = re.search(r"may cost up to (\d+\.\d+)", reply.json()["error"]["message"])
    assert found, reply.text
    return Decimal(found[1])


def asked(number: int) -> dict[str, Any]:
    """One of many different questions of one price: a digit is a token."""
    return {"question": f"How long does ferry {' '.join(str(REQUESTS + number))} to Osk Island take?"}


def chat(_: int) -> dict[str, Any]:
    """A question to a model that will not keep to what it is allowed."""
    return {**PLAIN, "max_tokens": 20}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[World]:
    """A server that takes a thousand queries at once."""
    env = {**e2e_env, "PATRONAGE_CONCURRENT_QUERIES": str(2 * REQUESTS)}
    with open_world(tmp_path_factory.mktemp("busy") / "data", env) as found:
        yield found


async def ask_all(
    url: str,
    keys: list[str],
    count: int,
    path: str = "/v1/query",
    body: Callable[[int], dict[str, Any]] = asked,
) -> list[httpx.Response]:
    """As many queries, all at once; the responses that came, in order."""
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=240, limits=limits) as client:

        async def ask(i: int) -> httpx.Response | None:
            try:
                headers = {"authorization": f"Bearer {keys[i % len(keys)]}"}
                return await client.post(path, json=body(i), headers=headers)
            except httpx.HTTPError:
                return None

        return [reply for reply in await asyncio.gather(*map(ask, range(count))) if reply is not None]


def assert_nothing_was_overspent(world: World, account: Account, funds: Decimal, replies: list[httpx.Response]) -> None:
    """Every request was answered or refused for want of money; what was charged is what was delivered, to the unit."""
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
    assert cli(world.data_dir, "audit", env=world.env)["balanced"]


def test_a_thousand_requests_at_once_on_money_for_a_hundred_overspend_nothing(busy: World):
    account = busy.customer(None)
    funds = 100 * most(account, "/v1/query", asked(0))
    account.deposit(funds)
    replies = asyncio.run(ask_all(busy.server.url, [account.key], REQUESTS))

    assert_nothing_was_overspent(busy, account, funds, replies)


def test_a_thousand_answers_longer_than_they_may_be_overspend_nothing(tmp_path, e2e_env, embedder):
    env = {**e2e_env, "PATRONAGE_CONCURRENT_QUERIES": str(2 * REQUESTS)}
    with open_shop(tmp_path / "data", env, embedder) as shop:
        shop.upstream.script = Script(pieces=("word " * 100,) * 30)
        account = shop.world.customer(None)
        funds = 100 * most(account, PATH, chat(0))
        account.deposit(funds)
        replies = asyncio.run(ask_all(shop.world.server.url, [account.key], REQUESTS, PATH, chat))

        assert_nothing_was_overspent(shop.world, account, funds, replies)
        texts = {r.json()["choices"][0]["message"]["content"] for r in replies if r.status_code == 200}
        assert max(map(embedder.count_tokens, texts)) <= 20
        charges = {Decimal(r.headers["x-patronage-charge"]) for r in replies if r.status_code == 200}
        assert charges == {shop.price(text) for text in texts}


def test_every_limit_holds_at_once(busy: World):
    """Two keys of one invoiced account: each within its own limits, together within the credit limit."""
    account, admin = busy.customer(None), busy.operator()
    ceiling = most(account, "/v1/query", asked(0))
    reply = admin.put(f"/v1/admin/customers/{account.id}/credit-limit", json={"amount": str(30 * ceiling)})
    assert reply.json()["billing"] == "invoiced"
    keys = []
    for limits in ({"requests_per_minute": 2, "tokens_per_minute": 50_000}, {"day_cap": str(9 * ceiling)}):
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
    assert spent[1] <= 9 * ceiling
    assert account.money() == (-sum(spent), 0)


@pytest.mark.parametrize("victim", ["server", "redis"])
def test_a_kill_in_the_middle_overspends_nothing_and_loses_no_answer_that_was_given(busy: World, victim: str):
    account = busy.customer(None)
    funds = 200 * most(account, "/v1/query", asked(0))
    account.deposit(funds)
    replies: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: replies.extend(asyncio.run(ask_all(busy.server.url, [account.key], REQUESTS // 2)))
    )
    asking.start()
    wait_for(lambda: account.balance < funds)
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
    assert 0 < spent <= funds
    assert sum(delivered) <= spent
    wait_for(lambda: spent == sum(Decimal(row["charge"]["amount"]) for row in account.usage(len(delivered))))
