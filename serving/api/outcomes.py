"""Outcomes: customers report what an answer turned out to be worth."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from attribution.runs.outcomes import Outcome, OutcomeError
from metering.money import Currency, MoneyError
from metering.records import PPM
from serving import rendering
from serving.api.bodies import BoundedRoute
from serving.api.dependencies import Customer, TheService, json_response
from serving.api.errors import ApiError
from serving.api.paid import Money
from serving.closing import outcomes

router = APIRouter(route_class=BoundedRoute)


class OutcomeBody(BaseModel):
    """What a customer reports; at least one of the two."""

    value: Money | str | None = None
    rating: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None


@router.post("/v1/receipts/{receipt}/outcome")
async def report(receipt: str, body: OutcomeBody, caller: Customer, service: TheService) -> Response:
    """Report an outcome; the latest counts, until the period of the receipt is closed."""
    books = service.books
    rating = None if body.rating is None else round(body.rating * PPM)
    outcome = Outcome(_value(body.value, books.currency), rating)
    try:
        try:
            revision = await asyncio.to_thread(outcomes.report, books.engine, caller.id, receipt, outcome)
        except outcomes.UnknownReceipt:
            # It may be on its way to the log, or have come there meanwhile.
            if await service.metering.meter.find_record(caller.id, receipt):
                await service.metering.drain.flush()
            revision = await asyncio.to_thread(outcomes.report, books.engine, caller.id, receipt, outcome)
    except outcomes.UnknownReceipt as error:
        raise ApiError(404, "not_found", f"there is no receipt {receipt[:80]}") from error
    except outcomes.OutcomeRefused as error:
        raise ApiError(409, "outcome_refused", str(error)) from error
    except OutcomeError as error:
        raise ApiError(422, "invalid", str(error)) from error
    return json_response({"receipt": receipt, "revision": revision, **rendering.outcome(outcome, books.currency)})


def _value(value: Money | str | None, currency: Currency) -> int | None:
    if value is None:
        return None
    try:
        return currency.parse(value) if isinstance(value, str) else currency.parse_amount(value.amount, value.currency)
    except MoneyError as error:
        raise ApiError(422, "invalid", str(error), param="value") from error
