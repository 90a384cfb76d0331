"""``POST /v1/chat/completions``, as the official ``openai`` client expects it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from metering.money import Currency
from serving import rendering
from serving.answering.answered import Answered
from serving.api import paid
from serving.api.bodies import BoundedRoute, Items
from serving.api.dependencies import Payer, TheService, json_response
from serving.api.errors import ApiError, body_of
from serving.api.messages import ConversationMessage, PaidBody, Tokens, citations
from serving.api.streams import event, stream

router = APIRouter(route_class=BoundedRoute)
_PATH = "/v1/chat/completions"


class StreamOptions(BaseModel):
    """What a stream carries besides the answer."""

    include_usage: bool = False


class ChatBody(PaidBody):
    """The body of a chat completion."""

    messages: Items[ConversationMessage]
    n: int | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


@router.post(_PATH)
async def complete(body: ChatBody, request: Request, caller: Payer, service: TheService) -> Response:
    """Answer the last user message from the documents."""
    currency = service.books.currency
    if body.n not in (None, 1):
        raise ApiError(422, "invalid", "n: one answer a query", param="n")
    query = await body.query(
        body.messages,
        param="messages",
        output_tokens=body.max_completion_tokens or body.max_tokens,
        request=request,
        caller=caller,
        service=service,
    )
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return await stream(
            request,
            service,
            caller,
            query,
            lambda receipt, model, at_ms: _Chunks(receipt, model, at_ms, currency, usage=usage),
        )
    answered = await service.answering.answer(caller, query)
    message = {"role": "assistant", "content": answered.answer, "annotations": _annotations(answered)}
    completion = _envelope(answered.id, answered.model, answered.created_ms, "chat.completion") | {
        "choices": [{"index": 0, "message": message, "finish_reason": answered.finish, "logprobs": None}],
        "usage": _usage(answered),
        "receipt": rendering.receipt(answered, currency),
    }
    return json_response(
        completion,
        headers=paid.headers(
            answered.id, answered.charge, answered.free, answered.quota, currency, replayed=answered.replayed
        ),
    )


class _Chunks:
    """Implements :class:`serving.api.streams.Form`."""

    def __init__(self, receipt: str, model: str, at_ms: int, currency: Currency, *, usage: bool) -> None:
        self._envelope = _envelope(receipt, model, at_ms, "chat.completion.chunk")
        self._currency = currency
        self._usage = usage

    def opening(self) -> Iterator[bytes]:
        yield self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> Iterator[bytes]:
        yield self._chunk({"content": text})

    def closing(self, answered: Answered) -> Iterator[bytes]:
        # The client's types declare no annotations in a delta and no receipt, and keep what they do not declare.
        receipt = {"receipt": rendering.receipt(answered, self._currency)}
        yield self._chunk({"annotations": _annotations(answered)}, answered.finish, receipt)
        if self._usage:
            yield event(self._envelope | {"choices": [], "usage": _usage(answered)})
        yield b"data: [DONE]\n\n"

    def broken(self, error: ApiError, answered: Answered | None) -> Iterator[bytes]:
        receipt = {"receipt": rendering.receipt(answered, self._currency)} if answered else {}
        yield event(body_of(error, _PATH) | receipt)

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, more: dict[str, Any] | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        extra = {"usage": None} if self._usage else {}
        return event(self._envelope | {"choices": choices} | extra | (more or {}))


def _envelope(receipt: str, model: str, at_ms: int, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{receipt}", "object": kind, "created": at_ms // 1000, "model": model}


def _usage(answered: Answered) -> dict[str, int]:
    return {
        "prompt_tokens": answered.input_tokens,
        "completion_tokens": answered.output_tokens,
        "total_tokens": answered.input_tokens + answered.output_tokens,
    }


def _annotations(answered: Answered) -> list[dict[str, Any]]:
    return [{"type": "url_citation", "url_citation": each} for each in citations(answered)]
