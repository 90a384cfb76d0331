"""The customer's usage, by day, model and key."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Annotated, Any, Final

import sqlalchemy as sa
from fastapi import APIRouter, Query, Response

from metering import usage_index
from serving.api.dependencies import Customer, TheService, json_response
from serving.api.errors import ApiError
from serving.books import Books

router = APIRouter()

_GROUPS: Final = ("day", "model", "key")
_COUNTS: Final = ("queries", "input_tokens", "output_tokens")
_AMOUNTS: Final = ("charge", "free")


@router.get("/v1/usage")
async def usage(
    caller: Customer,
    service: TheService,
    group_by: str = "day,model,key",
    first: Annotated[date | None, Query(alias="from")] = None,
    last: Annotated[date | None, Query(alias="to")] = None,
    start: date | None = None,
    end: date | None = None,
) -> Response:
    """Usage by any of day, model and key; days ``from`` to ``to`` (or ``start`` to ``end``), both included."""
    groups = list(dict.fromkeys(each.strip() for each in group_by.split(",") if each.strip()))
    if not set(groups) <= set(_GROUPS):
        raise ApiError(422, "invalid", f"group_by: choose from {', '.join(_GROUPS)}", param="group_by")
    rows = await asyncio.to_thread(_usage, service.books, caller.id, groups, first or start, last or end)
    return json_response({"data": rows})


def _usage(
    books: Books, account: str, groups: list[str], first: date | None, last: date | None
) -> list[dict[str, Any]]:
    """One row for each group that was used; none for a customer who has used nothing."""
    table = usage_index.usage_daily
    by = [table.c[name] for name in groups]
    sums = [sa.func.sum(table.c[name]).label(name) for name in (*_COUNTS, *_AMOUNTS)]
    query = sa.select(*by, *sums).where(table.c.account == account).group_by(*by).order_by(*by)
    if first:
        query = query.where(table.c.day >= first.isoformat())
    if last:
        query = query.where(table.c.day <= last.isoformat())
    with books.engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return [
        {name: row[name] for name in groups}
        | {name: int(row[name]) for name in _COUNTS}
        | {name: books.currency.amount(int(row[name])) for name in _AMOUNTS}
        for row in rows
        if row["queries"] is not None
    ]
