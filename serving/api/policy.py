"""The operator's interface to the policy."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from serving.api.bodies import BoundedRoute
from serving.api.dependencies import TheService, json_response, operator

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)], route_class=BoundedRoute)


class PolicyBody(BaseModel):
    """What an operator decides of a policy."""

    data_share_ppm: int = Field(strict=True, ge=0, le=1_000_000)
    ablation_ppm: int | None = Field(default=None, strict=True, ge=0, le=1_000_000)
    value_function: str | None = None
    generated_value_function: str | None = None


@router.get("/policy")
async def policy(service: TheService) -> Response:
    """The policy in force."""
    return json_response(service.books.rulebook.policy.to_json())


@router.post("/policy")
async def adopt_policy(body: PolicyBody, service: TheService) -> Response:
    """Put a new policy in force, for queries from now on."""
    adopt, validate = service.books.rulebook.adopt_policy, service.valuing.prove
    adopted = await asyncio.to_thread(adopt, body.model_dump(), validate)
    return json_response(adopted.to_json(), 201)
