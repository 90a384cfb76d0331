"""Price books from outside and for the outside: JSON with decimal amounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from metering import periods, pricing
from metering.money import Currency, MoneyError
from metering.pricing import ModelPrice, PriceBook, PriceError

_NAME_CHARS_MAX: Final = 200
_FIELDS: Final = {"models", "free_per_month", "effective_from"}


@dataclass(frozen=True, slots=True)
class PriceList:
    """What an operator decides of a price book."""

    models: dict[str, ModelPrice]
    free_per_month: int
    effective_ms: int | None
    """None: as soon as can be."""


def parse(data: object, currency: Currency) -> PriceList:
    """A price list in plain JSON values.

    Raises:
        PriceError: with the place that is wrong. Nothing is ignored: a price that is misspelt would be lost money.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("models"), Mapping):
        raise PriceError('a price list is an object such as {"models": {"NAME": {"request": "0.002"}}}')
    unknown = set(data) - _FIELDS
    if unknown:
        raise PriceError(f"a price list has no {min(map(str, unknown))[:40]!r}; it has {', '.join(sorted(_FIELDS))}")
    effective = data.get("effective_from")
    return PriceList(
        models={_name(name): _price(name, price, currency) for name, price in data["models"].items()},
        free_per_month=_units("free_per_month", data.get("free_per_month", "0"), currency),
        effective_ms=None if effective is None else moment(effective),
    )


def moment(text: object) -> int:
    """A time such as ``2026-12-01`` or ``2026-12-01T00:00:00Z`` (UTC if it does not say), in milliseconds.

    Raises:
        PriceError: it is not a time, or not one from 1970 to 9999.
    """
    try:
        found = datetime.fromisoformat(text if isinstance(text, str) else "")
        return periods.moment_of(found if found.tzinfo else found.replace(tzinfo=UTC))
    except ValueError:
        raise PriceError(
            f"{str(text)[:40]!r} is not a time such as 2026-12-01T00:00:00Z, from 1970 to 9999 in UTC"
        ) from None


def render(books: Sequence[PriceBook], currency: Currency, now_ms: int) -> list[dict[str, Any]]:
    """Every book, in the order in which they take effect."""
    current = pricing.in_force(books, now_ms).version
    return [
        render_book(book, currency, in_force=book.version == current)
        for book in sorted(books, key=lambda each: (each.effective_ms, each.version))
    ]


def render_book(book: PriceBook, currency: Currency, *, in_force: bool) -> dict[str, Any]:
    """One book; its ``models`` and ``free_per_month`` are as :func:`parse` reads them."""
    return {
        "version": book.version,
        "format": book.format,
        # Books that were set before later times were refused are still there.
        "effective_from": periods.timestamp(min(book.effective_ms, periods.LAST_MS)),
        "in_force": in_force,
        "free_per_month": currency.amount(book.free_per_month),
        "models": {
            name: {field: currency.amount(units) for field, units in msgspec.to_builtins(price).items()}
            for name, price in book.models.items()
        },
    }


def _name(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARS_MAX or not name.isprintable():
        raise PriceError(f"a model has a name of 1 to {_NAME_CHARS_MAX} printable characters")
    return name


def _price(name: str, price: object, currency: Currency) -> ModelPrice:
    if not isinstance(price, Mapping):
        raise PriceError(f'{name}: a price is an object such as {{"request": "0.002"}}')
    unknown = set(price) - set(ModelPrice.__struct_fields__)
    if unknown or "request" not in price:
        wrong = f"no {min(map(str, unknown))[:40]!r}" if unknown else "a request, perhaps of 0"
        raise PriceError(f"{name}: a price has {wrong}; it has {', '.join(ModelPrice.__struct_fields__)}")
    units = {field: _units(f"{name}.{field}", amount, currency) for field, amount in price.items()}
    try:
        return ModelPrice(**units)
    except PriceError as error:
        raise PriceError(f"{name}: {error}") from error


def _units(where: str, amount: object, currency: Currency) -> int:
    """Amounts come as decimal strings, or as the objects that :func:`render` writes."""
    code = None
    if isinstance(amount, Mapping):
        code, amount = amount.get("currency"), amount.get("amount")
    if not isinstance(amount, str):
        raise PriceError(f'{where}: an amount is a string such as "0.002", so that it is exact')
    try:
        return currency.parse_amount(amount, code)
    except MoneyError as error:
        raise PriceError(f"{where}: {error}") from error
