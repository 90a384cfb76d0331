"""The customer's receipts: what each query cost, and which documents it used."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response

from attribution.runs.proofs import FORMAT
from metering import periods
from metering.records import SCORE_ONE, UsageRecord, decode_record
from serving import rendering
from serving.api.dependencies import Customer, TheService, json_response
from serving.api.errors import ApiError
from serving.books import Books
from serving.closing import closing, lookup
from serving.closing.outcomes import latest_of
from serving.service import Service

router = APIRouter()


@router.get("/v1/receipts/{receipt}")
async def receipt(receipt: str, caller: Customer, service: TheService) -> Response:
    """One receipt: what a query cost, and which documents it used."""
    record = await _find(service, receipt, caller.id)
    if record is None or record.account != caller.id:
        raise ApiError(404, "not_found", f"there is no receipt {receipt[:80]}")
    return json_response(await asyncio.to_thread(_whole, service.books, record))


async def _find(service: Service, receipt: str, account: str) -> UsageRecord | None:
    """A record wherever it is. Most are in the log; the others move from the spool to Redis to the log meanwhile."""
    logged = await asyncio.to_thread(lookup.find, service.books, receipt, account)
    if logged is None:
        spooled = await asyncio.to_thread(service.metering.spool.find, receipt)
        if spooled is not None:
            return spooled
        fresh = await service.metering.meter.find_record(account, receipt)
        if fresh is not None:
            return decode_record(fresh)
        logged = await asyncio.to_thread(lookup.find, service.books, receipt, account)
    return None if logged is None else logged.record


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
        "format": FORMAT,
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
