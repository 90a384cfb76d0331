"""``POST /v1/embeddings`` with the official client: vectors, their price, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import openai
import pytest

from retrieval.embedding import MiniLMEmbedder
from tests.e2e.world import Account, World, problem

_MODEL = "all-MiniLM-L6-v2"
_TEXTS = ["a lighthouse", "a ferry across the sound, \U0001f6f3", "a lighthouse"]


@pytest.fixture
def client(world: World, customer: Account) -> Iterator[openai.OpenAI]:
    with world.openai(customer.key) as found:
        yield found


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_vectors_are_the_embedders_in_every_encoding(client: openai.OpenAI, embedder: MiniLMEmbedder, encoding: Any):
    """The client asks for base64 by itself where nothing is said."""
    more = {} if encoding is None else {"encoding_format": encoding}
    reply = client.embeddings.create(model=_MODEL, input=_TEXTS, **more)
    found = [
        np.frombuffer(base64.b64decode(each.embedding), "<f4")
        if isinstance(each.embedding, str)
        else np.asarray(each.embedding, np.float32)
        for each in reply.data
    ]

    assert [each.index for each in reply.data] == [0, 1, 2]
    for text, vector in zip(_TEXTS, found, strict=True):
        assert np.allclose(vector, embedder.embed_query(text), atol=1e-6)


def test_they_are_paid_by_the_token(client: openai.OpenAI, customer: Account, embedder: MiniLMEmbedder):
    texts = ["the ferry to Osk Island " * 40, "and back"]
    reply = client.embeddings.with_raw_response.create(model=_MODEL, input=texts)
    tokens = sum(map(embedder.count_tokens, texts))
    charge = Decimal(reply.headers["x-patronage-charge"])
    receipt = customer.client.get(f"/v1/receipts/{reply.headers['x-patronage-receipt']}").json()

    assert reply.parse().usage.prompt_tokens == tokens == receipt["input_tokens"]
    assert charge == Decimal("0.0001") * tokens / 1000
    assert customer.money() == (Decimal(1) - charge, Decimal(0))
    assert receipt["charge"]["amount"] == receipt["cost"]["amount"] == reply.headers["x-patronage-charge"]
    assert receipt["sources"] == []
    assert [(row["model"], row["input_tokens"]) for row in customer.usage()] == [(_MODEL, tokens)]


def test_a_single_text_needs_no_list(client: openai.OpenAI):
    assert len(client.embeddings.create(model=_MODEL, input="one").data) == 1


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": ""}, 422, "input"),
        ({"input": ["one", "  "]}, 422, "input"),
        ({"input": []}, 422, "input"),
        ({"input": ["x"] * 2_049}, 422, "input"),
        ({"input": "word " * 511}, 422, "input"),
        ({"input": [[1, 2, 3]]}, 422, None),
        ({"input": "\ud800"}, 422, "input"),
        ({"input": "x", "dimensions": 8}, 422, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, 422, "encoding_format"),
        ({"input": "x", "model": "patronage-extractive"}, 404, "model"),
        ({"input": "x", "model": "gpt-none"}, 404, "model"),
        ({"input": "word " * 500, "max_price": "0.00000001"}, 422, "max_price"),
    ],
    ids=["empty", "blank", "none", "many", "long", "tokens", "surrogate", "dimensions", "encoding", "answers",
         "unknown", "price"],
)  # fmt: skip
def test_what_cannot_be_embedded_is_refused_and_free(
    customer: Account, body: dict[str, Any], status: int, param: str | None
):
    content = json.dumps({"model": _MODEL, **body})
    headers = {"content-type": "application/json"}
    reply = customer.client.post("/v1/embeddings", content=content, headers=headers)

    assert reply.status_code == status, reply.text
    assert param is None or problem(reply)["error"]["param"] == param
    assert customer.money() == (Decimal(1), Decimal(0))


def test_the_longest_text_is_embedded_whole(client: openai.OpenAI):
    assert client.embeddings.create(model=_MODEL, input="word " * 510).usage.total_tokens == 510


def test_the_embedding_model_does_not_answer(client: openai.OpenAI):
    messages: Any = [{"role": "user", "content": "Who?"}]
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=_MODEL, messages=messages)
    assert caught.value.code == "model_not_found"


def test_an_idempotency_key_gives_the_same_vectors_for_one_payment(client: openai.OpenAI, customer: Account):
    replies = [
        client.embeddings.with_raw_response.create(
            model=_MODEL, input=_TEXTS, extra_headers={"Idempotency-Key": "order-1"}
        )
        for _ in range(3)
    ]
    charge = Decimal(replies[0].headers["x-patronage-charge"])

    assert len({reply.headers["x-patronage-receipt"] for reply in replies}) == 1
    assert [reply.headers.get("x-patronage-replayed") for reply in replies] == [None, "true", "true"]
    assert [reply.parse().data for reply in replies[1:]] == [replies[0].parse().data] * 2
    assert customer.money() == (Decimal(1) - charge, Decimal(0))


@pytest.mark.parametrize("headers", [{"Idempotency-Key": "order-1"}, {"x-stainless-retry-count": "1"}], ids=str)
def test_what_is_too_large_to_keep_is_refused_to_a_replay_and_free(
    client: openai.OpenAI, customer: Account, headers: dict[str, str]
):
    """65,536 bytes hold 42 vectors of 384 numbers, not 43."""
    texts = ["tide"] * 43
    paid = client.embeddings.with_raw_response.create(model=_MODEL, input=texts, extra_headers=headers)
    money = customer.money()
    for _ in range(2):
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            client.embeddings.create(model=_MODEL, input=texts, extra_headers=headers)
        assert caught.value.code == "replay_not_kept"
        assert paid.headers["x-patronage-receipt"] in str(caught.value)
    assert customer.money() == money

    anew = (
        {**headers, "Idempotency-Key": "order-2"} if "Idempotency-Key" in headers else {"x-stainless-retry-count": "0"}
    )
    again = client.embeddings.with_raw_response.create(model=_MODEL, input=texts, extra_headers=anew)
    assert again.headers["x-patronage-receipt"] != paid.headers["x-patronage-receipt"]
    assert customer.balance == money[0] - Decimal(again.headers["x-patronage-charge"])
