"""``Idempotency-Key``: a client may send a paid request again without paying again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.e2e.world import Account, World, problem

_QUESTION = {"question": "When was the Vellmar lighthouse built?"}
_OTHER = {"question": "How long does the ferry to Osk Island take?"}
_CHAT = {"model": "patronage-extractive", "messages": [{"role": "user", "content": _QUESTION["question"]}]}
_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "query": ("/v1/query", _QUESTION),
    "chat": ("/v1/chat/completions", _CHAT),
    "stream": ("/v1/chat/completions", {**_CHAT, "stream": True, "stream_options": {"include_usage": True}}),
}
_RUNNING_TRIES = 40


def _send(account: Account, key: str, path: str, body: dict[str, Any]) -> httpx.Response:
    return account.client.post(path, json=body, headers={"Idempotency-Key": key})


@pytest.mark.parametrize("call", _CALLS)
def test_the_same_request_again_gives_the_first_response_and_no_charge(customer: Account, call: str):
    path, body = _CALLS[call]
    first = _send(customer, "order-1", path, body)
    after_first = customer.money()
    again = [_send(customer, "order-1", path, body) for _ in range(3)]

    assert first.status_code == 200, first.text
    assert after_first == (Decimal(1) - Decimal(first.headers["x-patronage-charge"]), Decimal(0))
    for reply in again:
        assert (reply.status_code, reply.content) == (200, first.content)
        for name in ("x-patronage-receipt", "x-patronage-charge", "content-type"):
            assert reply.headers[name] == first.headers[name]
        assert reply.headers["x-patronage-replayed"] == "true"
    assert "x-patronage-replayed" not in first.headers
    assert customer.money() == after_first


def test_a_replay_comes_also_after_the_record_left_redis(customer: Account):
    first = _send(customer, "order-1", "/v1/query", _QUESTION)
    customer.usage()
    again = _send(customer, "order-1", "/v1/query", _QUESTION)

    assert again.content == first.content
    assert customer.balance == Decimal(1) - Decimal(first.headers["x-patronage-charge"])


def test_a_replay_comes_also_when_the_account_is_empty(world: World):
    account = world.customer(credit="0.010000")
    first = _send(account, "order-1", "/v1/query", _QUESTION)
    while (reply := account.client.post("/v1/query", json=_QUESTION)).status_code == 200:
        pass
    assert reply.status_code == 402
    left = account.money()
    again = _send(account, "order-1", "/v1/query", _QUESTION)

    assert (again.status_code, again.content) == (200, first.content)
    assert account.money() == left


def test_without_a_key_the_same_request_is_charged_each_time(customer: Account):
    replies = [customer.client.post("/v1/query", json=_QUESTION) for _ in range(2)]

    assert replies[0].headers["x-patronage-receipt"] != replies[1].headers["x-patronage-receipt"]
    assert customer.balance == Decimal(1) - 2 * Decimal(replies[0].headers["x-patronage-charge"])


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/query", _OTHER), ("/v1/query", {**_QUESTION, "top_k": 3}), ("/v1/chat/completions", _CHAT)],
    ids=["other-question", "other-field", "other-route"],
)
def test_the_same_key_with_another_body_is_422_and_free(customer: Account, path: str, body: dict[str, Any]):
    first = _send(customer, "order-1", "/v1/query", _QUESTION)
    left = customer.money()
    other = _send(customer, "order-1", path, body)

    assert other.status_code == 422
    problem(other)
    assert customer.money() == left
    assert _send(customer, "order-1", "/v1/query", _QUESTION).content == first.content, "the first stays as it was"


def test_the_key_of_one_customer_is_nothing_to_another(world: World):
    first, second = world.customer(), world.customer()
    one = _send(first, "shared", "/v1/query", _QUESTION)
    two = _send(second, "shared", "/v1/query", _OTHER)

    assert (one.status_code, two.status_code) == (200, 200)
    assert one.json()["receipt"]["id"] != two.json()["receipt"]["id"]
    assert second.balance == Decimal(1) - Decimal(two.headers["x-patronage-charge"])


def test_a_refused_request_does_not_use_up_its_key(world: World):
    account = world.customer(credit=None)
    refused = _send(account, "order-1", "/v1/query", _QUESTION)
    paid = world.operator().post(f"/v1/admin/customers/{account.id}/credits", json={"amount": "1", "reference": "late"})
    answered = _send(account, "order-1", "/v1/query", _QUESTION)

    assert (refused.status_code, paid.status_code, answered.status_code) == (402, 200, 200)
    assert account.balance == Decimal(1) - Decimal(answered.headers["x-patronage-charge"])


def test_an_invalid_request_does_not_use_up_its_key(customer: Account):
    invalid = _send(customer, "order-1", "/v1/query", {**_QUESTION, "top_k": 0})
    answered = _send(customer, "order-1", "/v1/query", _QUESTION)

    assert (invalid.status_code, answered.status_code) == (422, 200)


def test_a_request_whose_first_is_still_running_is_409_and_only_one_is_charged(customer: Account):
    """Eight at once, again and again until two of them overlapped; the longest question there may be takes longest."""
    body = {"question": ("when was the lighthouse of vellmar built and who built it " * 200)[:7_900], "top_k": 50}
    charged = Decimal(0)
    statuses: set[int] = set()
    with ThreadPoolExecutor(8) as pool:
        for turn in range(_RUNNING_TRIES):
            replies = list(pool.map(lambda _, key=f"race-{turn}": _send(customer, key, "/v1/query", body), range(8)))
            answered = [reply for reply in replies if reply.status_code == 200]
            assert answered, [reply.text for reply in replies]
            assert len({reply.content for reply in answered}) == 1
            charged += Decimal(answered[0].headers["x-patronage-charge"])
            assert customer.money() == (Decimal(1) - charged, Decimal(0))
            refused = [reply for reply in replies if reply.status_code != 200]
            statuses |= {reply.status_code for reply in refused}
            for reply in refused:
                assert problem(reply)["error"]["type"] == "conflict_error"
            if statuses:
                break
    assert statuses == {409}


def test_a_key_that_is_too_long_is_refused_and_free(customer: Account):
    reply = _send(customer, "k" * 256, "/v1/query", _QUESTION)

    assert reply.status_code in {400, 422}
    problem(reply)
    assert customer.money() == (Decimal(1), Decimal(0))


def test_replays_are_within_the_limits_of_the_key(world: World, customer: Account):
    """Two a minute: the first and one replay use them up, and of eight at once seven are refused."""
    key = customer.key.split("-")[2]
    world.operator().put(f"/v1/admin/keys/{key}/limits", json={"requests_per_minute": 2}).raise_for_status()
    first = _send(customer, "order-1", "/v1/query", _QUESTION)
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda _: _send(customer, "order-1", "/v1/query", _QUESTION), range(8)))

    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert sorted(reply.status_code for reply in again) == [200] + [429] * 7
    for reply in again:
        if reply.status_code == 200:
            assert reply.content == first.content
            assert reply.headers["x-ratelimit-remaining-requests"] == "0"
        else:
            assert problem(reply)["error"]["code"] == "rate_limited"
            assert int(reply.headers["retry-after"]) > 0
