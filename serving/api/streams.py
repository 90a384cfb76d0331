"""Streams: answers as server-sent events, and what becomes of the money when a stream does not end well."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from metering.meter import MeterError
from serving.answering.answered import Answered
from serving.answering.delivery import Delivery
from serving.api import paid
from serving.api.errors import ApiError, translate
from serving.api.leaving import ClientGone, while_there
from serving.api.rate_limit_headers import quota_headers
from serving.generators.generator import GeneratorError
from serving.generators.query import Query
from serving.people.identity import Caller
from serving.service import Service

_WORDS = re.compile(r"\S+\s*|\s+")


class Form(Protocol):
    """How an interface writes one answer as events."""

    def opening(self) -> Iterator[bytes]:
        """Before the first piece."""
        ...

    def piece(self, text: str) -> Iterator[bytes]:
        """One piece of the answer."""
        ...

    def closing(self, answered: Answered) -> Iterator[bytes]:
        """After the last piece: citations, usage and the receipt."""
        ...

    def broken(self, error: ApiError, answered: Answered | None) -> Iterator[bytes]:
        """In place of the closing, where the answer broke off; ``answered`` is what was paid for, if anything was."""
        ...


def event(value: Mapping[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + data + b"\n\n"


async def stream(
    request: Request, service: Service, caller: Caller, query: Query, form: Callable[[str, str, int], Form]
) -> Response:
    """Answer a query as a stream. Until its first piece there is no response yet, so an error has its status.

    ``form`` is made from the receipt, the model, and the time of the answer in milliseconds.
    """
    found = await service.answering.begin(caller, query)
    if isinstance(found, Answered):
        # It is paid and complete before the first event: a client that leaves owes all of it.
        currency = service.books.currency
        headers = paid.headers(found.id, found.charge, found.free, found.quota, currency, replayed=found.replayed)
        return EventStream(_replayed(found, form(found.id, found.model, found.created_ms)), None, headers)
    try:
        await while_there(request, found.begun())
    except ClientGone:
        raise  # who left before the first piece is not charged
    except BaseException:
        await found.leave()
        raise
    events = _delivered(found, form(found.receipt, found.model, found.started_ms))
    return EventStream(events, found, {"x-patronage-receipt": found.receipt, **quota_headers(found.quota)})


class EventStream(StreamingResponse):
    """Server-sent events. Whatever becomes of the client, what was delivered is paid."""

    def __init__(self, events: AsyncIterator[bytes], delivery: Delivery | None, headers: Mapping[str, str]) -> None:
        """``delivery`` is the answer that the events deliver, where it is not paid yet."""
        super().__init__(events, headers={**headers, "cache-control": "no-cache"}, media_type="text/event-stream")
        self._delivery = delivery

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send; it ends early when the client leaves or the server stops."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._delivery is not None:
                await self._delivery.leave()


async def _replayed(answered: Answered, form: Form) -> AsyncIterator[bytes]:
    for each in form.opening():
        yield each
    for word in _WORDS.findall(answered.answer):
        for each in form.piece(word):
            yield each
    for each in _end(answered, form):
        yield each


async def _delivered(delivery: Delivery, form: Form) -> AsyncIterator[bytes]:
    for each in form.opening():
        yield each
    failure: GeneratorError | None = None
    try:
        async for piece in delivery:
            for each in form.piece(piece):
                yield each
    except GeneratorError as error:
        failure = error
    try:
        answered = await delivery.paid(translate(failure).code if failure else "")
    except MeterError as error:
        end = form.broken(translate(error), None)
    else:
        end = form.broken(translate(failure), answered) if failure else form.closing(answered)
    for each in end:
        yield each


def _end(answered: Answered, form: Form) -> Iterator[bytes]:
    if not answered.interrupted:
        return form.closing(answered)
    error = ApiError(502, answered.interrupted, "the answer broke off here; what there is of it was paid")
    return form.broken(error, answered)
