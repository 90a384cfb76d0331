"""The operator's interface to prices."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Depends, Response

from serving.api.dependencies import TheService, json_response, operator
from serving.rules import pricelist

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)])


@router.get("/prices")
async def prices(service: TheService) -> Response:
    """Every price book, in the order in which they take effect."""
    books = service.books
    found = await asyncio.to_thread(books.rulebook.price_books)
    return json_response({"data": pricelist.render(found, books.currency, time.time_ns() // 1_000_000)})


@router.post("/prices")
async def set_prices(body: dict[str, Any], service: TheService) -> Response:
    """Add a price book, for queries from a moment on."""
    books = service.books
    found = pricelist.parse(body, books.currency)
    book = await asyncio.to_thread(books.rulebook.set_prices, found.models, found.free_per_month, found.effective_ms)
    return json_response(pricelist.render_book(book, books.currency, in_force=False), 201)
