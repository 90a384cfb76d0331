"""Commands for people: operators, contributors, customers and their keys."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from retrieval.documents import check_id
from serving import funding
from serving.assembly import Books, open_books, open_metering
from serving.cli.console import CommandError, Out, current
from serving.identity import ROLES, check_name, new_id

Id = Annotated[str | None, typer.Option("--id", help="An id of your choice. Default: made from the name.")]

_operator = typer.Typer(help="Operators run the server.", no_args_is_help=True)
_contributor = typer.Typer(help="Contributors bring documents and are paid.", no_args_is_help=True)
_customer = typer.Typer(help="Customers pay for queries.", no_args_is_help=True)
_key = typer.Typer(help="API keys.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_operator, name="operator")
    app.add_typer(_contributor, name="contributor")
    app.add_typer(_customer, name="customer")
    app.add_typer(_key, name="key")


@_operator.command("add", epilog="Example: patronage operator add 'Ada Lovelace'")
def add_operator(name: str, identifier: Id = None) -> None:
    """Register an operator; the API key is shown once."""
    settings, out = current()
    with open_books(settings) as books:
        operator = check_id("operator", identifier or new_id(name))
        books.identities.add_operator(operator, name)
        _show(out, operator, name, books.identities.issue_key("operator", operator))


@_contributor.command("add", epilog="Example: patronage contributor add 'Mary Shelley' --id mary")
def add_contributor(name: str, identifier: Id = None) -> None:
    """Register a contributor; the API key is shown once."""
    settings, out = current()
    with open_books(settings) as books:
        contributor = check_id("contributor", identifier or new_id(name))
        if not books.catalogue.add_contributor(contributor, check_name(name)):
            raise CommandError(
                f"contributor id {contributor} is taken; for another key of theirs: "
                f"patronage key add contributor {contributor}"
            )
        _show(out, contributor, name, books.identities.issue_key("contributor", contributor))


@_contributor.command("list")
def list_contributors() -> None:
    """Every contributor."""
    settings, out = current()
    with open_books(settings) as books:
        found = books.catalogue.contributors()
    if not out.result({"contributors": [{"id": each, "name": name} for each, name in found.items()]}):
        out.table(["id", "name"], list(found.items()))


@_customer.command("add", epilog="Example: patronage customer add 'Acme Research' --id acme --credit 25")
def add_customer(
    name: str,
    identifier: Id = None,
    credit: Annotated[str | None, typer.Option(help="Credit the account begins with, such as 25.00.")] = None,
) -> None:
    """Register a customer; the API key is shown once."""
    settings, out = current()
    with open_books(settings) as books:
        customer = check_id("customer", identifier or new_id(check_name(name)))
        units = None if credit is None else books.currency.parse_positive(credit)
        balance = asyncio.run(_open(books, customer, name, units))
        key = books.identities.issue_key("customer", customer)
        _show(out, customer, name, key, balance=books.currency.amount(balance))


@_customer.command(
    "credit",
    context_settings={"ignore_unknown_options": True},  # so that -5 is a bad amount and not a bad option
    epilog="Example: patronage customer credit acme 25.00 --reference invoice-17",
)
def credit_customer(
    customer: str,
    amount: str,
    reference: Annotated[str, typer.Option(help="Names the payment; the same reference counts once.")],
) -> None:
    """Book a payment of a customer."""
    settings, out = current()
    with open_books(settings) as books:
        units = books.currency.parse_positive(amount)

        async def book() -> int:
            async with open_metering(books) as metering:
                found = await funding.credit(books, metering.meter, customer, units, reference)
                return found.funded - found.spent

        balance = books.currency.amount(asyncio.run(book()))
    if not out.result({"balance": balance}):
        out.print(f"balance of {customer}: {balance['amount']} {balance['currency']}")


@_customer.command(
    "refund",
    context_settings={"ignore_unknown_options": True},
    epilog="Example: patronage customer refund acme 5.00 --reference refund-3 --reason 'left the service'",
)
def refund_customer(
    customer: str,
    amount: str,
    reference: Annotated[str, typer.Option(help="Names the refund; the same reference counts once.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept for ever.")],
) -> None:
    """Pay a customer back what is neither spent nor held by queries in progress."""
    settings, out = current()
    with open_books(settings) as books:
        units = books.currency.parse_positive(amount)

        async def book() -> int:
            async with open_metering(books) as metering:
                found = await funding.refund(books, metering.meter, customer, units, reference, reason)
                return found.funded - found.spent

        balance = books.currency.amount(asyncio.run(book()))
    if not out.result({"balance": balance}):
        out.print(f"balance of {customer}: {balance['amount']} {balance['currency']}")


@_customer.command("list")
def list_customers() -> None:
    """Every customer with the balance."""
    settings, out = current()
    with open_books(settings) as books:
        names = books.identities.customers()

        async def balances() -> dict[str, int]:
            async with open_metering(books) as metering:
                found = {customer: await metering.meter.balance(customer) for customer in names}
                return {customer: each.funded - each.spent for customer, each in found.items()}

        amounts = {customer: books.currency.amount(units) for customer, units in asyncio.run(balances()).items()}
    rows = [{"id": each, "name": name, "balance": amounts[each]} for each, name in names.items()]
    if not out.result({"customers": rows}):
        table = [(each, name, f"{amounts[each]['amount']} {amounts[each]['currency']}") for each, name in names.items()]
        out.table(["id", "name", "balance"], table, numbers=[2])


@_key.command("add", epilog="Example: patronage key add contributor mary")
def add_key(role: str, owner: str) -> None:
    """Make another API key for a customer, contributor or operator; it is shown once."""
    settings, out = current()
    if role not in ROLES:
        raise typer.BadParameter(f"{role} is none of {', '.join(ROLES)}", param_hint="ROLE")
    with open_books(settings) as books:
        names = {
            "customer": books.identities.customers,
            "contributor": books.catalogue.contributors,
            "operator": books.identities.operators,
        }[role]()
        if owner not in names:
            raise CommandError(f"there is no {role} {owner}")
        _show(out, owner, names[owner], books.identities.issue_key(role, owner))  # type: ignore[arg-type] # checked above


async def _open(books: Books, customer: str, name: str, units: int | None) -> int:
    async with open_metering(books) as metering:
        books.identities.add_customer(customer, name)
        found = await funding.open_account(books, metering.meter, customer)
        if units is not None:
            found = await funding.credit(books, metering.meter, customer, units, "opening")
        return found.available


def _show(out: Out, identifier: str, name: str, key: str, **more: object) -> None:
    if not out.result({"id": identifier, "name": name, "api_key": key, **more}):
        out.print(f"id:      {identifier}", f"name:    {name}", f"api key: {key}   (shown only now)")
        for label, value in more.items():
            shown = f"{value['amount']} {value['currency']}" if isinstance(value, dict) else value
            out.print(f"{label}: {shown}")
