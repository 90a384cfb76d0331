"""What a customer pays for an answer that does not end well: for what was delivered, and never for more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
from decimal import Decimal
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.faults.shop import DOCUMENTS, PATH, PLAIN, QUESTION, STREAM, events, spent_by, text_of
from tests.servers import PATIENCE_SECONDS, cli, wait_for
from tests.upstream import MODEL, PIECES, Script, stream_bytes

_STALLS = Script(stall_after=4)
_GARBAGE = b"data: [1, 2]\n\n"
_ERROR = b'data: {"error": {"message": "secret of the upstream"}}\n\n'
_ENDLESS = b"data: " + b"x" * 1_100_000


def test_a_whole_stream_is_paid_at_the_price_of_the_book(shop, account):
    reply = account.client.post(PATH, json=STREAM)
    found = events(reply.content)
    receipt = found[-1]["receipt"]

    assert text_of(found) == "".join(PIECES)
    assert reply.content.endswith(b"data: [DONE]\n\n")
    assert found[-1]["choices"][0]["finish_reason"] == "stop"
    assert reply.headers["x-patronage-receipt"] == receipt["id"]
    assert "x-patronage-charge" not in reply.headers, "it is not known before the end"
    assert spent_by(account) == Decimal(receipt["charge"]["amount"]) == shop.price("".join(PIECES))
    assert account.client.get(f"/v1/receipts/{receipt['id']}").json()["charge"] == receipt["charge"]


def test_a_whole_plain_answer_is_paid_at_the_same_price(shop, account):
    reply = account.client.post(PATH, json=PLAIN)

    assert reply.json()["choices"][0]["message"]["content"] == "".join(PIECES)
    assert spent_by(account) == Decimal(reply.headers["x-patronage-charge"]) == shop.price("".join(PIECES))


def test_what_the_model_said_pays_the_document_that_says_it(shop, account):
    """Under the policy that every deployment begins with."""
    reply = account.ask(QUESTION, model=MODEL)
    shares = {source["document_id"]: source["share"] for source in reply["sources"]}
    account.usage()
    explained = cli(shop.world.data_dir, "period", "explain", reply["receipt"]["id"], env=shop.world.env)

    assert explained["value"]["function"] == "support/1"
    assert shares["mary/light"] > 0.8, "it says when the lighthouse was built"
    assert max(each["units"] for each in explained["credits"]) > 0


@pytest.fixture
def all_drawn(shop):
    """Every query is drawn for the audit by ablation."""
    operator = shop.world.operator()
    before = operator.get("/v1/admin/policy").json()
    adopt(operator, before["data_share_ppm"], 1_000_000)
    yield
    adopt(operator, before["data_share_ppm"], before["ablation_ppm"])


@pytest.fixture
def no_samples(shop, tmp_path):
    """The disk does not take the text of a query that is drawn."""
    folder, aside = shop.world.data_dir / "samples", tmp_path / "aside"
    if folder.is_dir():
        folder.replace(aside)
    folder.write_text("no folder")
    yield
    folder.unlink()
    if aside.is_dir():
        aside.replace(folder)


def adopt(operator, data_share_ppm, ablation_ppm):
    policy = {"data_share_ppm": data_share_ppm, "ablation_ppm": ablation_ppm}
    version = operator.post("/v1/admin/policy", json=policy).json()["version"]
    wait_for(lambda: operator.get("/v1/admin/policy").json()["version"] == version)


@pytest.mark.usefixtures("all_drawn", "no_samples")
def test_a_stream_whose_sample_is_not_kept_is_paid_and_a_plain_answer_is_not_given(shop, account):
    """Half of it was with the customer before anybody could know."""
    stream = account.client.post(PATH, json=STREAM)
    assert text_of(events(stream.content)) == "".join(PIECES)
    assert spent_by(account) == shop.price("".join(PIECES))

    plain = account.client.post(PATH, json=PLAIN)
    assert plain.status_code == 503
    assert spent_by(account) == shop.price("".join(PIECES))
    assert "a sampled query was not kept" in shop.world.server.log.read_text()


@pytest.mark.usefixtures("all_drawn")
def test_an_answer_that_is_drawn_does_not_wait_for_the_lock_of_the_database(shop, account):
    """Its text waits on disk instead, and is in the database when that can be written."""
    with contextlib.closing(sqlite3.connect(shop.world.data_dir / "patronage.sqlite3", timeout=10)) as database:
        kept = "SELECT count(*) FROM ablation_samples"
        (before,) = database.execute(kept).fetchone()
        database.execute("BEGIN IMMEDIATE")
        receipts = [account.client.post(PATH, json=body).status_code for body in (STREAM, PLAIN)]
        assert receipts == [200, 200]
        assert len(list((shop.world.data_dir / "samples").glob("*.sample"))) >= 2
        database.rollback()
        wait_for(lambda: database.execute(kept).fetchone()[0] >= before + 2)
        wait_for(lambda: not list((shop.world.data_dir / "samples").glob("*.sample")))


@pytest.mark.parametrize("body", [STREAM, PLAIN], ids=["stream", "plain"])
@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (Script(status=500), 502, "model_failed"),
        (Script(status=401), 502, "model_failed"),
        (Script(status=302), 502, "model_failed"),
        (Script(status=429), 503, "model_busy"),
        (Script(status=503), 503, "model_busy"),
        (Script(close_at=0), 502, "model_failed"),
        (Script(raw=_GARBAGE), 502, "model_failed"),
        (Script(raw=_ERROR), 502, "model_failed"),
        (Script(raw=_ENDLESS), 502, "model_failed"),
        (Script(raw=b""), 502, "model_failed"),
        (Script(pieces=()), 502, "model_failed"),
        (Script(stall_after=0), 504, "answer_timeout"),
    ],
    ids=["500", "401", "302", "429", "503", "closed", "garbage", "error", "endless", "nothing", "empty", "timeout"],
)
def test_an_error_before_the_first_token_costs_nothing(upstream, account, body, script, status, code):
    upstream.reset(script=script)
    reply = account.client.post(PATH, json=body)

    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert "secret" not in reply.text
    assert spent_by(account) == 0
    assert account.client.get("/v1/usage").json()["data"] == []


@pytest.mark.parametrize("close_at", range(1, stream_bytes(Script()) - 20, 71))
def test_an_upstream_that_closes_at_any_byte_is_paid_for_what_came(shop, upstream, account, close_at):
    upstream.reset(script=Script(close_at=close_at))
    reply = account.client.post(PATH, json=STREAM)

    if reply.status_code == 502:
        assert spent_by(account) == 0
        return
    found = events(reply.content)
    text = text_of(found)
    assert text
    assert "".join(PIECES).startswith(text)
    if "error" in found[-1]:
        assert found[-1]["error"]["code"] == "model_failed"
        assert b"[DONE]" not in reply.content
    else:
        assert text == "".join(PIECES), "only the end mark was missing"
    assert spent_by(account) == Decimal(found[-1]["receipt"]["charge"]["amount"]) == shop.price(text)


def test_a_plain_answer_that_breaks_off_costs_nothing(upstream, account):
    upstream.reset(script=Script(close_at=stream_bytes(Script()) // 2))
    reply = account.client.post(PATH, json=PLAIN)

    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "model_failed")
    assert spent_by(account) == 0


def test_an_error_after_the_first_token_raises_in_the_official_client(shop, upstream, account):
    upstream.reset(script=Script(raw=b'data: {"choices": [{"delta": {"content": "Half"}}]}\n\n' + _ERROR))
    client = shop.world.openai(account.key)
    stream = client.chat.completions.create(**STREAM)
    text = (next(stream).choices[0].delta.content or "") + (next(stream).choices[0].delta.content or "")
    with pytest.raises(openai.APIError) as caught:
        next(stream)

    assert caught.value.code == "model_failed"
    assert text == "Half"
    assert spent_by(account) == shop.price("Half")


def test_a_stream_that_takes_too_long_is_paid_for_what_came(shop, upstream, account):
    upstream.reset(script=_STALLS)
    found = events(account.client.post(PATH, json=STREAM).content)

    assert found[-1]["error"]["code"] == "answer_timeout"
    assert text_of(found) == "".join(PIECES[:4])
    assert spent_by(account) == shop.price("".join(PIECES[:4]))
    assert upstream.left.wait(PATIENCE_SECONDS)


def test_a_plain_answer_that_takes_too_long_costs_nothing_and_is_not_retried(shop, upstream, account):
    upstream.reset(script=_STALLS)
    with (
        openai.OpenAI(base_url=f"{shop.world.server.url}/v1", api_key=account.key, max_retries=2) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.chat.completions.create(**PLAIN)

    assert caught.value.code == "answer_timeout"
    assert len(upstream.requests) == 1
    assert spent_by(account) == 0


@contextlib.contextmanager
def asked(shop, account, body, headers=None):
    """The socket of a request that was sent; at the end it is closed, whatever came."""
    content = httpx.Request("POST", shop.world.server.url, json=body).content  # as a retry has it, to the byte
    fields = {
        "host": "x",
        "authorization": f"Bearer {account.key}",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    address = urlsplit(shop.world.server.url)
    with socket.create_connection((address.hostname, address.port), PATIENCE_SECONDS) as sock:
        sock.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + content)
        yield sock


@pytest.mark.parametrize("size", [1, 80, 200, 333, 420, 600])
def test_a_client_that_leaves_at_any_byte_pays_for_what_it_was_sent(shop, upstream, account, size):
    """It reads so many bytes of the response, headers included, and closes its socket."""
    upstream.reset(script=_STALLS)
    with asked(shop, account, STREAM) as sock:
        read = 0
        while read < size:
            data = sock.recv(min(size - read, 64))
            assert data
            read += len(data)
    spent = spent_by(account)

    assert spent in [shop.price("".join(PIECES[:count])) for count in range(1, 5)]
    assert upstream.left.wait(PATIENCE_SECONDS), "the model goes on for nobody"
    assert sum(row["queries"] for row in account.usage()) == 1


def test_a_client_that_has_everything_the_model_said_and_leaves_pays_for_it(shop, upstream, account):
    upstream.reset(script=_STALLS)
    with account.client.stream("POST", PATH, json=STREAM) as reply:
        data = b""
        for part in reply.iter_raw():
            data += part
            if text_of(events(data)) == "".join(PIECES[:4]):
                break
    assert spent_by(account) == shop.price("".join(PIECES[:4]))


def test_a_client_that_leaves_before_the_first_token_pays_nothing(shop, upstream, account):
    upstream.reset(script=Script(stall_after=0))
    with asked(shop, account, STREAM):
        assert upstream.stalled.wait(PATIENCE_SECONDS)

    assert upstream.left.wait(PATIENCE_SECONDS)
    assert spent_by(account) == 0
    assert account.client.get("/v1/usage").json()["data"] == []


def test_a_client_that_leaves_a_plain_answer_pays_for_it_and_can_have_it(shop, upstream, account):
    upstream.reset(script=_STALLS)
    once = {"Idempotency-Key": "order-1"}
    with asked(shop, account, PLAIN, once):
        assert upstream.stalled.wait(PATIENCE_SECONDS)
    upstream.go.set()
    assert spent_by(account) == shop.price("".join(PIECES))
    again = account.client.post(PATH, json=PLAIN, headers=once)

    assert again.json()["choices"][0]["message"]["content"] == "".join(PIECES)
    assert spent_by(account) == shop.price("".join(PIECES))
    assert len(upstream.requests) == 1


def test_a_task_that_is_cancelled_pays_for_what_came(shop, upstream, account):
    upstream.reset(script=_STALLS)

    async def ask() -> None:
        url = f"{shop.world.server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=account.key, max_retries=0) as client:
            stream = await client.chat.completions.create(**STREAM)
            came = asyncio.Event()

            async def read() -> None:
                text = ""
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
                    if text == "".join(PIECES[:4]):
                        came.set()

            reading = asyncio.create_task(read())
            await asyncio.wait_for(came.wait(), PATIENCE_SECONDS)
            reading.cancel()
            await asyncio.wait([reading])
            await stream.close()

    asyncio.run(ask())
    assert spent_by(account) == shop.price("".join(PIECES[:4]))


def test_an_interrupted_answer_with_an_idempotency_key_is_replayed_as_it_was(shop, upstream, account):
    once = {"Idempotency-Key": "order-1"}
    upstream.reset(script=Script(close_at=stream_bytes(Script()) // 2))
    first = events(account.client.post(PATH, json=STREAM, headers=once).content)
    spent = spent_by(account)
    again = events(account.client.post(PATH, json=STREAM, headers=once).content)

    assert text_of(again) == text_of(first) != ""
    assert again[-1]["error"]["code"] == first[-1]["error"]["code"] == "model_failed"
    assert again[-1]["receipt"] == first[-1]["receipt"]
    assert spent_by(account) == spent == shop.price(text_of(first))
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "pieces",
    [
        tuple("word " for _ in range(3_000)),
        ("word " * 3_000,),
        ("x" * 50_000,),
        tuple("\U0001f989" for _ in range(900)),
    ],
    ids=["many", "one", "unspaced", "emoji"],
)
def test_a_model_that_sends_more_than_it_may_is_cut_off(shop, upstream, account, embedder, pieces):
    upstream.reset(script=Script(pieces=pieces))
    found = events(account.client.post(PATH, json={**STREAM, "max_tokens": 20}).content)
    text = text_of(found)

    assert upstream.requests[0]["max_tokens"] == 20
    assert 0 < embedder.count_tokens(text) <= 20
    assert len(text) <= 320
    assert found[-1]["choices"][0]["finish_reason"] == "length"
    assert spent_by(account) == shop.price(text) <= shop.price("word " * 20)


def test_a_balance_below_the_ceiling_is_refused_before_the_model_is_asked(shop, upstream):
    account = shop.world.customer(credit="0.010000")
    refused = account.client.post(PATH, json=STREAM)
    allowed = account.client.post(PATH, json={**STREAM, "max_tokens": 50})

    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "insufficient_funds")
    assert allowed.status_code == 200
    assert len(upstream.requests) == 1


def test_max_price_is_compared_with_the_most_that_the_answer_may_cost(account):
    refused = account.client.post(PATH, json={**STREAM, "max_price": "0.01"})
    allowed = account.client.post(PATH, json={**STREAM, "max_price": "0.01", "max_tokens": 50})

    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "max_price_exceeded")
    assert allowed.status_code == 200


def test_the_prompt_has_the_passages_and_the_conversation_and_the_log_has_no_secret(shop, upstream, account):
    messages = [
        {"role": "system", "content": "Be brief, Socrates."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "tool", "content": "not for models"},
        STREAM["messages"][0],
    ]
    body = {**PLAIN, "messages": messages, "temperature": 0.5, "top_p": 0.9}
    assert account.client.post(PATH, json=body).status_code == 200
    sent = upstream.requests[0]

    assert [message["role"] for message in sent["messages"]] == ["system", "system", "user", "assistant", "user"]
    assert "[1] The Vellmar lighthouse\n" in sent["messages"][0]["content"]
    assert f"[{DOCUMENTS}] " in sent["messages"][0]["content"]
    assert (sent["model"], sent["temperature"], sent["top_p"], sent["stream"]) == (MODEL, 0.5, 0.9, True)
    assert upstream.keys[-1] == "Bearer upstream-secret"
    log = shop.world.server.log.read_text()
    assert "upstream-secret" not in log
    assert "Socrates" not in log
