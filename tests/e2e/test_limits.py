"""Limits of API keys: what is refused, what the headers say, and that nobody else is held back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import httpx
import openai
import pytest

from serving.api.pace import AT_ONCE
from tests.e2e.commands import refused
from tests.e2e.world import Account, World, open_world, problem
from tests.servers import Server, cli, run

_ASK = {"question": "How long does the ferry to Osk Island take?"}
_CHAT = [{"role": "user", "content": _ASK["question"]}]

PACE = 2
"""Calls that cost nothing in a second."""


def key_id(key: str) -> str:
    return key.split("-")[2]


def limit(world: World, account: Account, **limits: object) -> None:
    reply = world.operator().put(f"/v1/admin/keys/{key_id(account.key)}/limits", json=limits)
    assert reply.status_code == 200, reply.text
    assert reply.json()["limits"].items() >= {k: v for k, v in limits.items() if not isinstance(v, str)}.items()


def ask(account: Account) -> httpx.Response:
    return account.client.post("/v1/query", json=_ASK)


def test_requests_a_minute_are_counted_by_key(world: World, customer: Account):
    limit(world, customer, requests_per_minute=2)
    first, second, third = ask(customer), ask(customer), ask(customer)

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.headers["ratelimit-policy"] == '"requests";q=2;w=60;qu="requests"'
    assert re.fullmatch(r'"requests";r=1;t=(30|29)', first.headers["ratelimit"])
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert re.fullmatch(r"(30|29)s", first.headers["x-ratelimit-reset-requests"])
    assert problem(third)["error"]["code"] == "rate_limited"
    assert third.status_code == 429
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert third.headers["ratelimit"].startswith('"requests";r=0;')
    other = world.operator().post("/v1/admin/keys", json={"role": "customer", "owner": customer.id})
    assert other.status_code == 201, other.text
    assert world.client(other.json()["api_key"]).post("/v1/query", json=_ASK).status_code == 200
    assert "ratelimit" not in world.client(other.json()["api_key"]).post("/v1/query", json=_ASK).headers


def test_tokens_a_minute_weigh_what_a_query_may_use(world: World, customer: Account):
    limit(world, customer, tokens_per_minute=100)
    too_many = ask(customer)
    assert (too_many.status_code, problem(too_many)["error"]["code"]) == (413, "too_many_tokens")

    ceiling = int(re.search(r"may use (\d+) tokens", too_many.json()["detail"]).group(1))
    limit(world, customer, tokens_per_minute=ceiling + 1)
    first, second = ask(customer), ask(customer)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-remaining-tokens"] == "1"
    assert first.headers["ratelimit-policy"].endswith(';w=60;qu="tokens"')
    assert second.status_code == 429
    assert "tokens a minute" in second.json()["detail"]


def test_requests_at_once_are_counted_and_given_back(world: World, customer: Account):
    limit(world, customer, concurrent_requests=2)
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: ask(customer), range(24)))
    statuses = {reply.status_code for reply in replies}

    assert 200 in statuses
    assert statuses <= {200, 429}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies if reply.status_code == 429)
    assert ask(customer).headers["ratelimit"] == '"concurrent";r=1'
    assert ask(customer).headers["ratelimit-policy"] == '"concurrent";q=2;qu="concurrent-requests"'
    # A query that fails gives its place back.
    for _ in range(3):
        assert customer.client.post("/v1/query", json={**_ASK, "purpose": "none-allows-this"}).status_code == 200
    assert ask(customer).status_code == 200


@pytest.mark.parametrize("span", ["day", "month"])
def test_a_key_spends_no_more_than_its_cap(world: World, customer: Account, span: str):
    limit(world, customer, **{f"{span}_cap": "0.009"})
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: ask(customer), range(20)))
    paid = [reply for reply in replies if reply.status_code == 200]
    capped = [reply for reply in replies if reply.status_code != 200]
    spent = sum(Decimal(reply.headers["x-patronage-charge"]) for reply in paid)

    assert paid
    assert spent <= Decimal("0.009")
    assert customer.money() == (1 - spent, 0)
    assert {(reply.status_code, problem(reply)["error"]["code"]) for reply in capped} == {(402, "spending_cap")}
    assert f"of this {span}" in capped[0].json()["detail"]
    assert capped[0].headers["x-should-retry"] == "false"
    limit(world, customer, **{f"{span}_cap": "none"})
    assert ask(customer).status_code == 200


def test_the_official_client_reads_the_limits_and_hears_a_429(world: World, customer: Account):
    limit(world, customer, requests_per_minute=1)
    client = world.openai(customer.key)
    raw = client.chat.completions.with_raw_response.create(model="patronage-extractive", messages=_CHAT)

    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="patronage-extractive", messages=_CHAT, stream=True)
    assert caught.value.code == "rate_limited"
    assert int(caught.value.response.headers["retry-after"]) > 0


def test_what_is_no_limit_is_refused_and_changes_nothing(world: World, customer: Account, subtests: pytest.Subtests):
    admin, path = world.operator(), f"/v1/admin/keys/{key_id(customer.key)}/limits"
    before = admin.put(path, json={}).json()
    cases = (
        {"requests_per_minute": -1},
        {"requests_per_minute": 1.5},
        {"requests_per_minute": True},
        {"tokens_per_minute": 10**10},
        {"concurrent_requests": "many"},
        {"day_cap": "-1"},
        {"day_cap": 5},
        {"day_cap": {"amount": "5", "currency": "EUR"}},
        {"month_cap": "1e3"},
        {"requests_per_hour": 3},
    )
    for body in cases:
        with subtests.test(str(body)):
            reply = admin.put(path, json=body)
            assert (reply.status_code, next(iter(body)) in reply.json()["detail"]) == (422, True), reply.text
    assert admin.put(path, json={}).json() == before
    assert admin.put("/v1/admin/keys/none/limits", json={}).status_code == 404


def test_keys_are_listed_without_what_makes_them_secret(world: World, customer: Account):
    listed = world.operator().get("/v1/admin/keys", params={"owner": customer.id})
    assert [each["id"] for each in listed.json()["data"]] == [key_id(customer.key)]
    assert customer.key.split("-", 3)[3] not in listed.text
    by_command = cli(world.data_dir, "key", "list", "--owner", customer.id, env=world.env)
    assert by_command["keys"] == listed.json()["data"]


class TestRevoking:
    @pytest.fixture
    def server(self, tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[Server]:
        with Server(tmp_path_factory.mktemp("revoking") / "data", e2e_env) as server:
            yield server

    def test_a_key_is_refused_at_once_and_for_ever(self, server: Server, e2e_env: dict[str, str]):
        data = server.data_dir
        keys = {
            "customer": cli(data, "customer", "add", "A", "--id", "a", "--credit", "1", env=e2e_env)["api_key"],
            "contributor": cli(data, "contributor", "add", "M", "--id", "m", env=e2e_env)["api_key"],
            "operator": cli(data, "operator", "add", "O", "--id", "o", env=e2e_env)["api_key"],
        }
        other = cli(data, "key", "add", "customer", "a", "--requests-per-minute", "5", env=e2e_env)["api_key"]
        unpaid = {"customer": "/v1/account", "contributor": "/v1/earnings", "operator": "/v1/admin/policy"}
        for role, path in unpaid.items():
            with server.client(keys[role]) as client:
                assert client.get(path).status_code == 200
                if role == "customer":
                    assert client.post("/v1/query", json=_ASK).status_code == 200
                cli(data, "key", "revoke", key_id(keys[role]), env=e2e_env)
                if role == "customer":
                    self.check_refused(client.post("/v1/query", json=_ASK))
                self.check_refused(client.get(path))
        server.stop()
        server.start()
        with server.client(keys["customer"]) as client:
            self.check_refused(client.post("/v1/query", json=_ASK))
            self.check_refused(client.get("/v1/account"))
        with server.client(other) as client:
            assert client.post("/v1/query", json=_ASK).headers["x-ratelimit-limit-requests"] == "5"
        assert "revoked" in refused(run(data, "query", "why?", "--key", keys["customer"], env=e2e_env))
        states = {each["id"]: each["revoked"] is None for each in cli(data, "key", "list", env=e2e_env)["keys"]}
        assert states == {**{key_id(key): False for key in keys.values()}, key_id(other): True}
        assert cli(data, "audit", env=e2e_env)["balanced"]

    def check_refused(self, reply: httpx.Response) -> None:
        assert (reply.status_code, problem(reply)["error"]["code"]) == (401, "key_revoked")


# Calls that cost nothing.


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[World]:
    """A server with so slow a pace that waiting for it is seen."""
    env = {**e2e_env, "PATRONAGE_UNPAID_PER_SECOND": str(PACE), "PATRONAGE_CALLS_PER_SECOND": str(PACE)}
    with open_world(tmp_path_factory.mktemp("paced") / "data", env) as found:
        yield found


@pytest.mark.parametrize("kind", ["replay", "mismatch", "unknown model", "no body", "not JSON"])
def test_what_costs_nothing_has_a_pace(paced: World, kind: str):
    account = paced.customer()
    headers = {"Idempotency-Key": "order-1", "content-type": "application/json"}
    bodies = {
        "replay": b'{"question": "When?"}',
        "mismatch": b'{"question": "Where?"}',
        "unknown model": b'{"question": "When?", "model": "none"}',
        "no body": b"",
        "not JSON": b"{",
    }
    assert account.client.post("/v1/query", content=bodies["replay"], headers=headers).status_code == 200

    began = time.monotonic()
    unpaid = AT_ONCE + 3 * PACE
    replies = [account.client.post("/v1/query", content=bodies[kind], headers=headers) for _ in range(unpaid + 1)]
    assert time.monotonic() - began >= (unpaid - AT_ONCE) / PACE
    assert {reply.status_code == 200 for reply in replies} == {kind == "replay"}
    assert {reply.status_code for reply in replies}.isdisjoint({429, 500, 503})


def test_a_large_body_that_is_refused_counts_for_as_many_as_it_takes_to_read(paced: World):
    account = paced.customer()
    large = json.dumps({"model": "embedder", "input": "\\" * (25 * 262_144 // 2)})
    began = time.monotonic()
    for _ in range((AT_ONCE + 2 * PACE) // 26):
        reply = account.client.post("/v1/embeddings", content=large, headers={"content-type": "application/json"})
        assert 400 <= reply.status_code < 500, reply.text
    account.ask("When do spring tides come?")
    assert time.monotonic() - began >= 2


@pytest.mark.parametrize("kind", ["customer", "other role", "contributor", "refused upload"])
def test_what_is_never_paid_has_a_pace_of_its_own(paced: World, kind: str):
    customer, (mary, bo, *_) = paced.customer(), sorted(paced.keys)
    client = {"contributor": paced.contributor(mary), "refused upload": paced.contributor(bo)}.get(
        kind, customer.client
    )
    began = time.monotonic()
    for _ in range(AT_ONCE + 3 * PACE + 1):
        if kind == "refused upload":
            assert client.post("/v1/documents", content=b"{").status_code == 400
        else:
            assert client.get("/v1/account" if kind == "customer" else "/v1/earnings").status_code in (200, 403)
    assert time.monotonic() - began >= 3
    assert customer.ask("When do spring tides come?")["answer"], "the pace of what is paid is another"


def test_nobody_with_a_key_waits_for_those_without(paced: World):
    customer, strangers = paced.customer(), (paced.client(), paced.client("patronage-customer-of-nobody"))
    began = time.monotonic()
    for number in range(AT_ONCE + 3 * PACE + 1):
        path = ("/v1/account", "/v1/checkpoint", "/v1/none")[number % 3]
        assert strangers[number % 2].get(path).status_code in (200, 401, 404)
    assert time.monotonic() - began >= 3
    with ThreadPoolExecutor(12) as threads:
        waiting = [threads.submit(strangers[0].get, "/v1/checkpoint") for _ in range(12)]
        assert customer.client.get("/v1/account").status_code == 200
        assert not all(each.done() for each in waiting)
