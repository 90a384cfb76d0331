"""``POST /v1/query``: a question, a cited answer, and who earns how much of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from serving import rendering
from serving.api import paid
from serving.api.bodies import BoundedRoute
from serving.api.dependencies import Payer, TheService, json_response
from serving.generators.query import PURPOSE_DEFAULT, TOP_K_DEFAULT, TOP_K_MAX, Query
from serving.rules.rulebook import EXTRACTIVE

router = APIRouter(route_class=BoundedRoute)

TopK = Annotated[int, Field(strict=True, ge=1, le=TOP_K_MAX)]


class QueryBody(BaseModel):
    """The body of a query."""

    model_config = ConfigDict(extra="ignore")

    question: str
    model: str = EXTRACTIVE
    top_k: TopK = TOP_K_DEFAULT
    purpose: str = PURPOSE_DEFAULT
    max_price: paid.Price = None


@router.post("/v1/query")
async def query(body: QueryBody, request: Request, caller: Payer, service: TheService) -> Response:
    """Answer a question from the documents, with citations and a receipt."""
    currency = service.books.currency
    answered = await service.answering.answer(
        caller,
        Query(
            question=body.question,
            model=body.model,
            top_k=body.top_k,
            purpose=body.purpose,
            max_price=paid.units(body.max_price, currency, "max_price"),
            idempotency=await paid.idempotency(request, caller, service.books.settings),
        ),
    )
    return json_response(
        rendering.answer(answered, currency),
        headers=paid.headers(
            answered.id, answered.charge, answered.free, answered.quota, currency, replayed=answered.replayed
        ),
    )
