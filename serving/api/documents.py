"""The contributor's documents: add or replace, list, show, withdraw."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request, Response

from retrieval.catalogue import StoredDocument, ensure_free, find, state_of
from retrieval.documents import Document
from retrieval.ingest import Ingest
from retrieval.readers import DocumentLine, decode_line
from serving import rendering
from serving.api.dependencies import Contributor, TheService, json_response, one_of_few, write
from serving.api.errors import ApiError
from serving.api.jobs import accepted, owner_of, prefers_async
from serving.api.leaving import while_there
from serving.jobs.documents import take_in
from serving.people.identity import Caller, new_id
from serving.service import Service
from serving.store.jobs import Job, Kind, Wish

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
    """Add a document, or replace the one of the same id; it can be retrieved when this returns.

    A long one is taken in by a job, and so is any for who prefers not to wait.
    """
    decode = partial(_decode, service, caller)
    line, document = await service.pools.uploads.run(caller.id, decode, await request.body())
    known = await asyncio.to_thread(service.books.catalogue.get, [document.id])
    if prefers_async(request) or len(document.text) > service.books.settings.job_chars:
        return await accepted(request, service, await _promise(request, service, caller, line, document))
    stored = await while_there(request, take_in(service, document))
    return json_response(await _shown(service, stored), 200 if document.id in known else 201)


def _decode(service: Service, caller: Caller, body: bytes) -> tuple[DocumentLine, Document]:
    """The line that the contributor sent, its id given where it has none, and its document."""
    line = decode_line(body)
    if line.contributor not in (None, caller.id):
        raise ApiError(403, "wrong_contributor", "a document can be brought in your own name only", param="contributor")
    line.id = line.id or new_id(line.title or "document")
    return line, line.document(caller.id, service.books.currency.parse_amount)


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


async def _promise(request: Request, service: Service, caller: Caller, line: DocumentLine, document: Document) -> Job:
    """Store a job that takes in the document, once nothing stands against that."""
    run, settings = partial(service.pools.uploads.run, caller.id), service.books.settings
    ingest = await run(Ingest, service.books.catalogue, service.embedder)
    await run(ingest.check, document)
    text = (await run(msgspec.json.encode, line)).decode()

    def basis(connection: sa.Connection) -> str:
        stored = find(connection, document.id)
        ensure_free(stored, document)
        return state_of(stored)

    add = partial(
        service.books.jobs.add,
        owner_of(caller),
        Wish(Kind.DOCUMENT, document.id, text, len(document.text)),
        count_max=settings.concurrent_uploads,
        size_max=settings.waiting_chars,
        basis=basis,
    )
    return await write(request, add)
