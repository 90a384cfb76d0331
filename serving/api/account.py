"""The customer's own: account, usage and receipts."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Response

from metering import ledger
from metering.records import SCORE_ONE, UsageRecord, decode_record
from serving import closing, receipts, rendering
from serving.api.context import Customer, TheService, json_response
from serving.api.errors import ApiError
from serving.assembly import Books
from serving.outcomes import latest_of

router = APIRouter()


@router.get("/v1/account")
async def account(caller: Customer, service: TheService) -> Response:
    """What the customer has left."""
    found = await service.metering.meter.balance(caller.id)
    currency = service.books.currency
    return json_response(
        {
            "id": caller.id,
            "balance": currency.amount(found.funded - found.spent),
            "held": currency.amount(found.held),
            "available": currency.amount(found.available),
        }
    )


@router.get("/v1/usage")
async def usage(caller: Customer, service: TheService, start: date | None = None, end: date | None = None) -> Response:
    """Usage by day, model and key; days from ``start`` to ``end``, both included."""
    rows = await asyncio.to_thread(_usage, service.books, caller.id, start, end)
    return json_response({"data": rows})


@router.get("/v1/receipts/{receipt}")
async def receipt(receipt: str, caller: Customer, service: TheService) -> Response:
    """One receipt: what a query cost, and which documents it used."""
    logged = await asyncio.to_thread(receipts.find, service.books, receipt, caller.id)
    record = None if logged is None else logged.record
    if record is None:
        fresh = await service.metering.meter.find_record(caller.id, receipt)
        record = decode_record(fresh) if fresh else None
    if record is None or record.account != caller.id:
        raise ApiError(404, "not_found", f"there is no receipt {receipt[:80]}")
    return json_response(await asyncio.to_thread(_whole, service.books, record))


def _usage(books: Books, account: str, start: date | None, end: date | None) -> list[dict[str, Any]]:
    table = ledger.usage_daily
    query = sa.select(table).where(table.c.account == account).order_by(table.c.day, table.c.model, table.c.key)
    if start:
        query = query.where(table.c.day >= start.isoformat())
    if end:
        query = query.where(table.c.day <= end.isoformat())
    with books.engine.connect() as connection:
        return [
            {
                "day": row.day,
                "model": row.model,
                "key": row.key,
                "queries": row.queries,
                "input_tokens": row.input_tokens,
                "output_tokens": row.output_tokens,
                "charge": books.currency.amount(row.charge),
            }
            for row in connection.execute(query)
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
        "created": rendering.timestamp(record.finished_ms),
        "model": record.model,
        "purpose": record.purpose,
        "charge": amount(record.charge),
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
