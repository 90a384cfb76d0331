"""``GET /v1/models``: what can be paid for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Response

from metering.pricing import UnknownModel
from serving.api.dependencies import TheService, customer, json_response
from serving.service import Service

router = APIRouter()


@router.get("/v1/models", dependencies=[Depends(customer)])
async def models(service: TheService) -> Response:
    """The models that are served and have a price."""
    return json_response({"object": "list", "data": [_model(name) for name in _sold(service)]})


@router.get("/v1/models/{model:path}", dependencies=[Depends(customer)])
async def model(model: str, service: TheService) -> Response:
    """One model."""
    if model not in _sold(service):
        raise UnknownModel(f"there is no model {model!r}")
    return json_response(_model(model))


def _sold(service: Service) -> list[str]:
    served = service.answering.models | {service.embeddings.model}
    return sorted(served & set(service.books.rulebook.prices.models))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "patronage"}
