"""The official client sends a request again by itself, without an Idempotency-Key: one answer is paid once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import openai
import pytest

from tests.faults.shop import PATH, PLAIN, STREAM, events, spent_by, text_of
from tests.servers import wait_for
from tests.upstream import PIECES, Script

_WHOLE = "".join(PIECES)
_HEADER = "x-stainless-retry-count"
_QUERY = {"question": "When was the Vellmar lighthouse built?"}


@pytest.fixture
def attempts():
    """The requests that the client has sent."""
    return []


@pytest.fixture
def client(shop, account, attempts):
    """The official client as it comes, but for its patience."""
    http = openai.DefaultHttpxClient(event_hooks={"request": [attempts.append]})
    url = f"{shop.world.server.url}/v1"
    with openai.OpenAI(base_url=url, api_key=account.key, max_retries=5, timeout=1.0, http_client=http) as found:
        yield found


def send(account, retries, path="/v1/query", body=_QUERY):
    reply = account.client.post(path, json=body, headers={_HEADER: str(retries)})
    assert reply.status_code == 200, reply.text
    return reply


def test_an_answer_that_the_client_did_not_wait_for_is_given_to_its_retry(shop, upstream, account, client, attempts):
    """The client times out and sends again while the answer is written; the model is asked once."""
    upstream.reset(script=Script(stall_after=4))

    def go_on():
        wait_for(lambda: len(attempts) > 1)
        upstream.go.set()

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(go_on)
        reply = client.chat.completions.create(**PLAIN)
        going.result()

    assert len(attempts) > 1
    assert reply.choices[0].message.content == _WHOLE
    assert len(upstream.requests) == 1
    assert spent_by(account) == shop.price(_WHOLE)


def test_a_stream_that_had_not_begun_begins_again_with_the_retry(shop, upstream, account, client):
    upstream.reset(Script(stall_after=0), script=Script())
    stream = client.with_options(timeout=2.0).chat.completions.create(**STREAM)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert text == _WHOLE
    assert len(upstream.requests) == 2
    assert upstream.left.is_set()
    assert spent_by(account) == shop.price(_WHOLE)


@pytest.mark.parametrize("status", [500, 429, 503])
def test_a_model_that_fails_first_is_paid_once(shop, upstream, account, client, status):
    upstream.reset(Script(status=status), script=Script())
    reply = client.chat.completions.create(**PLAIN)

    assert reply.choices[0].message.content == _WHOLE
    assert len(upstream.requests) == 2
    assert spent_by(account) == shop.price(_WHOLE)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/query", _QUERY),
        (PATH, PLAIN),
        (PATH, STREAM),
        ("/v1/responses", {"model": "patronage-extractive", "input": "Who built it?"}),
        ("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "a lighthouse"}),
    ],
    ids=["query", "chat", "stream", "responses", "embeddings"],
)
def test_a_retry_of_a_finished_answer_is_free_three_times(upstream, account, path, body):
    first = send(account, 0, path, body)
    paid = spent_by(account)
    again = [send(account, number, path, body) for number in (1, 2, 2)]
    free = spent_by(account)
    asked = len(upstream.requests)
    fourth = send(account, 2, path, body)

    assert {reply.headers["x-patronage-receipt"] for reply in again} == {first.headers["x-patronage-receipt"]}
    assert paid == free > 0
    assert asked <= 1
    assert fourth.headers["x-patronage-receipt"] != first.headers["x-patronage-receipt"]
    assert spent_by(account) == 2 * paid


def test_the_same_question_asked_anew_is_a_new_answer(account):
    replies = [send(account, 0) for _ in range(3)]
    retry = send(account, 1)

    assert len({reply.headers["x-patronage-receipt"] for reply in replies}) == 3
    assert retry.content == replies[-1].content
    assert spent_by(account) == 3 * Decimal(replies[0].headers["x-patronage-charge"])


def test_the_same_question_asked_twice_at_once_is_answered_and_paid_twice(shop, upstream, account):
    upstream.reset(script=Script(stall_after=4))
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(send, account, 0, PATH, PLAIN) for _ in range(2)]
        wait_for(lambda: len(upstream.requests) == 2)
        upstream.go.set()
        receipts = {each.result().headers["x-patronage-receipt"] for each in both}

    assert len(receipts) == 2
    assert spent_by(account) == 2 * shop.price(_WHOLE)


def test_half_an_answer_is_no_answer_to_a_retry(shop, upstream, account):
    """It gets a new one, and each is paid as far as it was delivered."""
    upstream.reset(Script(close_at=600), script=Script())
    half = text_of(events(send(account, 0, PATH, STREAM).content))
    whole = text_of(events(send(account, 1, PATH, STREAM).content))

    assert half != whole == _WHOLE
    assert spent_by(account) == shop.price(half) + shop.price(whole)


def test_a_retry_with_another_key_or_body_or_path_is_no_retry(shop, account):
    other = shop.world.customer()
    first = send(account, 0)
    foreign = send(other, 1)
    changed = send(account, 1, body={**_QUERY, "top_k": 3})
    moved = send(account, 1, PATH, {**PLAIN, "model": "patronage-extractive"})

    assert len({reply.headers["x-patronage-receipt"] for reply in (first, foreign, changed, moved)}) == 4


@pytest.mark.parametrize("value", ["", "-1", "one", "99999999999999999999", "1.0"])
def test_a_header_that_is_no_count_is_ignored(account, value):
    replies = [account.client.post("/v1/query", json=_QUERY, headers={_HEADER: value}) for _ in range(2)]

    assert [reply.status_code for reply in replies] == [200, 200]
    assert replies[0].headers["x-patronage-receipt"] != replies[1].headers["x-patronage-receipt"]


def test_an_idempotency_key_goes_before_the_count(account):
    once = {"Idempotency-Key": "order-1"}
    replies = [account.client.post("/v1/query", json=_QUERY, headers={**once, _HEADER: "0"}) for _ in range(5)]

    assert len({reply.content for reply in replies}) == 1
    assert spent_by(account) == Decimal(replies[0].headers["x-patronage-charge"])


def test_the_ledger_does_not_keep_what_a_library_asks_for(shop, account):
    """Only what the client asks for is remembered for ever: a year of retries would fill the database."""
    send(account, 0)
    account.usage()
    from sqlalchemy import create_engine, text  # noqa: PLC0415 # beside its only use

    engine = create_engine(f"sqlite:///{shop.world.data_dir}/patronage.sqlite3")
    with engine.connect() as connection:
        query = text("SELECT count(*) FROM idempotency WHERE account = :account")
        assert connection.execute(query, {"account": account.id}).scalar_one() == 0
    engine.dispose()
