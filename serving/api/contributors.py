"""The operator's interface to contributors."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from retrieval.documents import check_id
from serving.api.bodies import BoundedRoute
from serving.api.dependencies import TheService, json_response, operator
from serving.people.identity import IdentityError, check_name, new_id

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)], route_class=BoundedRoute)


class NewContributor(BaseModel):
    """A contributor to register."""

    name: str
    id: str | None = None


@router.get("/contributors")
async def contributors(service: TheService) -> Response:
    """Every contributor."""
    found = await asyncio.to_thread(service.books.catalogue.contributors)
    return json_response({"data": [{"id": each, "name": name} for each, name in found.items()]})


@router.post("/contributors")
async def add_contributor(body: NewContributor, service: TheService) -> Response:
    """Register a contributor; the key is shown once."""
    contributor = check_id("contributor", body.id or new_id(body.name))
    if not await asyncio.to_thread(service.books.catalogue.add_contributor, contributor, check_name(body.name)):
        raise IdentityError(f"contributor id {contributor} is taken")
    key = await asyncio.to_thread(service.books.identities.issue_key, "contributor", contributor)
    return json_response({"id": contributor, "name": body.name, "api_key": key}, 201)
