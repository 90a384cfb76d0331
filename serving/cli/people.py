"""Commands for people: operators and contributors."""

from __future__ import annotations

from typing import Annotated

import typer

from retrieval.documents import check_id
from serving.assembly import open_books
from serving.people.identity import check_name, new_id
from serving.terminal.console import CommandError, Out, current

Id = Annotated[str | None, typer.Option("--id", help="An id of your choice. Default: made from the name.")]

_operator = typer.Typer(help="Operators run the server.", no_args_is_help=True)
_contributor = typer.Typer(help="Contributors bring documents and are paid.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_operator, name="operator")
    app.add_typer(_contributor, name="contributor")


@_operator.command("add", epilog="Example: patronage operator add 'Ada Lovelace'")
def add_operator(name: str, identifier: Id = None) -> None:
    """Register an operator; the API key is shown once."""
    settings, out = current()
    with open_books(settings) as books:
        operator = check_id("operator", identifier or new_id(name))
        books.identities.add_operator(operator, name)
        show_new(out, operator, name, books.identities.issue_key("operator", operator))


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
        show_new(out, contributor, name, books.identities.issue_key("contributor", contributor))


@_contributor.command("list")
def list_contributors() -> None:
    """Every contributor."""
    settings, out = current()
    with open_books(settings) as books:
        found = books.catalogue.contributors()
    if not out.result({"contributors": [{"id": each, "name": name} for each, name in found.items()]}):
        out.table(["id", "name"], list(found.items()))


def show_new(out: Out, identifier: str, name: str, key: str, **more: object) -> None:
    """A new API key: the only time that it can be seen."""
    if not out.result({"id": identifier, "name": name, "api_key": key, **more}):
        out.print(f"id:      {identifier}", f"name:    {name}", f"api key: {key}   (shown only now)")
        for label, value in more.items():
            shown = f"{value['amount']} {value['currency']}" if isinstance(value, dict) else value
            out.print(f"{label}: {shown}")
