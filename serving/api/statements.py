"""The contributor's money: earnings of the open period, statements of the closed ones, and payouts."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from metering import periods
from serving.api.dependencies import Contributor, TheService, json_response
from serving.api.errors import ApiError
from serving.closing import closing
from serving.money import payouts
from serving.portal import statement_pages

router = APIRouter()


@router.get("/v1/earnings")
async def earnings(caller: Contributor, service: TheService) -> Response:
    """Usage and estimated credit of the open period."""
    found = await service.pools.earnings.run(caller.id, service.earnings.of, caller.id, service.books.currency)
    return json_response(found)


@router.get("/v1/statements")
async def listed(caller: Contributor, service: TheService) -> Response:
    """The periods that have a statement."""
    found = await asyncio.to_thread(closing.statement_periods, service.books, caller.id)
    return json_response({"data": [{"period": period} for period in found]})


@router.get("/v1/statements/{period}")
async def statement(period: str, request: Request, caller: Contributor, service: TheService) -> Response:
    """A statement: JSON with its proof, or CSV or HTML by the ``Accept`` header."""
    found = await asyncio.to_thread(closing.statement, service.books, caller.id, periods.parse(period))
    if found is None:
        raise ApiError(404, "not_found", f"there is no statement for {period}: the period is not closed")
    accept = request.headers.get("accept", "")
    if "text/html" in accept:
        return Response(await asyncio.to_thread(statement_pages.as_html, found), media_type="text/html; charset=utf-8")
    if "text/csv" in accept:
        return Response(statement_pages.as_csv(found), media_type="text/csv; charset=utf-8")
    return json_response(found)


@router.get("/v1/payouts")
async def paid_out(
    caller: Contributor,
    service: TheService,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=payouts.PAGE_MAX)] = 100,
) -> Response:
    """What the contributor is owed, is being paid and was paid, newest payout first; and corrections of it."""
    found = await asyncio.to_thread(payouts.account, service.books, caller.id, after, limit)
    return json_response(found)
