"""Commands for API keys: make, list, limit, revoke."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from serving.assembly import open_books, open_metering
from serving.cli.people import show_new
from serving.people import keys
from serving.people.identity import ROLES, ApiKey
from serving.rules import limits
from serving.rules.limits import KeyLimits
from serving.terminal.console import Out, current

_key = typer.Typer(help="API keys.", no_args_is_help=True)

_COUNT = "A number, `none`, or `default` for what the settings say."
_AMOUNT = "An amount such as 5.00, `none`, or `default` for what the settings say."
Requests = Annotated[str | None, typer.Option(help=f"Paid requests a minute. {_COUNT}")]
Tokens = Annotated[str | None, typer.Option(help=f"Tokens a minute that paid requests may use. {_COUNT}")]
Concurrent = Annotated[str | None, typer.Option(help=f"Paid requests in progress at once. {_COUNT}")]
DayCap = Annotated[str | None, typer.Option(help=f"The most that the key may spend in a day (UTC). {_AMOUNT}")]
MonthCap = Annotated[str | None, typer.Option(help=f"The same of a calendar month. {_AMOUNT}")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_key, name="key")


@_key.command("add", epilog="Example: patronage key add customer acme --requests-per-minute 60 --day-cap 5.00")
def add(
    role: str,
    owner: str,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent_requests: Concurrent = None,
    day_cap: DayCap = None,
    month_cap: MonthCap = None,
) -> None:
    """Make another API key for a customer, contributor or operator; it is shown once. Limits are of customers' keys."""
    settings, out = current()
    if role not in ROLES:
        raise typer.BadParameter(f"{role} is none of {', '.join(ROLES)}", param_hint="ROLE")
    given = _given(requests_per_minute, tokens_per_minute, concurrent_requests, day_cap, month_cap)
    if given and role != "customer":
        raise typer.BadParameter("only a customer's key pays, so only it has limits", param_hint="ROLE")
    with open_books(settings) as books:
        known, name = keys.check_owner(books.identities, books.catalogue, role, owner)
        own = KeyLimits(**limits.parse(given, books.currency))
        show_new(out, owner, name, books.identities.issue_key(known, owner, own))


@_key.command("list", epilog="Example: patronage key list --owner acme")
def list_keys(owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None) -> None:
    """Every API key with its owner, limits and state; never what makes it secret."""
    settings, out = current()
    with open_books(settings) as books:
        found = [keys.render(key, books.currency) for key in books.identities.keys(owner)]
    if not out.result({"keys": found}):
        show_keys(out, found)


@_key.command("limits", epilog="Example: patronage key limits 57ea4789e3a0 --tokens-per-minute 20000 --month-cap none")
def set_limits(
    key: Annotated[str, typer.Argument(help="The id of the key, as `key list` shows it.")],
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent_requests: Concurrent = None,
    day_cap: DayCap = None,
    month_cap: MonthCap = None,
) -> None:
    """Change limits of a key, within a second; those that are not named stay. Without any, show them."""
    settings, out = current()
    given = _given(requests_per_minute, tokens_per_minute, concurrent_requests, day_cap, month_cap)
    with open_books(settings) as books:
        found = books.identities.set_limits(key, limits.parse(given, books.currency))
        result = keys.render(found, books.currency)
    if not out.result(result):
        show_keys(out, [result])


@_key.command("revoke", epilog="Example: patronage key revoke 57ea4789e3a0")
def revoke(key: Annotated[str, typer.Argument(help="The id of the key, as `key list` shows it.")]) -> None:
    """Refuse a key from now on, for ever."""
    settings, out = current()
    with open_books(settings) as books:

        async def end() -> ApiKey:
            async with open_metering(books) as metering:
                return await keys.revoke(books.identities, metering.meter, key)

        result = keys.render(asyncio.run(end()), books.currency)
    if not out.result(result):
        out.print(f"revoked: {key}")


def show_keys(out: Out, found: list[dict[str, Any]]) -> None:
    """Keys for people."""
    rows = [
        (key["id"], key["role"], key["owner"], _limits(key.get("limits", {})), "revoked" if key["revoked"] else "")
        for key in found
    ]
    out.table(["id", "role", "owner", "limits", "state"], rows)


def _given(*values: str | None) -> dict[str, str]:
    return {name: value for name, value in zip(limits.NAMES, values, strict=True) if value is not None}


def _limits(found: dict[str, Any]) -> str:
    chosen = {name: value for name, value in found.items() if value != limits.DEFAULT}
    shown = [f"{name} {value['amount'] if isinstance(value, dict) else value}" for name, value in chosen.items()]
    return ", ".join(shown) or (limits.DEFAULT if found else "")
