"""Paid calls in common: prices from outside, idempotency, and the receipt."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import Request
from pydantic import BaseModel, Field

from metering.meter import Quota
from metering.money import Currency, MoneyError
from metering.records import fingerprint
from serving.api.errors import ApiError
from serving.api.rate_limit_headers import quota_headers
from serving.generators.query import Idempotency
from serving.people.identity import Caller
from serving.settings import Settings

REPLAYED: Final = "x-patronage-replayed"
_KEY_CHARS_MAX = 255
_RETRIES = re.compile(r"\d{1,4}", re.ASCII)


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


async def idempotency(request: Request, caller: Caller, settings: Settings) -> Idempotency:
    """Under which key the call is charged once.

    Without an Idempotency-Key, the ``openai`` client's count of its own retries serves: its retry is the same request
    by the same API key.

    Raises:
        ApiError: 400, the key is too long.
    """
    key = request.headers.get("idempotency-key", "")
    if len(key) > _KEY_CHARS_MAX:
        raise ApiError(400, "invalid_idempotency_key", f"Idempotency-Key is longer than {_KEY_CHARS_MAX} characters")
    if key:
        return Idempotency(key, fingerprint(request.url.path, await request.body()))
    retries = request.headers.get("x-stainless-retry-count", "")
    if not settings.retry_seconds or not _RETRIES.fullmatch(retries):
        return Idempotency()
    body_hash = fingerprint(caller.key, request.url.path, await request.body())
    return Idempotency(f"retries of {body_hash}", body_hash, int(retries))


def headers(
    receipt: str, charge: int, free: int, quota: Quota | None, currency: Currency, *, replayed: bool
) -> dict[str, str]:
    """The headers of a paid response: its receipt, its charge, what of that was free, and what the key has left.

    One that is given again says so.
    """
    return {
        "x-patronage-receipt": receipt,
        "x-patronage-charge": currency.format(charge),
        **({"x-patronage-free": currency.format(free)} if free else {}),
        **({REPLAYED: "true"} if replayed else {}),
        **quota_headers(quota),
    }
