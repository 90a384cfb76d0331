"""The contributor's documents: add or replace, list, show, withdraw."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from retrieval.catalogue import StoredDocument, prepare_passage
from retrieval.ingest import Ingest
from retrieval.readers import DocumentLine, decode_line
from serving import rendering
from serving.api.dependencies import Contributor, TheService, json_response, one_of_few
from serving.api.errors import ApiError
from serving.api.leaving import while_there
from serving.people.identity import new_id
from serving.service import Service

router = APIRouter()

_PAGE_MAX = 1_000


@router.post(
    "/v1/documents",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object", "required": ["text"]}}},
        }
    },
)
async def put(request: Request, caller: Contributor, service: TheService) -> Response:
    """Add a document, or replace the one of the same id; it can be retrieved when this returns."""
    line = await service.pools.uploads.run(caller.id, decode_line, await request.body())
    if line.contributor not in (None, caller.id):
        raise ApiError(403, "wrong_contributor", "a document can be brought in your own name only", param="contributor")
    line.id = line.id or new_id(line.title or "document")
    known = await asyncio.to_thread(service.books.catalogue.get, [line.id])
    stored = await while_there(request, _ingest(service, line, caller.id))
    return json_response(await _shown(service, stored), 200 if line.id in known else 201)


@router.get("/v1/documents")
async def listed(
    caller: Contributor, service: TheService, after: str = "", limit: Annotated[int, Query(ge=1, le=_PAGE_MAX)] = 100
) -> Response:
    """The contributor's documents in the order of their ids; ``next`` is what to pass as ``after``."""
    found = await asyncio.to_thread(service.books.catalogue.page, caller.id, after=after, limit=limit)
    more = found[-1].id if len(found) == limit else None
    data = await asyncio.to_thread(rendering.documents, found, service.books.catalogue, service.books.currency)
    return json_response({"data": data, "next": more})


@router.get("/v1/documents/{document:path}")
async def show(document: str, caller: Contributor, service: TheService) -> Response:
    """One document."""
    return json_response(await _shown(service, await _own(service, caller.id, document)))


@router.delete("/v1/documents/{document:path}", dependencies=[Depends(one_of_few)])
async def withdraw(document: str, caller: Contributor, service: TheService) -> Response:
    """Withdraw a document: no query that begins after this response retrieves or cites it."""
    await _own(service, caller.id, document)
    await asyncio.to_thread(service.books.catalogue.withdraw, [document], caller.id)
    return json_response(await _shown(service, await _own(service, caller.id, document)))


async def _shown(service: Service, stored: StoredDocument) -> dict[str, Any]:
    books = service.books
    (found,) = await asyncio.to_thread(rendering.documents, [stored], books.catalogue, books.currency)
    return found


async def _own(service: Service, contributor: str, document: str) -> StoredDocument:
    found = (await asyncio.to_thread(service.books.catalogue.get, [document])).get(document)
    if found is None or found.contributor != contributor:
        raise ApiError(404, "not_found", f"you have no document {document[:80]}")
    return found


async def _ingest(service: Service, line: DocumentLine, contributor: str) -> StoredDocument:
    """Take in a document, a passage at a time; before it is stored, a contributor who leaves stops it."""
    document = line.document(contributor, service.books.currency.parse_amount)
    run = partial(service.pools.uploads.run, contributor)
    ingest = await run(Ingest, service.books.catalogue, service.embedder)
    spans = await run(ingest.cut, document)
    parts = None
    if spans is not None:
        parts = [await run(prepare_passage, document.text, each, service.embedder) for each in spans]
    return await run(ingest.store, document, parts)
