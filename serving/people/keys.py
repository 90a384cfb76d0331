"""API keys as an operator handles them: what is in the register, and what the meter must hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from metering import periods
from metering.meter import Meter
from metering.money import Currency
from retrieval.catalogue import Catalogue
from serving.people.identity import ApiKey, Identities, IdentityError, Role


class UnknownOwner(IdentityError):
    """An owner that is not registered in that role."""


def check_owner(identities: Identities, catalogue: Catalogue, role: str, owner: str) -> tuple[Role, str]:
    """The role, and the name of the owner, if keys can be made for them.

    Raises:
        UnknownOwner: there is no such role, or nobody of that id in it.
    """
    registers: dict[Role, Callable[[], dict[str, str]]] = {
        "customer": identities.customers,
        "contributor": catalogue.contributors,
        "operator": identities.operators,
    }
    for known, names in registers.items():
        if role == known and owner in (found := names()):
            return known, found[owner]
    raise UnknownOwner(f"there is no {role} {owner}")


async def revoke(identities: Identities, meter: Meter, identifier: str) -> ApiKey:
    """Refuse a key from now on, for ever. Repeating it is harmless.

    Raises:
        UnknownKey: there is none of that id.
        MeterUnavailable: the key is revoked, and the meter, which pays nothing now, hears of it when it is back.
    """
    key = await asyncio.to_thread(identities.revoke, identifier)
    if key.role == "customer":
        await meter.revoke(key.owner, key.id)
    return key


def render(key: ApiKey, currency: Currency) -> dict[str, Any]:
    """A key for the outside. Only a customer's key has limits: only customers pay."""
    found: dict[str, Any] = {
        "id": key.id,
        "role": key.role,
        "owner": key.owner,
        "created": periods.timestamp(key.created_ms),
        "revoked": None if key.revoked_ms is None else periods.timestamp(key.revoked_ms),
    }
    if key.role == "customer":
        found["limits"] = key.limits.to_json(currency)
    return found
