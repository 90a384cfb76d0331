"""The transparency log, for anyone."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from serving.api.dependencies import TheService, json_response
from serving.closing import transparency_log

router = APIRouter()


@router.get("/v1/checkpoint")
async def checkpoint(request: Request, service: TheService) -> Response:
    """The signed root of the log of runs; the note alone if plain text is wanted."""
    found = await asyncio.to_thread(transparency_log.checkpoint, service.books)
    if "text/plain" in request.headers.get("accept", ""):
        return Response(found["checkpoint"], media_type="text/plain; charset=utf-8")
    return json_response(found)


@router.get("/v1/checkpoint/consistency")
async def consistency(since: Annotated[int, Query(alias="from", ge=0)], service: TheService) -> Response:
    """The proof that the log only grew since it had so many runs."""
    return json_response(await asyncio.to_thread(transparency_log.consistency, service.books, since))
