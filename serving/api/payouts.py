"""The operator's interface to payouts."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from serving.api import paid
from serving.api.bodies import BoundedRoute
from serving.api.dependencies import TheService, json_response, operator
from serving.money import payouts

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)], route_class=BoundedRoute)


class PayoutBody(BaseModel):
    """A payout; without an amount, of all that is owed."""

    contributor: str
    amount: paid.Money | str | None = None
    reference: str


class CancelBody(BaseModel):
    """Why a payout was not made."""

    reason: str


@router.get("/payouts")
async def listed(
    service: TheService,
    contributor: str | None = None,
    state: payouts.State | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=payouts.PAGE_MAX)] = 100,
) -> Response:
    """Payouts, newest first; ``next`` is what to pass as ``after``."""
    books = service.books
    found = await asyncio.to_thread(
        payouts.listing, books.engine, contributor=contributor, state=state, after=after, limit=limit
    )
    more = found[-1].reference if len(found) == limit else None
    return json_response({"data": [each.to_json(books.currency) for each in found], "next": more})


@router.post("/payouts")
async def start(body: PayoutBody, service: TheService) -> Response:
    """Set aside what a contributor is about to be paid; the same reference counts once."""
    books = service.books
    units = paid.units(body.amount, books.currency, "amount")
    found = await asyncio.to_thread(payouts.start, books, body.contributor, units, body.reference)
    return json_response(found.to_json(books.currency), 201)


@router.post("/payouts/{reference:path}/settle")
async def settle(reference: str, service: TheService) -> Response:
    """The payout has arrived."""
    found = await asyncio.to_thread(payouts.settle, service.books, reference)
    return json_response(found.to_json(service.books.currency))


@router.post("/payouts/{reference:path}/cancel")
async def cancel(reference: str, body: CancelBody, service: TheService) -> Response:
    """The payout was not made: the contributor is owed it again."""
    found = await asyncio.to_thread(payouts.cancel, service.books, reference, body.reason)
    return json_response(found.to_json(service.books.currency))
