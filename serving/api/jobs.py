"""Jobs: what a caller follows whose work goes on after the answer."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response

from metering import periods
from serving import rendering
from serving.api.dependencies import TheService, caller_of, json_response, one_of_few
from serving.api.errors import ApiError
from serving.people.identity import Caller
from serving.service import Service
from serving.store.jobs import Job, Kind, Owner, State

router = APIRouter(prefix="/v1/jobs")

Anyone = Annotated[Caller, Depends(caller_of)]
_LISTED: Final = 100
_UNITS: Final = {Kind.DOCUMENT: "passages", Kind.CLOSE: "records"}
_LOOK_SECONDS: Final = 1
RESPOND_ASYNC: Final = "respond-async"


@router.get("")
async def listed(caller: Anyone, service: TheService) -> Response:
    """The caller's newest jobs."""
    found = await asyncio.to_thread(service.books.jobs.newest, owner_of(caller), _LISTED)
    return json_response({"data": await _shown(service, found)})


@router.get("/{job}")
async def show(job: str, caller: Anyone, service: TheService) -> Response:
    """One job of the caller's."""
    return await _response(service, await asyncio.to_thread(service.books.jobs.get, owner_of(caller), job))


@router.delete("/{job}", dependencies=[Depends(one_of_few)])
async def cancel(job: str, caller: Anyone, service: TheService) -> Response:
    """Cancel a job that has not ended; of one that has, nothing is undone."""
    return await _response(service, await asyncio.to_thread(service.books.jobs.cancel, owner_of(caller), job))


def owner_of(caller: Caller) -> Owner:
    """Whose jobs a caller has."""
    return Owner(caller.role, caller.id)


def prefers_async(request: Request) -> bool:
    """Whether the client prefers not to wait (RFC 7240)."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(each.partition(";")[0].strip().lower() == RESPOND_ASYNC for each in preferences)


async def accepted(request: Request, service: Service, job: Job) -> Response:
    """The answer to what a job does: 202, and where to follow it."""
    headers = {"location": f"/v1/jobs/{job.id}", "retry-after": str(_LOOK_SECONDS)}
    if prefers_async(request):
        headers["preference-applied"] = RESPOND_ASYNC
    (shown,) = await _shown(service, [job])
    return json_response(shown, 202, headers)


async def _response(service: Service, job: Job | None) -> Response:
    if job is None:
        raise ApiError(404, "not_found", "you have no such job, or it ended long ago")
    headers = {"retry-after": str(_LOOK_SECONDS)} if job.ended_ms is None else None
    (shown,) = await _shown(service, [job])
    return json_response(shown, headers=headers)


async def _shown(service: Service, jobs: list[Job]) -> list[dict[str, Any]]:
    stored = [job.subject for job in jobs if _is_stored(job)]
    documents = await asyncio.to_thread(_documents, service, stored) if stored else {}
    return [
        {
            "id": job.id,
            "kind": job.kind,
            "subject": job.subject,
            "state": job.state,
            "progress": {"done": job.done, "total": job.total, "unit": _UNITS[job.kind]},
            "created": periods.timestamp(job.created_ms),
            "ended": None if job.ended_ms is None else periods.timestamp(job.ended_ms),
            "result": documents[job.subject] if _is_stored(job) else job.result,
            "error": job.error,
        }
        for job in jobs
    ]


def _is_stored(job: Job) -> bool:
    return job.kind is Kind.DOCUMENT and job.state is State.DONE


def _documents(service: Service, identifiers: list[str]) -> dict[str, dict[str, Any]]:
    catalogue = service.books.catalogue
    found = catalogue.get(identifiers)
    shown = rendering.documents(list(found.values()), catalogue, service.books.currency)
    return dict(zip(found, shown, strict=True))
