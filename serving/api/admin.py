"""The operator's interface: customers, contributors, credits, policy and periods."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from metering.money import MoneyError
from retrieval.documents import check_id
from serving import closing, funding
from serving.api import paid
from serving.api.context import TheService, json_response, operator
from serving.api.errors import ApiError
from serving.identity import IdentityError, check_name, new_id

router = APIRouter(prefix="/v1/admin", dependencies=[Depends(operator)])


class Person(BaseModel):
    """Someone to register."""

    name: str
    id: str | None = None


class Credit(BaseModel):
    """A payment."""

    amount: paid.Money | str
    reference: str


class PolicyBody(BaseModel):
    """What an operator decides of a policy."""

    data_share_ppm: int = Field(strict=True, ge=0, le=1_000_000)
    ablation_ppm: int | None = Field(default=None, strict=True, ge=0, le=1_000_000)


class CloseBody(BaseModel):
    """How a period is closed."""

    early: bool = False


@router.get("/customers")
async def customers(service: TheService) -> Response:
    """Every customer with what is left on the account."""
    found = []
    for customer, name in service.books.identities.customers().items():
        balance = await service.metering.meter.balance(customer)
        amount = service.books.currency.amount(balance.funded - balance.spent)
        found.append({"id": customer, "name": name, "balance": amount})
    return json_response({"data": found})


@router.post("/customers")
async def add_customer(body: Person, service: TheService) -> Response:
    """Register a customer; the key is shown once."""
    customer = check_id("customer", body.id or new_id(body.name))
    service.books.identities.add_customer(customer, body.name)
    balance = await funding.open_account(service.books, service.metering.meter, customer)
    return json_response(
        {
            "id": customer,
            "name": body.name,
            "api_key": service.books.identities.issue_key("customer", customer),
            "balance": service.books.currency.amount(balance.available),
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


@router.get("/contributors")
async def contributors(service: TheService) -> Response:
    """Every contributor."""
    found = service.books.catalogue.contributors()
    return json_response({"data": [{"id": each, "name": name} for each, name in found.items()]})


@router.post("/contributors")
async def add_contributor(body: Person, service: TheService) -> Response:
    """Register a contributor; the key is shown once."""
    contributor = check_id("contributor", body.id or new_id(body.name))
    if not service.books.catalogue.add_contributor(contributor, check_name(body.name)):
        raise IdentityError(f"contributor id {contributor} is taken")
    key = service.books.identities.issue_key("contributor", contributor)
    return json_response({"id": contributor, "name": body.name, "api_key": key}, 201)


@router.get("/policy")
async def policy(service: TheService) -> Response:
    """The policy in force."""
    return json_response(service.books.rulebook.policy.to_json())


@router.post("/policy")
async def adopt_policy(body: PolicyBody, service: TheService) -> Response:
    """Put a new policy in force, for queries from now on."""
    adopted = service.books.rulebook.adopt_policy(body.data_share_ppm, body.ablation_ppm)
    return json_response(adopted.to_json(), 201)


@router.get("/periods/{period}/preview")
async def preview(period: str, service: TheService) -> Response:
    """What closing the period now would give."""
    await service.metering.drain.settle()
    found = await asyncio.to_thread(closing.preview, service.books, period)
    return json_response(found.summary(service.books.currency))


@router.post("/periods/{period}/close")
async def close(period: str, service: TheService, body: CloseBody | None = None) -> Response:
    """Close a period: attribute it, post the credits, issue the statements."""
    await service.metering.drain.settle()
    early = body is not None and body.early
    try:
        found = await asyncio.to_thread(closing.close, service.books, period, early=early)
    except OSError as error:
        raise ApiError(503, "storage", f"the run could not be stored: {error.strerror}; close it again") from error
    return json_response(found.summary(service.books.currency))
