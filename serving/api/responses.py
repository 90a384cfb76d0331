"""``POST /v1/responses``, as the official ``openai`` client expects it. Nothing is kept between two responses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from metering.money import Currency
from serving import rendering
from serving.answering.answered import Answered
from serving.api import paid
from serving.api.bodies import BoundedRoute, Items
from serving.api.dependencies import Payer, TheService, json_response
from serving.api.errors import ApiError
from serving.api.messages import ConversationMessage, PaidBody, Part, Tokens, citations
from serving.api.streams import event, stream

router = APIRouter(route_class=BoundedRoute)


class Item(BaseModel):
    """An item of the input; only messages are read."""

    model_config = ConfigDict(extra="ignore")

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Items[Part] | None = None


class ResponseBody(PaidBody):
    """The body of a response."""

    input: str | Items[Item]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    stream: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None

    def messages(self) -> list[ConversationMessage]:
        """The conversation."""
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        first = [ConversationMessage(role="system", content=self.instructions)] if self.instructions else []
        return first + [
            ConversationMessage(role=item.role, content=item.content)
            for item in items
            if item.type == "message" and item.role is not None
        ]


@router.post("/v1/responses")
async def respond(body: ResponseBody, request: Request, caller: Payer, service: TheService) -> Response:
    """Answer the last user message of the input from the documents."""
    currency = service.books.currency
    for name in ("background", "previous_response_id", "conversation"):
        if getattr(body, name):
            raise ApiError(422, "invalid", f"{name}: nothing is kept here; send the whole conversation", param=name)
    query = await body.query(
        body.messages(),
        param="input",
        output_tokens=body.max_output_tokens,
        request=request,
        caller=caller,
        service=service,
    )
    if body.stream:
        return await stream(
            request, service, caller, query, lambda receipt, model, at_ms: _Events(receipt, model, at_ms, currency)
        )
    answered = await service.answering.answer(caller, query)
    return json_response(
        _response(answered, currency),
        headers=paid.headers(
            answered.id, answered.charge, answered.free, answered.quota, currency, replayed=answered.replayed
        ),
    )


class _Events:
    """Implements :class:`serving.api.streams.Form`."""

    def __init__(self, receipt: str, model: str, at_ms: int, currency: Currency) -> None:
        self._receipt = receipt
        self._envelope = _envelope(receipt, model, at_ms)
        self._currency = currency
        self._numbers = count()
        self._text = ""
        self._place = {"item_id": f"msg_{receipt}", "output_index": 0, "content_index": 0}

    def opening(self) -> Iterator[bytes]:
        response = self._envelope | {"status": "in_progress", "output": [], "usage": None}
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)
        item = _message(self._receipt, "in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place, part=_part("", []))

    def piece(self, text: str) -> Iterator[bytes]:
        self._text += text
        yield self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def closing(self, answered: Answered) -> Iterator[bytes]:
        response = _response(answered, self._currency)
        part = response["output"][0]["content"][0]
        for number, annotation in enumerate(part["annotations"]):
            yield self._event(
                "response.output_text.annotation.added",
                **self._place,
                annotation_index=number,
                annotation=annotation,
            )
        yield self._event("response.output_text.done", **self._place, text=self._text, logprobs=[])
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=response["output"][0])
        yield self._event(f"response.{response['status']}", response=response)

    def broken(self, error: ApiError, answered: Answered | None) -> Iterator[bytes]:
        failed = {"status": "failed", "error": {"code": "server_error", "message": error.detail, "type": error.code}}
        if answered:
            response = _response(answered, self._currency) | failed
        else:
            output = [_message(self._receipt, "incomplete", [_part(self._text, [])])]
            response = self._envelope | {"output": output, "usage": None} | failed
        yield self._event("response.failed", response=response)

    def _event(self, kind: str, **more: Any) -> bytes:
        return event({"type": kind, "sequence_number": next(self._numbers)} | more, kind)


def _response(answered: Answered, currency: Currency) -> dict[str, Any]:
    cut = answered.finish == "length"
    whole = not cut and not answered.interrupted
    # Without the box that a chat completion puts each citation in.
    part = _part(answered.answer, [{"type": "url_citation"} | each for each in citations(answered)])
    return _envelope(answered.id, answered.model, answered.created_ms) | {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [_message(answered.id, "completed" if whole else "incomplete", [part])],
        "usage": {
            "input_tokens": answered.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": answered.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answered.input_tokens + answered.output_tokens,
        },
        "receipt": rendering.receipt(answered, currency),
    }


def _envelope(receipt: str, model: str, at_ms: int) -> dict[str, Any]:
    return {
        "id": f"resp_{receipt}",
        "object": "response",
        "created_at": at_ms // 1000,
        "model": model,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": False,
        "temperature": None,
        "tool_choice": "none",
        "tools": [],
        "top_p": None,
    }


def _message(receipt: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": f"msg_{receipt}", "type": "message", "role": "assistant", "status": status, "content": content}


def _part(text: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}
