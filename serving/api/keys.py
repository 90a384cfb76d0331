"""The operator's interface to API keys."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from serving.api.bodies import BoundedRoute
from serving.api.dependencies import TheService, json_response, operator
from serving.people import keys
from serving.people.identity import Role
from serving.rules import limits
from serving.rules.limits import KeyLimits

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)], route_class=BoundedRoute)


class KeyBody(BaseModel):
    """A key to make."""

    role: Role
    owner: str
    limits: dict[str, Any] = Field(default_factory=dict)


@router.get("/keys")
async def listed(service: TheService, owner: str | None = None) -> Response:
    """Every key, or those of one owner, revoked ones too; never what makes them secret."""
    found = await asyncio.to_thread(service.books.identities.keys, owner)
    return json_response({"data": [keys.render(key, service.books.currency) for key in found]})


@router.post("/keys")
async def add(body: KeyBody, service: TheService) -> Response:
    """Make another key; it is shown once."""
    books = service.books
    role, name = await asyncio.to_thread(keys.check_owner, books.identities, books.catalogue, body.role, body.owner)
    own = KeyLimits(**limits.parse(body.limits, books.currency))
    key = await asyncio.to_thread(books.identities.issue_key, role, body.owner, own)
    return json_response({"id": body.owner, "name": name, "api_key": key}, 201)


@router.put("/keys/{key}/limits")
async def set_limits(key: str, body: dict[str, Any], service: TheService) -> Response:
    """Change limits of a key; those that are left out stay as they are."""
    changes = limits.parse(body, service.books.currency)
    found = await asyncio.to_thread(service.books.identities.set_limits, key, changes)
    return json_response(keys.render(found, service.books.currency))


@router.delete("/keys/{key}")
async def revoke(key: str, service: TheService) -> Response:
    """Refuse a key from now on, for ever."""
    found = await keys.revoke(service.books.identities, service.metering.meter, key)
    return json_response(keys.render(found, service.books.currency))
