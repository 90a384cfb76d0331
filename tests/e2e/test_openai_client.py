"""The official ``openai`` client, unmodified, is all that a customer needs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.corpus import TEXTS
from tests.e2e.world import Account, World
from tests.servers import Server, cli

_MODEL = "patronage-extractive"
_BUILT: Any = [{"role": "user", "content": "When was the Vellmar lighthouse built?"}]
_OWL: Any = [{"role": "user", "content": "What name do guests call the great owl?"}]
_UNKNOWN: Any = [{"role": "user", "content": "Which quantum algorithm factors integers?"}]
_ANSWER = "The Vellmar lighthouse was built in 1847 by the engineer Ottilie Brandt."


@pytest.fixture
def client(world: World, customer: Account) -> Iterator[openai.OpenAI]:
    with world.openai(customer.key) as found:
        yield found


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[tuple[Server, str]]:
    """A server that admits two paid requests a minute and short questions only, and a customer's key."""
    data_dir = tmp_path_factory.mktemp("strict") / "data"
    key = cli(data_dir, "customer", "add", "Acme", "--credit", "1", env=e2e_env)["api_key"]
    limits = {"PATRONAGE_REQUESTS_PER_MINUTE": "2", "PATRONAGE_QUESTION_CHARS": "100"}
    with Server(data_dir, e2e_env | limits) as server:
        yield server, key


def _text_of_version(document: str, version: str) -> str:
    text = TEXTS[document]
    assert hashlib.sha256(text.encode()).hexdigest() == version
    return text


def _check_annotations(annotations: list[dict[str, Any]], content: str) -> None:
    """Every citation in the client's own format points exactly into the answer and the document."""
    assert annotations
    for annotation in annotations:
        assert annotation["type"] == "url_citation"
        cited = annotation["url_citation"]
        assert cited["url"]
        assert cited["title"]
        assert content[cited["start_index"] : cited["end_index"]] == cited["quote"]
        begin, end = cited["passage"]
        assert _text_of_version(cited["document_id"], cited["version"])[begin:end] == cited["quote"]


def test_a_chat_completion_is_answered_with_citations_and_usage(client: openai.OpenAI):
    reply = client.chat.completions.create(model=_MODEL, messages=_BUILT)

    assert reply.object == "chat.completion"
    assert reply.model == _MODEL
    assert [choice.finish_reason for choice in reply.choices] == ["stop"]
    message = reply.choices[0].message
    assert (message.role, message.content) == ("assistant", _ANSWER)
    assert message.annotations is not None
    first = message.annotations[0].url_citation
    assert (first.start_index, first.end_index) == (0, len(_ANSWER))
    assert (first.title, first.url) == ("The Vellmar lighthouse", "https://example.org/vellmar")
    assert reply.usage is not None
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.completion_tokens > 0
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@pytest.mark.parametrize("messages", [_BUILT, _OWL], ids=["plain", "emoji"])
def test_annotations_point_exactly_into_answer_and_document(client: openai.OpenAI, messages: Any):
    message = client.chat.completions.create(model=_MODEL, messages=messages).choices[0].message

    assert message.annotations is not None
    assert message.content is not None
    _check_annotations([each.model_dump() for each in message.annotations], message.content)


def test_a_completion_is_charged_and_names_its_receipt(client: openai.OpenAI, customer: Account):
    reply = client.chat.completions.with_raw_response.create(model=_MODEL, messages=_BUILT)
    receipt = customer.client.get(f"/v1/receipts/{reply.headers['x-patronage-receipt']}").json()

    assert receipt["charge"] == {"amount": reply.headers["x-patronage-charge"], "currency": "USD"}
    assert customer.money() == (Decimal(1) - Decimal(receipt["charge"]["amount"]), Decimal(0))
    assert reply.http_request.url.path == "/v1/chat/completions"


def test_a_question_that_the_documents_do_not_answer_says_so(client: openai.OpenAI):
    message = client.chat.completions.create(model=_MODEL, messages=_UNKNOWN).choices[0].message

    assert message.content is not None
    assert "do not answer" in message.content
    assert not message.annotations


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be brief."}, *_BUILT],
        [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes?"}, *_BUILT],
        [{"role": "user", "content": [{"type": "text", "text": _BUILT[0]["content"]}]}],
        [*_BUILT, {"role": "assistant", "content": None, "tool_calls": []}],
    ],
    ids=["system", "conversation", "parts", "assistant-last"],
)
def test_the_last_user_message_is_the_question_in_every_form_the_client_sends(client: openai.OpenAI, messages: Any):
    reply = client.chat.completions.create(model=_MODEL, messages=messages, temperature=0.2, max_tokens=300, user="me")

    assert reply.choices[0].message.content == _ANSWER


def test_terms_and_top_k_go_in_the_extra_body(client: openai.OpenAI):
    question: Any = [{"role": "user", "content": "What is the saffron dye of Lindow made from?"}]
    refused = client.chat.completions.create(model=_MODEL, messages=question)
    allowed = client.chat.completions.create(
        model=_MODEL, messages=question, extra_body={"purpose": "research", "top_k": 1, "max_price": "0.05"}
    )

    assert "flowers" not in (refused.choices[0].message.content or "")
    assert "nine thousand flowers" in (allowed.choices[0].message.content or "")


@pytest.mark.parametrize("messages", [_BUILT, _OWL], ids=["plain", "emoji"])
def test_a_stream_gives_the_same_answer_with_citations_on_its_final_chunk(client: openai.OpenAI, messages: Any):
    whole = client.chat.completions.create(model=_MODEL, messages=messages).choices[0].message.content
    with client.chat.completions.create(model=_MODEL, messages=messages, stream=True) as stream:
        chunks = list(stream)

    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks), "usage was not asked for"
    _check_annotations(chunks[-1].choices[0].delta.model_dump()["annotations"], text)


def test_a_stream_ends_with_usage_when_it_is_asked_for(client: openai.OpenAI):
    plain = client.chat.completions.create(model=_MODEL, messages=_BUILT)
    with client.chat.completions.create(
        model=_MODEL, messages=_BUILT, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)

    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_a_stream_is_charged_once_and_names_its_receipt(client: openai.OpenAI, customer: Account):
    with client.chat.completions.with_streaming_response.create(model=_MODEL, messages=_BUILT, stream=True) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        receipt = customer.client.get(f"/v1/receipts/{reply.headers['x-patronage-receipt']}").json()
        lines = [line for line in reply.iter_lines() if line]

    assert lines[-1] == "data: [DONE]"
    assert receipt["charge"]["amount"] == reply.headers["x-patronage-charge"]
    assert customer.money() == (Decimal(1) - Decimal(receipt["charge"]["amount"]), Decimal(0))


def test_a_client_that_hangs_up_has_paid_once(client: openai.OpenAI, customer: Account):
    with client.chat.completions.create(model=_MODEL, messages=_BUILT, stream=True) as stream:
        next(iter(stream))
    reply = customer.client.post("/v1/query", json={"question": _BUILT[0]["content"]})

    charge = Decimal(reply.headers["x-patronage-charge"])
    assert customer.money() == (Decimal(1) - 2 * charge, Decimal(0))


def test_the_streaming_helper_of_the_client_works(client: openai.OpenAI):
    with client.chat.completions.stream(model=_MODEL, messages=_BUILT) as stream:
        completion = stream.get_final_completion()

    assert completion.choices[0].message.content == _ANSWER


async def _ask_async(url: str, key: str) -> tuple[str | None, str]:
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        plain = await client.chat.completions.create(model=_MODEL, messages=_BUILT)
        stream = await client.chat.completions.create(model=_MODEL, messages=_BUILT, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    return plain.choices[0].message.content, text


def test_the_asynchronous_client_works_too(world: World, customer: Account):
    assert asyncio.run(_ask_async(f"{world.server.url}/v1", customer.key)) == (_ANSWER, _ANSWER)


def test_models_are_listed_and_shown(client: openai.OpenAI, customer: Account):
    models = list(client.models.list())

    assert _MODEL in [model.id for model in models]
    assert {model.object for model in models} == {"model"}
    assert client.models.retrieve(_MODEL).id == _MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-none")
    assert customer.balance == 1, "looking is free"


def test_responses_are_answered_with_citations_and_charged(client: openai.OpenAI, customer: Account):
    reply = client.responses.with_raw_response.create(model=_MODEL, input=_BUILT[0]["content"])
    response = reply.parse()

    assert response.output_text == _ANSWER
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    message: Any = response.output[-1]
    annotation = message.content[0].annotations[0]
    assert (annotation.type, annotation.start_index, annotation.end_index) == ("url_citation", 0, len(_ANSWER))
    assert annotation.url == "https://example.org/vellmar"
    assert customer.balance == Decimal(1) - Decimal(reply.headers["x-patronage-charge"])
    assert customer.client.get(f"/v1/receipts/{reply.headers['x-patronage-receipt']}").status_code == 200


def test_responses_are_streamed(client: openai.OpenAI):
    with client.responses.create(model=_MODEL, input=_BUILT[0]["content"], stream=True) as stream:
        events = list(stream)

    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == _ANSWER
    assert events[-1].response.output_text == _ANSWER
    assert [event.sequence_number for event in events] == [events[0].sequence_number + i for i in range(len(events))]


def test_embeddings_are_given_and_charged(client: openai.OpenAI, customer: Account):
    """One of the models that are listed embeds."""
    reply = None
    for model in client.models.list():
        try:
            reply = client.embeddings.with_raw_response.create(model=model.id, input=["a lighthouse", "a ferry"])
            break
        except openai.APIStatusError:
            continue
    assert reply is not None, "no listed model embeds"
    embeddings = reply.parse()

    assert [each.index for each in embeddings.data] == [0, 1]
    lengths = {len(each.embedding) for each in embeddings.data}
    assert len(lengths) == 1
    assert lengths.pop() > 1
    assert all(isinstance(value, float) for value in embeddings.data[0].embedding)
    assert embeddings.usage.prompt_tokens > 0
    assert customer.balance == Decimal(1) - Decimal(reply.headers["x-patronage-charge"])


def _refused(client: openai.OpenAI, **more: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": _MODEL, "messages": _BUILT, **more})
    return caught.value


def test_an_unknown_key_raises_the_authentication_error(world: World):
    error = _refused(world.openai("patronage-customer-nobody"))

    assert isinstance(error, openai.AuthenticationError)
    assert (error.status_code, error.code, error.type) == (401, "invalid_api_key", "authentication_error")


def test_a_contributors_key_raises_the_permission_error(world: World):
    error = _refused(world.openai(world.keys["mary"]))

    assert isinstance(error, openai.PermissionDeniedError)
    assert error.status_code == 403
    assert error.type == "permission_error"


def test_an_empty_account_raises_an_error_that_says_insufficient_funds(world: World):
    error = _refused(world.openai(world.customer(credit=None).key))

    assert (error.status_code, error.code) == (402, "insufficient_funds")


def test_an_unknown_model_raises_the_not_found_error(client: openai.OpenAI):
    error = _refused(client, model="gpt-none")

    assert isinstance(error, openai.NotFoundError)
    assert (error.code, error.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, None),
        ({"messages": [{"role": "somebody", "content": "x"}]}, "messages.0.role"),
        ({"n": 3}, "n"),
        ({"extra_body": {"top_k": 0}}, "top_k"),
        ({"extra_body": {"max_price": "0.0001"}}, "max_price"),
    ],
    ids=["no-messages", "no-question", "blank", "unknown-role", "n", "top_k", "max_price"],
)
def test_an_invalid_request_raises_the_unprocessable_error(
    client: openai.OpenAI, customer: Account, fields: dict[str, Any], param: str | None
):
    error = _refused(client, **fields)

    assert isinstance(error, openai.UnprocessableEntityError)
    assert error.type == "invalid_request_error"
    assert param is None or error.param == param
    assert customer.money() == (Decimal(1), Decimal(0))


def test_a_reused_idempotency_key_raises_the_unprocessable_error(client: openai.OpenAI):
    headers = {"Idempotency-Key": "one"}
    client.chat.completions.create(model=_MODEL, messages=_BUILT, extra_headers=headers)
    error = _refused(client, messages=_OWL, extra_headers=headers)

    assert isinstance(error, openai.UnprocessableEntityError)


def test_a_question_above_the_limit_raises_413(strict: tuple[Server, str]):
    server, key = strict
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        error = _refused(client, messages=[{"role": "user", "content": "why " * 26}])

    assert error.status_code == 413


def test_the_rate_limit_raises_its_error_and_says_when_to_come_again(
    strict: tuple[Server, str], tmp_path: Path, e2e_env: dict[str, str]
):
    server, _ = strict
    key = cli(server.data_dir, "customer", "add", tmp_path.name, "--credit", "1", env=e2e_env)["api_key"]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        for _ in range(2):
            client.chat.completions.create(model=_MODEL, messages=_BUILT)
        error = _refused(client)

    assert isinstance(error, openai.RateLimitError)
    assert (error.status_code, error.code, error.type) == (429, "rate_limited", "rate_limit_error")
    assert 1 <= int(error.response.headers["retry-after"]) <= 31
