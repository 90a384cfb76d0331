"""``POST /v1/embeddings``, as the official ``openai`` client expects it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from retrieval.embedding import Vector
from serving.api import paid
from serving.api.bodies import BoundedRoute, Items
from serving.api.dependencies import Payer, TheService, json_response
from serving.api.errors import ApiError
from serving.api.leaving import while_there

router = APIRouter(route_class=BoundedRoute)


class EmbeddingsBody(BaseModel):
    """The body of an embedding. ``max_price`` goes in the client's ``extra_body``."""

    model_config = ConfigDict(extra="ignore")

    model: str
    input: str | Items[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    max_price: paid.Price = None


@router.post("/v1/embeddings")
async def embed(body: EmbeddingsBody, request: Request, caller: Payer, service: TheService) -> Response:
    """The vectors of some texts."""
    currency = service.books.currency
    if body.dimensions not in (None, service.embeddings.dimension):
        size = service.embeddings.dimension
        raise ApiError(422, "invalid", f"dimensions: this model's vectors have {size}", param="dimensions")
    embedding = service.embeddings.embed(
        caller,
        body.model,
        [body.input] if isinstance(body.input, str) else body.input,
        max_price=paid.units(body.max_price, currency, "max_price"),
        idempotency=await paid.idempotency(request, caller, service.books.settings),
    )
    embedded = await while_there(request, embedding)
    bought = embedded.paid
    # Beside the event loop, and not in turn: it is paid by now, so it must not be refused.
    loop, beside = asyncio.get_running_loop(), service.pools.embeddings.threads
    data = await loop.run_in_executor(beside, _data, embedded.vectors, body.encoding_format)
    return json_response(
        {
            "object": "list",
            "model": body.model,
            "data": data,
            "usage": {"prompt_tokens": bought.tokens, "total_tokens": bought.tokens},
            "receipt": {"id": bought.receipt, "charge": currency.amount(bought.charge)},
        },
        headers=paid.headers(
            bought.receipt, bought.charge, bought.free, embedded.quota, currency, replayed=embedded.replayed
        ),
    )


def _data(vectors: Sequence[Vector], encoding: str) -> msgspec.Raw:
    """The vectors as JSON, one at a time: the event loop has its turns between them."""
    rows = (
        msgspec.json.encode({"object": "embedding", "index": index, "embedding": _encode(vector, encoding)})
        for index, vector in enumerate(vectors)
    )
    return msgspec.Raw(b"[" + b",".join(rows) + b"]")


def _encode(vector: Vector, encoding: str) -> list[float] | str:
    """A list of numbers, or the base64 of little-endian 32-bit floats."""
    if encoding == "float":
        found: list[float] = vector.tolist()
        return found
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
