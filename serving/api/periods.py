"""The operator's interface to periods: preview and close."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Final

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from serving.api.bodies import BoundedRoute
from serving.api.dependencies import Operator, TheService, json_response, operator, write
from serving.api.errors import translate
from serving.api.jobs import accepted, owner_of, prefers_async
from serving.api.leaving import while_there
from serving.closing import closing
from serving.jobs.periods import in_pool
from serving.store.jobs import Kind, Wish

_CLOSES_WAITING_MAX: Final = 16
"""How many of one operator's jobs to close may wait."""

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)], route_class=BoundedRoute)


class CloseBody(BaseModel):
    """How a period is closed."""

    early: bool = False


@router.get("/periods/{period}/preview")
async def preview(request: Request, period: str, service: TheService, caller: Operator) -> Response:
    """What closing the period now would give."""
    await service.metering.drain.flush()
    work = partial(closing.preview, service.books, period)
    found = await while_there(request, in_pool(service.pools.closing, caller.id, work))
    return json_response(found.summary(service.books.currency))


@router.post("/periods/{period}/close")
async def close(
    request: Request, period: str, service: TheService, caller: Operator, body: CloseBody | None = None
) -> Response:
    """Close a period: attribute it, post the credits, issue the statements; by a job for who prefers not to wait."""
    early = body is not None and body.early
    if prefers_async(request):
        await asyncio.to_thread(closing.ensure_closable, service.books, period, early=early)
        wish = Wish(Kind.CLOSE, period, json.dumps({"early": early}))
        add = partial(service.books.jobs.add, owner_of(caller), wish, count_max=_CLOSES_WAITING_MAX, size_max=0)
        return await accepted(request, service, await write(request, add))
    await service.metering.drain.flush()
    work = partial(closing.close, service.books, period, early=early)
    try:
        found = await while_there(request, in_pool(service.pools.closing, caller.id, work))
    except OSError as error:
        raise translate(error) from error
    return json_response(found.summary(service.books.currency))
