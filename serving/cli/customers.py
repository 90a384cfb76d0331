"""Commands for customers: register, pay in, lend, alert, look."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer

from metering.meter import Balance, Meter
from retrieval.documents import check_id
from serving.assembly import open_books, open_metering
from serving.books import Books
from serving.cli.keys import show_keys
from serving.cli.people import Id, show_new
from serving.money import customers, funding
from serving.notify import alerts
from serving.people.identity import check_name, new_id
from serving.terminal.console import Out, current

_customer = typer.Typer(help="Customers pay for queries.", no_args_is_help=True)

_T = TypeVar("_T")
_UNKNOWN_OPTIONS = {"ignore_unknown_options": True}  # so that -5 is a bad amount and not a bad option


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_customer, name="customer")


@_customer.command("add", epilog="Example: patronage customer add 'Acme Research' --id acme --credit 25")
def add_customer(
    name: str,
    identifier: Id = None,
    credit: Annotated[str | None, typer.Option(help="Credit the account begins with, such as 25.00.")] = None,
    invoiced: Annotated[
        bool, typer.Option("--invoiced", help="The customer pays afterwards, up to --credit-limit; not in advance.")
    ] = False,
    credit_limit: Annotated[
        str | None, typer.Option(help="How far below zero an invoiced account may go, such as 100.00.")
    ] = None,
) -> None:
    """Register a customer; the API key is shown once."""
    settings, out = current()
    if invoiced != (credit_limit is not None):
        raise typer.BadParameter("--invoiced and --credit-limit go together")
    with open_books(settings) as books:
        customer = check_id("customer", identifier or new_id(check_name(name)))
        units = None if credit is None else books.currency.parse_positive(credit)
        limit = None if credit_limit is None else books.currency.parse_positive(credit_limit)

        async def opened(meter: Meter) -> Balance:
            books.identities.add_customer(customer, name)
            found = await funding.open_account(books, meter, customer)
            if units is not None:
                found = await funding.credit(books, meter, customer, units, "opening")
            if limit is not None:
                found = await funding.set_credit_limit(books, meter, customer, limit)
            return found

        balance = _with_meter(books, opened)
        key = books.identities.issue_key("customer", customer)
        show_new(out, customer, name, key, balance=books.currency.amount(balance.funded - balance.spent))


@_customer.command(
    "credit",
    context_settings=_UNKNOWN_OPTIONS,
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
        found = _with_meter(books, lambda meter: funding.credit(books, meter, customer, units, reference))
        balance = books.currency.amount(found.funded - found.spent)
    if not out.result({"balance": balance}):
        out.print(f"balance of {customer}: {balance['amount']} {balance['currency']}")


@_customer.command(
    "refund",
    context_settings=_UNKNOWN_OPTIONS,
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
        found = _with_meter(books, lambda meter: funding.refund(books, meter, customer, units, reference, reason))
        balance = books.currency.amount(found.funded - found.spent)
    if not out.result({"balance": balance}):
        out.print(f"balance of {customer}: {balance['amount']} {balance['currency']}")


@_customer.command("limit", context_settings=_UNKNOWN_OPTIONS, epilog="Example: patronage customer limit acme 250.00")
def limit_customer(customer: str, amount: str) -> None:
    """Change the credit limit of a customer; 0 makes the account prepaid. What is owed stays owed."""
    settings, out = current()
    with open_books(settings) as books:
        units = books.currency.parse(amount)
        found = _with_meter(books, lambda meter: funding.set_credit_limit(books, meter, customer, units))
        result = {"id": customer, **customers.money(found, books)}
    if not out.result(result):
        _show_money(out, result)


@_customer.command(
    "alert", epilog="Example: patronage customer alert acme --below 5.00 --webhook https://example.org/low"
)
def alert_customer(
    customer: str,
    below: Annotated[
        str | None, typer.Option(help="Signal when less than this is left: an amount, `none`, or `default`.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(help="URL that is told, or `none`. Its signing secret is shown once.")
    ] = None,
) -> None:
    """Choose when a customer's low balance is signalled, and where. Without options, show it."""
    settings, out = current()
    chosen = {"below": below, "webhook": webhook}
    changes = {name: value for name, value in chosen.items() if value is not None}
    with open_books(settings) as books:
        funding.check_customer(books, customer)
        result = _with_meter(books, lambda meter: alerts.change(books, meter, customer, changes))
    if not out.result({"id": customer, **result}):
        _show_alert(out, result)


@_customer.command("show")
def show_customer(customer: str) -> None:
    """One customer: money, alert and keys."""
    settings, out = current()
    with open_books(settings) as books:
        result = _with_meter(books, lambda meter: customers.show(books, meter, customer))
    if not out.result(result):
        out.print(f"id: {result['id']}", f"name: {result['name']}")
        _show_money(out, result)
        _show_alert(out, result["alert"])
        show_keys(out, result["keys"])


@_customer.command("list")
def list_customers() -> None:
    """Every customer with the balance."""
    settings, out = current()
    with open_books(settings) as books:
        names = books.identities.customers()

        async def balances(meter: Meter) -> dict[str, int]:
            found = {customer: await funding.balance_of(books, meter, customer) for customer in names}
            return {customer: each.funded - each.spent for customer, each in found.items()}

        amounts = {customer: books.currency.amount(units) for customer, units in _with_meter(books, balances).items()}
    rows = [{"id": each, "name": name, "balance": amounts[each]} for each, name in names.items()]
    if not out.result({"customers": rows}):
        table = [(each, name, f"{amounts[each]['amount']} {amounts[each]['currency']}") for each, name in names.items()]
        out.table(["id", "name", "balance"], table, numbers=[2])


def _with_meter(books: Books, use: Callable[[Meter], Awaitable[_T]]) -> _T:
    async def run() -> _T:
        async with open_metering(books) as metering:
            return await use(metering.meter)

    return asyncio.run(run())


def _show_money(out: Out, found: dict[str, Any]) -> None:
    out.print(f"billing: {found['billing']}")
    for name in ("balance", "held", "credit_limit", "available"):
        out.print(f"{name.replace('_', ' ')}: {found[name]['amount']} {found[name]['currency']}")
    out.print(f"free this month: {found['free']['left']['amount']} of {found['free']['per_month']['amount']}")


def _show_alert(out: Out, found: dict[str, Any]) -> None:
    threshold = "never" if found["threshold"] is None else found["threshold"]["amount"]
    low = "" if found["low_since"] is None else f"; low since {found['low_since']}"
    out.print(f"alert below: {threshold}{low}", f"webhook: {found['webhook'] or 'none'}")
    if "secret" in found:
        out.print(f"webhook secret: {found['secret']}   (shown only now)")
