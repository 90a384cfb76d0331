"""The price book: what a query costs the customer, and what of that the computing costs the operator.

A book has a version and a date from which it counts, and never changes; a new price is a new book. Charges round up
and costs round down to whole units, and every cost is at most its price, so a charge always covers its cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from metering import formats

FORMAT: Final = 1
"""The format of price books. Those that do not say theirs have format 1."""
_PER: Final = 1_000


class PriceError(ValueError):
    """A price book that cannot be used; the message says why."""


class UnknownModel(PriceError):
    """A model that the book does not price, so it cannot be sold."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a query consumed, or may at most consume."""

    input_tokens: int
    output_tokens: int
    passages: int


class ModelPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices of one model, in units: per request, per thousand tokens, per retrieved document."""

    request: int
    input_per_1k: int = 0
    output_per_1k: int = 0
    passage: int = 0
    cost_request: int = 0
    cost_input_per_1k: int = 0
    cost_output_per_1k: int = 0

    def __post_init__(self) -> None:
        """Refuse negative prices and costs above their prices.

        Raises:
            PriceError: with the name of the price that is wrong.
        """
        for field in self.__struct_fields__:
            if getattr(self, field) < 0:
                raise PriceError(f"price {field} must not be negative")
        for kind in ("request", "input_per_1k", "output_per_1k"):
            if getattr(self, f"cost_{kind}") > getattr(self, kind):
                raise PriceError(f"cost_{kind} is above the price {kind}: the query would lose money")

    def charge(self, usage: Usage) -> int:
        """What the customer pays for ``usage``, in units."""
        tokens = self.input_per_1k * usage.input_tokens + self.output_per_1k * usage.output_tokens
        return self.request + self.passage * usage.passages + -(-tokens // _PER)

    def cost(self, usage: Usage) -> int:
        """The part of the charge that pays for computing, in units."""
        tokens = self.cost_input_per_1k * usage.input_tokens + self.cost_output_per_1k * usage.output_tokens
        return self.cost_request + tokens // _PER


class PriceBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The prices of every model that is served, under one version."""

    version: int
    models: dict[str, ModelPrice]
    effective_ms: int = 0
    """From when it counts, in milliseconds since the epoch."""
    free_per_month: int = 0
    """What every account may use in a calendar month (UTC) at the operator's expense, in units."""
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Refuse a book that sells nothing, or gives less than nothing.

        Raises:
            PriceError: as said.
        """
        if not self.models:
            raise PriceError("a price book needs the price of at least one model")
        if self.free_per_month < 0:
            raise PriceError("free_per_month must not be negative")

    def price(self, model: str) -> ModelPrice:
        """The price of ``model``.

        Raises:
            UnknownModel: the book does not price it.
        """
        try:
            return self.models[model]
        except KeyError:
            raise UnknownModel(f"price book {self.version} has no price for model {model!r}") from None

    def to_json(self) -> dict[str, Any]:
        """The book as plain JSON values, amounts in units."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PriceBook:
        """The book in plain JSON values.

        Raises:
            PriceError: a field is missing, unknown or out of range, or a newer version wrote it.
        """
        try:
            formats.check(f"price book {data.get('version')}", data.get("format", 1), FORMAT)
            return msgspec.convert(data, cls)
        except formats.UnknownFormat as error:
            raise PriceError(str(error)) from error
        except msgspec.ValidationError as error:
            raise PriceError(f"not a price book: {error}") from error


def in_force(books: Iterable[PriceBook], at_ms: int) -> PriceBook:
    """The book that counts at a moment: of those in effect, the one that took effect last, and the newest of equals.

    Raises:
        PriceError: none is in effect yet.
    """
    found = max(
        (book for book in books if book.effective_ms <= at_ms),
        key=lambda book: (book.effective_ms, book.version),
        default=None,
    )
    if found is None:
        raise PriceError("no price book is in effect yet")
    return found
