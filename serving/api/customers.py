"""The operator's interface to customers: who they are, what they paid, how far below zero they may go."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from metering.money import Currency, MoneyError
from retrieval.documents import check_id
from serving.api import paid
from serving.api.alerts import AlertBody, change_alert
from serving.api.bodies import BoundedRoute
from serving.api.dependencies import TheService, json_response, operator
from serving.money import funding
from serving.money.customers import money, show
from serving.people.identity import new_id

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)], route_class=BoundedRoute)


class NewCustomer(BaseModel):
    """A customer to register; with a credit limit, an invoiced one."""

    name: str
    id: str | None = None
    credit_limit: paid.Money | str | None = None


class CreditLimit(BaseModel):
    """How far below zero an account may go."""

    amount: paid.Money | str


class Credit(BaseModel):
    """A payment."""

    amount: paid.Money | str
    reference: str


@router.get("/customers")
async def customers(service: TheService) -> Response:
    """Every customer with what is left on the account."""
    found = []
    for customer, name in (await asyncio.to_thread(service.books.identities.customers)).items():
        balance = await funding.balance_of(service.books, service.metering.meter, customer)
        amount = service.books.currency.amount(balance.funded - balance.spent)
        found.append({"id": customer, "name": name, "balance": amount})
    return json_response({"data": found})


@router.post("/customers")
async def add_customer(body: NewCustomer, service: TheService) -> Response:
    """Register a customer; the key is shown once."""
    books, meter = service.books, service.metering.meter
    customer = check_id("customer", body.id or new_id(body.name))
    limit = None if body.credit_limit is None else _credit_limit(body.credit_limit, books.currency)
    await asyncio.to_thread(books.identities.add_customer, customer, body.name)
    balance = await funding.open_account(books, meter, customer)
    if limit is not None:
        balance = await funding.set_credit_limit(books, meter, customer, limit)
    return json_response(
        {
            "id": customer,
            "name": body.name,
            "api_key": await asyncio.to_thread(books.identities.issue_key, "customer", customer),
            "balance": service.books.currency.amount(balance.funded - balance.spent),
        },
        201,
    )


@router.post("/customers/{customer}/credits")
async def credit(customer: str, body: Credit, service: TheService) -> Response:
    """Book a payment; the same reference counts once."""
    units = paid.units(body.amount, service.books.currency, "amount")
    if units is None:
        raise MoneyError("an amount is needed")
    balance = await funding.credit(service.books, service.metering.meter, customer, units, body.reference)
    return json_response({"balance": service.books.currency.amount(balance.funded - balance.spent)})


@router.get("/customers/{customer}")
async def show_customer(customer: str, service: TheService) -> Response:
    """One customer: money, alert and keys."""
    return json_response(await show(service.books, service.metering.meter, customer))


@router.put("/customers/{customer}/credit-limit")
async def limit(customer: str, body: CreditLimit, service: TheService) -> Response:
    """Change how far below zero an account may go; 0 makes it prepaid."""
    units = _credit_limit(body.amount, service.books.currency)
    balance = await funding.set_credit_limit(service.books, service.metering.meter, customer, units)
    return json_response({"id": customer, **money(balance, service.books)})


@router.put("/customers/{customer}/alert")
async def alert(customer: str, body: AlertBody, service: TheService) -> Response:
    """Choose when a low balance is signalled, and where; the secret of a new webhook is shown once."""
    await asyncio.to_thread(funding.check_customer, service.books, customer)
    return json_response(await change_alert(service, customer, body))


def _credit_limit(amount: paid.Money | str, currency: Currency) -> int:
    text, code = (amount, None) if isinstance(amount, str) else (amount.amount, amount.currency)
    units = currency.parse_amount(text, code)
    if units < 0:
        raise MoneyError("a credit limit is zero or more")
    return units
