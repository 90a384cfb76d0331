"""The operator's interface to the ledger: balances, corrections and refunds."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from metering import periods
from metering.money import MoneyError
from serving.api import paid
from serving.api.bodies import BoundedRoute
from serving.api.dependencies import TheService, json_response, operator
from serving.money import corrections, funding
from serving.money.trial_balance import trial_balance

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)], route_class=BoundedRoute)

_PAGE_MAX = 1_000


class CorrectionBody(BaseModel):
    """A correction: two accounts and an amount, or the transfer that is taken back."""

    debit: str | None = None
    credit: str | None = None
    amount: paid.Money | str | None = None
    reference: str
    reason: str
    of: str | None = None


class RefundBody(BaseModel):
    """A refund."""

    amount: paid.Money | str
    reference: str
    reason: str


@router.get("/ledger")
async def ledger(
    service: TheService,
    at: str | None = None,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=_PAGE_MAX)] = 100,
) -> Response:
    """The trial balance, now or at a moment; ``next`` is what to pass as ``after``."""
    at_ms = None if at is None else periods.last_ms(at)
    found = await asyncio.to_thread(trial_balance, service.books.engine, at_ms)
    return json_response(found.to_json(service.books.currency, after=after, limit=limit))


@router.post("/ledger/corrections")
async def correct(body: CorrectionBody, service: TheService) -> Response:
    """Put the books right with another transfer; the same reference counts once."""
    books = service.books
    found = await corrections.correct(
        books,
        service.metering.meter,
        debit=body.debit,
        credit=body.credit,
        units=paid.units(body.amount, books.currency, "amount"),
        reference=body.reference,
        reason=body.reason,
        of=body.of,
    )
    return json_response(corrections.to_json(found, books.currency), 201)


@router.post("/customers/{customer}/refunds")
async def refund(customer: str, body: RefundBody, service: TheService) -> Response:
    """Pay a customer back what is neither spent nor held; the same reference counts once."""
    books = service.books
    units = paid.units(body.amount, books.currency, "amount")
    if units is None:
        raise MoneyError("an amount is needed")
    balance = await funding.refund(books, service.metering.meter, customer, units, body.reference, body.reason)
    return json_response({"balance": books.currency.amount(balance.funded - balance.spent)})
