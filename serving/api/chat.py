"""``POST /v1/chat/completions`` and ``GET /v1/models``, as the official ``openai`` client expects them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict

from serving import rendering
from serving.answered import Answered
from serving.api import paid
from serving.api.context import Customer, TheService, customer, json_response
from serving.api.errors import ApiError
from serving.api.query import TopK
from serving.query import PURPOSE_DEFAULT, TOP_K_DEFAULT, Query

router = APIRouter()


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None


class Message(BaseModel):
    """A message of the conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """What a stream carries besides the answer."""

    include_usage: bool = False


class ChatBody(BaseModel):
    """The body of a chat completion. ``top_k``, ``purpose`` and ``max_price`` go in the client's ``extra_body``."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[Message]
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: TopK = TOP_K_DEFAULT
    purpose: str = PURPOSE_DEFAULT
    max_price: paid.Price = None


@router.post("/v1/chat/completions")
async def complete(body: ChatBody, request: Request, caller: Customer, service: TheService) -> Response:
    """Answer the last user message from the documents."""
    currency = service.books.currency
    if body.n not in (None, 1):
        raise ApiError(422, "invalid", "n: one answer a query", param="n")
    key, body_hash = await paid.idempotency(request)
    answered = await service.answering.answer(
        caller,
        Query(
            question=_question(body.messages),
            model=body.model,
            top_k=body.top_k,
            purpose=body.purpose,
            max_price=paid.units(body.max_price, currency, "max_price"),
            idempotency_key=key,
            body_hash=body_hash,
        ),
    )
    headers = paid.receipt_headers(answered, currency)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(
            _stream(answered, usage=usage),
            headers=headers | {"cache-control": "no-cache"},
            media_type="text/event-stream",
        )
    message = {"role": "assistant", "content": answered.answer, "annotations": _annotations(answered)}
    completion = _envelope(answered, "chat.completion") | {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": _usage(answered),
        "receipt": rendering.receipt(answered, currency),
    }
    return json_response(completion, headers=headers)


@router.get("/v1/models", dependencies=[Depends(customer)])
async def models(service: TheService) -> Response:
    """The models that can be paid for."""
    names = sorted(service.books.rulebook.prices.models)
    return json_response({"object": "list", "data": [_model(name) for name in names]})


@router.get("/v1/models/{model}", dependencies=[Depends(customer)])
async def model(model: str, service: TheService) -> Response:
    """One model."""
    service.books.rulebook.prices.price(model)
    return json_response(_model(model))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "patronage"}


def _question(messages: list[Message]) -> str:
    for message in reversed(messages):
        if message.role == "user":
            if isinstance(message.content, str):
                return message.content
            texts = [part.text for part in message.content or () if part.type == "text" and part.text]
            return "\n".join(texts)
    raise ApiError(422, "invalid", "messages: there is no user message to answer", param="messages")


async def _stream(answered: Answered, *, usage: bool) -> AsyncIterator[bytes]:
    """Server-sent events. The answer is paid and complete before the first: a client that leaves owes all of it."""
    envelope = _envelope(answered, "chat.completion.chunk")

    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        extra = {"usage": None} if usage else {}
        return _event(envelope | {"choices": choices} | extra)

    yield event({"role": "assistant", "content": ""})
    for piece in re.findall(r"\S+\s*|\s+", answered.answer):
        yield event({"content": piece})
    # The client's types declare no annotations in a delta, and keep what they do not declare.
    yield event({"annotations": _annotations(answered)}, "stop")
    if usage:
        yield _event(envelope | {"choices": [], "usage": _usage(answered)})
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _envelope(answered: Answered, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{answered.id}",
        "object": kind,
        "created": answered.created_ms // 1000,
        "model": answered.model,
    }


def _usage(answered: Answered) -> dict[str, int]:
    return {
        "prompt_tokens": answered.input_tokens,
        "completion_tokens": answered.output_tokens,
        "total_tokens": answered.input_tokens + answered.output_tokens,
    }


def _annotations(answered: Answered) -> list[dict[str, Any]]:
    """Citations as the client types them; a document without a web address is named by its id."""
    found = []
    for citation in answered.citations:
        source = answered.sources[citation.source]
        found.append(
            {
                "type": "url_citation",
                "url_citation": {
                    "start_index": citation.answer_span[0],
                    "end_index": citation.answer_span[1],
                    "title": source.title,
                    "url": source.url or f"urn:patronage:document:{source.document_id}",
                    "document_id": source.document_id,
                    "version": source.version,
                    "quote": citation.quote,
                    "passage": list(citation.passage),
                },
            }
        )
    return found
