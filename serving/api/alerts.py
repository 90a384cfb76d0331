"""Alerts: the settings that customers and operators may change, in the same form for both."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serving.api import paid
from serving.notify import alerts
from serving.service import Service


class AlertBody(BaseModel):
    """What is left out stays as it is."""

    below: paid.Money | str | None = None
    webhook: str | None = None


async def change_alert(service: Service, customer: str, body: AlertBody) -> dict[str, Any]:
    """Change an alert, and give it as it is then."""
    changes = body.model_dump(exclude_unset=True)
    return await alerts.change(service.books, service.metering.meter, customer, changes)
