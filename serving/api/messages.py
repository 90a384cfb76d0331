"""Conversations, as both interfaces of the ``openai`` client send them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from serving.answering.answered import Answered
from serving.api import paid
from serving.api.bodies import Items
from serving.api.errors import ApiError
from serving.api.query import TopK
from serving.generators.query import PURPOSE_DEFAULT, TOP_K_DEFAULT, Message, Query
from serving.people.identity import Caller
from serving.service import Service

Tokens = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]

_TEXTS = ("text", "input_text", "output_text")


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None


class ConversationMessage(BaseModel):
    """A message of the conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Items[Part] | None = None

    def text(self) -> str:
        """The text of the message, of all its parts."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or () if part.type in _TEXTS and part.text)


class PaidBody(BaseModel):
    """What both interfaces have in common. ``top_k``, ``purpose`` and ``max_price`` go in the ``extra_body``."""

    model_config = ConfigDict(extra="ignore")

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: TopK = TOP_K_DEFAULT
    purpose: str = PURPOSE_DEFAULT
    max_price: paid.Price = None

    async def query(
        self,
        messages: Sequence[ConversationMessage],
        *,
        param: str,
        output_tokens: int | None,
        request: Request,
        caller: Caller,
        service: Service,
    ) -> Query:
        """The query that ends the conversation: the last message of the user is its question.

        Raises:
            ApiError: 422, there is none; ``param`` is what the interface calls its messages.
            QueryError: it is not acceptable.
        """
        conversation = [each for each in map(_message, messages) if each is not None and each.text]
        questions = [each.text() for each in messages if each.role == "user"]
        if not questions:
            raise ApiError(422, "invalid", f"{param}: there is no user message to answer", param=param)
        sampling = {"temperature": self.temperature, "top_p": self.top_p}
        return Query(
            question=questions[-1],
            model=self.model,
            top_k=self.top_k,
            purpose=self.purpose,
            max_price=paid.units(self.max_price, service.books.currency, "max_price"),
            conversation=tuple(conversation),
            output_tokens=output_tokens,
            sampling=tuple((name, value) for name, value in sampling.items() if value is not None),
            idempotency=await paid.idempotency(request, caller, service.books.settings),
        )


def _message(message: ConversationMessage) -> Message | None:
    """A message as models read it; what tools said is not theirs to read here."""
    match message.role:
        case "system" | "developer":
            return Message("system", message.text())
        case "user" | "assistant":
            return Message(message.role, message.text())
        case _:
            return None


def citations(answered: Answered) -> list[dict[str, Any]]:
    """The citations as the client's types have them, and where they come from exactly."""
    found = []
    for citation in answered.citations:
        source = answered.sources[citation.source]
        found.append(
            {
                "start_index": citation.answer_span[0],
                "end_index": citation.answer_span[1],
                "title": source.title,
                # A document without a web address is named by its id.
                "url": source.url or f"urn:patronage:document:{source.document_id}",
                "document_id": source.document_id,
                "version": source.version,
                "quote": citation.quote,
                "passage": list(citation.passage),
            }
        )
    return found
