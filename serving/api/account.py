"""The customer's own: account, usage and receipts."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Annotated, Any, Final

import sqlalchemy as sa
from fastapi import APIRouter, Query, Response

from metering import ledger, periods
from metering.records import SCORE_ONE, UsageRecord, decode_record
from serving import rendering
from serving.api.alerts import AlertBody, change_alert
from serving.api.context import Customer, TheService, json_response
from serving.api.errors import ApiError
from serving.books import Books
from serving.closing import closing, receipts
from serving.closing.outcomes import latest_of
from serving.money import customers
from serving.notify import alerts
from serving.service import Service

router = APIRouter()

_GROUPS: Final = ("day", "model", "key")
_COUNTS: Final = ("queries", "input_tokens", "output_tokens")
_AMOUNTS: Final = ("charge", "free")


@router.get("/v1/account")
async def account(caller: Customer, service: TheService) -> Response:
    """What the customer has left."""
    found = await service.metering.meter.balance(caller.id)
    return json_response({"id": caller.id, **customers.money(found, service.books)})


@router.get("/v1/account/alert")
async def alert(caller: Customer, service: TheService) -> Response:
    """When the customer's low balance is signalled, and where."""
    found = await asyncio.to_thread(alerts.of, service.books, caller.id)
    return json_response(alerts.render(found, service.books))


@router.put("/v1/account/alert")
async def set_alert(body: AlertBody, caller: Customer, service: TheService) -> Response:
    """Choose when and where; the secret of a new webhook is shown once."""
    return json_response(await change_alert(service, caller.id, body))


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


@router.get("/v1/receipts/{receipt}")
async def receipt(receipt: str, caller: Customer, service: TheService) -> Response:
    """One receipt: what a query cost, and which documents it used."""
    record = await _find(service, receipt, caller.id)
    if record is None or record.account != caller.id:
        raise ApiError(404, "not_found", f"there is no receipt {receipt[:80]}")
    return json_response(await asyncio.to_thread(_whole, service.books, record))


async def _find(service: Service, receipt: str, account: str) -> UsageRecord | None:
    """A record wherever it is. Most are in the log; the others move from the spool to Redis to the log meanwhile."""
    logged = await asyncio.to_thread(receipts.find, service.books, receipt, account)
    if logged is None:
        spooled = await asyncio.to_thread(service.metering.spool.find, receipt)
        if spooled is not None:
            return spooled
        fresh = await service.metering.meter.find_record(account, receipt)
        if fresh is not None:
            return decode_record(fresh)
        logged = await asyncio.to_thread(receipts.find, service.books, receipt, account)
    return None if logged is None else logged.record


def _usage(
    books: Books, account: str, groups: list[str], first: date | None, last: date | None
) -> list[dict[str, Any]]:
    """One row for each group that was used; none for a customer who has used nothing."""
    table = ledger.usage_daily
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


def _whole(books: Books, record: UsageRecord) -> dict[str, Any]:
    """The receipt with what came after the answer: what the customer said of it, and the proof that it is in a run."""
    found = _render(record, books)
    outcome = latest_of(books.engine, record.id)
    if outcome is not None:
        found["outcome"] = rendering.outcome(outcome, books.currency)
    inclusion = closing.inclusion(books, record)
    if inclusion is not None:
        found["inclusion"] = inclusion
    return found


def _render(record: UsageRecord, books: Books) -> dict[str, Any]:
    amount = books.currency.amount
    return {
        "id": record.id,
        "created": periods.timestamp(record.finished_ms),
        "model": record.model,
        "purpose": record.purpose,
        "charge": amount(record.charge),
        "free": amount(record.free),
        "cost": amount(record.cost),
        "platform": amount(record.platform),
        "pool": amount(record.royalty),
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "price_version": record.price_version,
        "policy_version": record.policy_version,
        "sources": [
            {
                "document_id": use.document,
                "version": use.version,
                "contributor": use.contributor,
                "score": use.score / SCORE_ONE,
                "cited": use.cited,
            }
            for use in record.uses
        ],
    }
