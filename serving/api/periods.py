"""The operator's interface to periods: preview and close."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from serving.api.bodies import BoundedRoute
from serving.api.dependencies import Operator, TheService, json_response, operator
from serving.api.errors import ApiError
from serving.closing import closing

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)], route_class=BoundedRoute)


class CloseBody(BaseModel):
    """How a period is closed."""

    early: bool = False


@router.get("/periods/{period}/preview")
async def preview(period: str, service: TheService, caller: Operator) -> Response:
    """What closing the period now would give."""
    await service.metering.drain.flush()
    found = await service.pools.closing.run(caller.id, closing.preview, service.books, period)
    return json_response(found.summary(service.books.currency))


@router.post("/periods/{period}/close")
async def close(period: str, service: TheService, caller: Operator, body: CloseBody | None = None) -> Response:
    """Close a period: attribute it, post the credits, issue the statements."""
    await service.metering.drain.flush()
    early = body is not None and body.early
    closing_now = partial(closing.close, service.books, period, early=early)
    try:
        found = await service.pools.closing.run(caller.id, closing_now)
    except OSError as error:
        raise ApiError(503, "storage", f"the run could not be stored: {error.strerror}; close it again") from error
    return json_response(found.summary(service.books.currency))
