"""``POST /v1/responses`` over an upstream model, read by the official client's own types."""

from __future__ import annotations

from decimal import Decimal

import openai
import pytest
from openai.types.responses import Response

from tests.faults.shop import QUESTION, spent_by
from tests.upstream import MODEL, PIECES, Script, stream_bytes

_WHOLE = "".join(PIECES)


@pytest.fixture
def client(shop, account):
    with shop.world.openai(account.key) as found:
        yield found


def test_a_stream_has_the_events_that_the_client_knows(shop, account, client):
    with client.responses.create(model=MODEL, input=QUESTION, stream=True) as stream:
        found = list(stream)
    kinds = [event.type for event in found]
    last = found[-1].response

    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    assert kinds[-5:] == ["response.output_text.annotation.added", "response.output_text.done",
                          "response.content_part.done", "response.output_item.done", "response.completed"]  # fmt: skip
    assert kinds.count("response.output_text.delta") == len(PIECES)
    assert [event.sequence_number for event in found] == list(range(len(found)))
    for event in found:
        type(event).model_validate(event.model_dump())
    assert last.output_text == _WHOLE
    assert last.model_dump()["receipt"]["charge"]["amount"] == str(spent_by(account)) == str(shop.price(_WHOLE))


def test_the_streaming_helper_of_the_client_works(client):
    with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == _WHOLE


def test_a_marker_is_annotated_with_the_passage_of_its_number(client):
    response = client.responses.create(model=MODEL, input=QUESTION)
    (annotation,) = response.output[0].content[0].annotations

    assert _WHOLE[annotation.start_index : annotation.end_index] == "[1]"
    assert annotation.title == "The Vellmar lighthouse"
    assert "1847" in annotation.model_dump()["quote"]
    Response.model_validate(response.model_dump())


def test_an_answer_at_its_limit_is_incomplete_and_paid(shop, upstream, account, client):
    upstream.reset(script=Script(pieces=("word ",) * 100))
    response = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=7)

    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.output_tokens == 7
    assert spent_by(account) == shop.price(response.output_text)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_breaks_off(shop, upstream, account, client, stream):
    upstream.reset(script=Script(close_at=stream_bytes(Script()) // 2))
    if not stream:
        with pytest.raises(openai.InternalServerError) as caught:
            client.responses.create(model=MODEL, input=QUESTION)
        assert caught.value.code == "model_failed"
        assert spent_by(account) == 0
        return
    with client.responses.create(model=MODEL, input=QUESTION, stream=True) as events:
        last = list(events)[-1]
    assert last.type == "response.failed"
    assert last.response.error.code == "server_error"
    assert 0 < len(last.response.output_text) < len(_WHOLE)
    assert spent_by(account) == shop.price(last.response.output_text)
    assert last.response.model_dump()["receipt"]["charge"]["amount"] == str(spent_by(account))


def test_the_model_reads_instructions_and_conversation(upstream, client):
    client.responses.create(
        model=MODEL,
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Hello?"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes?"}]},
            {"type": "function_call_output", "call_id": "1", "output": "not read"},
            {"role": "user", "content": QUESTION},
        ],
    )
    sent = [(message["role"], message["content"]) for message in upstream.requests[0]["messages"]]

    assert sent[1:] == [("system", "Be brief."), ("user", "Hello?"), ("assistant", "Yes?"), ("user", QUESTION)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
        ({"input": "   "}, "question"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3.0}, "temperature"),
        ({"extra_body": {"top_k": 0}}, "top_k"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_free(account, client, fields, param):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.responses.create(**{"model": MODEL, "input": QUESTION, **fields})

    assert caught.value.param == param
    assert account.money() == (Decimal(1), Decimal(0))


def test_a_conversation_above_the_limit_is_413_and_free(account, client):
    messages = [{"role": "user", "content": "x" * 7_000}] * 5
    with pytest.raises(openai.APIStatusError) as caught:
        client.responses.create(model=MODEL, input=messages)

    assert (caught.value.status_code, caught.value.code) == (413, "question_too_long")
    assert account.money() == (Decimal(1), Decimal(0))
