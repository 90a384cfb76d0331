"""What the paid calls have in common: prices from outside, idempotency, and the receipt."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request
from pydantic import BaseModel, Field

from metering.money import Currency, MoneyError
from metering.records import fingerprint
from serving.answered import Answered
from serving.api.errors import ApiError

_KEY_CHARS_MAX = 255


class Money(BaseModel):
    """An amount from outside."""

    amount: str
    currency: str


Price = Annotated[Money | str | None, Field(description="The most the query may cost, such as `0.01`.")]


def units(price: Money | str | None, currency: Currency, param: str) -> int | None:
    """An amount from outside in units.

    Raises:
        ApiError: 422, it is not a positive amount in the deployment's currency.
    """
    if price is None:
        return None
    try:
        if isinstance(price, Money):
            currency.parse_amount(price.amount, price.currency)
            price = price.amount
        return currency.parse_positive(price)
    except MoneyError as error:
        raise ApiError(422, "invalid", str(error), param=param) from error


async def idempotency(request: Request) -> tuple[str, str]:
    """The Idempotency-Key, or an empty one, and the fingerprint of what is asked.

    Raises:
        ApiError: 400, the key is too long.
    """
    key = request.headers.get("idempotency-key", "")
    if len(key) > _KEY_CHARS_MAX:
        raise ApiError(400, "invalid_idempotency_key", f"Idempotency-Key is longer than {_KEY_CHARS_MAX} characters")
    return key, fingerprint(request.url.path, await request.body()) if key else ""


def receipt_headers(answered: Answered, currency: Currency) -> dict[str, str]:
    """The headers of a paid response."""
    return {
        "x-patronage-receipt": answered.id,
        "x-patronage-charge": currency.format(answered.charge),
    }
