"""Cases: questions with their answers and passages, as the log of any retrieval-augmented system has them.

A case comes and its result goes as one JSON object. ``attribution/cases/methods.py`` turns the one into the other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from metering.money import Amount, Currency, MoneyError

PASSAGES_MAX: Final = 1_000


class CaseError(ValueError):
    """A case that cannot be attributed, with the reason."""


class Charge(msgspec.Struct, frozen=True):
    """An amount as the outside writes it."""

    amount: str
    currency: str


class CasePassage(msgspec.Struct, frozen=True):
    """A passage that was retrieved. Without a contributor it is a player of its own."""

    id: str | int
    text: str
    title: str | None = None
    contributor: str | None = None
    score: float | None = None
    registered_at: str | None = None
    """When its version was registered, in RFC 3339; compared among copies only."""

    def __post_init__(self) -> None:
        """Refuse a time that is none.

        Raises:
            ValueError: with what is wrong.
        """
        _ = self.registered

    @property
    def registered(self) -> datetime | None:
        """When its version was registered; a time without a zone is in UTC."""
        if self.registered_at is None:
            return None
        try:
            found = datetime.fromisoformat(self.registered_at)
        except ValueError:
            raise ValueError(f"registered_at {self.registered_at[:40]!r} is not a time in RFC 3339") from None
        return found if found.tzinfo else found.replace(tzinfo=UTC)


class Case(msgspec.Struct, frozen=True):
    """One answered question. Unknown fields are ignored."""

    id: str | int
    question: str
    passages: tuple[CasePassage, ...]
    answer: str | None = None
    charge: Charge | Decimal | None = None
    """What was paid for it; with it, every share is also an amount."""

    def __post_init__(self) -> None:
        """Refuse what says nothing, or too much.

        Raises:
            ValueError: with what is wrong.
        """
        if not self.question.strip() and not (self.answer or "").strip():
            raise ValueError("the question and the answer are both blank")
        if len(self.passages) > PASSAGES_MAX:
            raise ValueError(f"{len(self.passages)} passages; the limit is {PASSAGES_MAX}")

    def charged(self, default: Currency) -> tuple[int, Currency] | None:
        """The charge in units and its currency, ``default`` where it names none; None without a charge.

        Raises:
            CaseError: it is not an amount, or negative.
        """
        if self.charge is None:
            return None
        try:
            if isinstance(self.charge, Charge):
                currency, text = Currency.of(self.charge.currency), self.charge.amount
            else:
                currency, text = default, f"{self.charge:f}"
            units = currency.parse(text)
        except MoneyError as error:
            raise CaseError(f"charge: {error}") from error
        if units < 0:
            raise CaseError("charge: the amount is negative")
        return units, currency


class Share(msgspec.Struct, frozen=True):
    """What one passage earned."""

    passage_id: str | int
    contributor: str | None
    weight: float
    """Its part of the case. Below zero where it harms the answer, which ``support/1`` never finds."""
    raw: float
    """What the method gave before it was scaled: a value, a count or a score."""
    amount: Amount | UnsetType = UNSET
    interval: tuple[float, float] | UnsetType = UNSET
    """Of an estimate: the confidence interval of the weight."""


class Result(msgspec.Struct, frozen=True):
    """A case attributed. The weights and the residual sum to 1, the amounts to the charge."""

    id: str | int
    shares: tuple[Share, ...]
    """In the order of the passages."""
    model_residual: float
    method: str
    estimated: bool
    value_all: float
    value_none: float
    value_function: str
    residual_amount: Amount | UnsetType = UNSET
    budget: int | UnsetType = UNSET
    """Of an estimate: the most coalitions that were valued."""
    seed: int | UnsetType = UNSET
    """Of an estimate: what decided which; it follows from the id of the case."""
    confidence: float | UnsetType = UNSET
    """Of an estimate: how often the intervals hold what is estimated."""


_DECODER: Final = msgspec.json.Decoder(Case)
encode_result: Final = msgspec.json.Encoder().encode


def decode_case(data: bytes) -> Case:
    """One case in JSON.

    Raises:
        CaseError: it is not JSON, or a field is missing or wrong.
    """
    try:
        return _DECODER.decode(data.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise CaseError(f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}") from error
    except msgspec.ValidationError as error:
        raise CaseError(f"not a case: {error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise CaseError(f"not valid JSON: {error}") from error
