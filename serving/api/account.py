"""The customer's account, and the alert of its low balance."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from serving.api.alerts import AlertBody, change_alert
from serving.api.bodies import BoundedRoute
from serving.api.dependencies import Customer, TheService, json_response
from serving.money import customers, funding
from serving.notify import alerts

router = APIRouter(route_class=BoundedRoute)


@router.get("/v1/account")
async def account(caller: Customer, service: TheService) -> Response:
    """What the customer has left."""
    found = await funding.balance_of(service.books, service.metering.meter, caller.id)
    return json_response({"id": caller.id, **customers.money(found, service.books)})


@router.get("/v1/account/alert")
async def alert(caller: Customer, service: TheService) -> Response:
    """When the customer's low balance is signalled, and where."""
    found = await asyncio.to_thread(alerts.of, service.books, caller.id)
    return json_response(alerts.render(found, service.books))


@router.put("/v1/account/alert")
async def set_alert(body: AlertBody, caller: Customer, service: TheService) -> Response:
    """Choose when and where; the secret of a new webhook is shown once."""
    return json_response(await change_alert(service, caller.id, body))
