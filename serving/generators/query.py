"""The query: what a customer asks, and what makes it unacceptable."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

TOP_K_DEFAULT: Final = 5
TOP_K_MAX: Final = 50
PURPOSE_DEFAULT: Final = "answer"
_PURPOSE: Final = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,63}", re.ASCII)


class QueryError(ValueError):
    """A query that cannot be answered as it was asked; nothing was charged."""

    def __init__(self, message: str, param: str = "question") -> None:
        """``param`` names the part of the query that is wrong."""
        super().__init__(message)
        self.param = param


class QuestionTooLong(QueryError):
    """The question is above the limit."""


class InputTooLong(QueryError):
    """There is more text than one call may have."""


class MaxPriceExceeded(QueryError):
    """The query may cost more than its ``max_price``."""

    def __init__(self, ceiling: str) -> None:
        """``ceiling`` as an amount."""
        super().__init__(f"the query may cost up to {ceiling}, which is more than max_price", "max_price")


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Under which key a paid call is charged at most once; without a key, every call is a new one."""

    key: str = ""
    body_hash: str = ""
    """Fingerprint of the request, compared when the key comes again."""
    retries: int | None = None
    """As :attr:`metering.meter.Request.retries`."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the conversation that a query ends."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """A paid query."""

    question: str
    """What is retrieved for: the last message of the user."""
    model: str
    top_k: int = TOP_K_DEFAULT
    purpose: str = PURPOSE_DEFAULT
    max_price: int | None = None
    """Units."""
    conversation: tuple[Message, ...] = ()
    """The whole conversation, for models that read it; without one, the question is all of it."""
    output_tokens: int | None = None
    """The most tokens that the answer may have, where the customer says so."""
    sampling: tuple[tuple[str, float], ...] = ()
    """Parameters of a language model, such as temperature, by name."""
    idempotency: Idempotency = Idempotency()

    def __post_init__(self) -> None:
        """Refuse what is no query.

        Raises:
            QueryError: with the part that is wrong.
        """
        if not self.question.strip():
            raise QueryError("the question is blank")
        try:
            "".join((self.question, *(message.text for message in self.conversation))).encode()
        except UnicodeEncodeError:
            raise QueryError("the question is not valid Unicode") from None
        if _PURPOSE.fullmatch(self.purpose) is None:
            raise QueryError("the purpose must be a word such as answer or research", "purpose")
        if not 1 <= self.top_k <= TOP_K_MAX:
            raise QueryError(f"top_k must be between 1 and {TOP_K_MAX}", "top_k")
