"""The operator's interface to periods: preview and close."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from serving.api.dependencies import TheService, json_response, operator
from serving.api.errors import ApiError
from serving.closing import closing

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)])


class CloseBody(BaseModel):
    """How a period is closed."""

    early: bool = False


@router.get("/periods/{period}/preview")
async def preview(period: str, service: TheService) -> Response:
    """What closing the period now would give."""
    await service.metering.drain.flush()
    found = await asyncio.to_thread(closing.preview, service.books, period)
    return json_response(found.summary(service.books.currency))


@router.post("/periods/{period}/close")
async def close(period: str, service: TheService, body: CloseBody | None = None) -> Response:
    """Close a period: attribute it, post the credits, issue the statements."""
    await service.metering.drain.flush()
    early = body is not None and body.early
    try:
        found = await asyncio.to_thread(closing.close, service.books, period, early=early)
    except OSError as error:
        raise ApiError(503, "storage", f"the run could not be stored: {error.strerror}; close it again") from error
    return json_response(found.summary(service.books.currency))
