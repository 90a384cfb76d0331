"""Customers as they and the operator see them: money, keys, alert."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from metering import periods
from metering.meter import Balance, Meter
from serving.books import Books
from serving.money.booking import Unknown
from serving.money.funding import balance_of
from serving.notify import alerts
from serving.people import keys


def money(found: Balance, books: Books) -> dict[str, Any]:
    """An account for the outside."""
    amount = books.currency.amount
    per_month = books.rulebook.prices.free_per_month
    left = found.free_left(periods.of(time.time_ns() // 1_000_000), per_month)
    return {
        "billing": "invoiced" if found.credit_limit else "prepaid",
        "balance": amount(found.funded - found.spent),
        "held": amount(found.held),
        "credit_limit": amount(found.credit_limit),
        "available": amount(found.available),
        "free": {"per_month": amount(per_month), "left": amount(left)},
    }


async def show(books: Books, meter: Meter, customer: str) -> dict[str, Any]:
    """Everything about one customer.

    Raises:
        Unknown: there is no such customer.
    """
    names = await asyncio.to_thread(books.identities.customers)
    if customer not in names:
        raise Unknown(f"there is no customer {customer}")
    balance = await balance_of(books, meter, customer)
    own = [key for key in await asyncio.to_thread(books.identities.keys, customer) if key.role == "customer"]
    return {
        "id": customer,
        "name": names[customer],
        **money(balance, books),
        "alert": alerts.render(await asyncio.to_thread(alerts.of, books, customer), books),
        "keys": [keys.render(key, books.currency) for key in own],
    }
