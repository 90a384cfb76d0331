"""Commands for payouts to contributors."""

from __future__ import annotations

from typing import Annotated

import typer

from serving.assembly import open_books
from serving.books import Books
from serving.cli.ledger import Reason, Reference
from serving.money import payouts
from serving.terminal.console import Out, current
from serving.terminal.summaries import moment

_payout = typer.Typer(help="Payouts to contributors, in two phases.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_payout, name="payout")


@_payout.command("start", epilog="Example: patronage payout start mary --reference wire-2026-11-mary")
def start_payout(
    contributor: str,
    reference: Reference,
    amount: Annotated[str | None, typer.Option(help="How much. Default: all that is owed.")] = None,
) -> None:
    """Set aside what a contributor is about to be paid; then tell the bank."""
    settings, out = current()
    with open_books(settings) as books:
        units = None if amount is None else books.currency.parse_positive(amount)
        _show_payout(out, books, payouts.start(books, contributor, units, reference))


@_payout.command("settle", epilog="Example: patronage payout settle wire-2026-11-mary")
def settle_payout(reference: str) -> None:
    """The payout has arrived."""
    settings, out = current()
    with open_books(settings) as books:
        _show_payout(out, books, payouts.settle(books, reference))


@_payout.command("cancel", epilog="Example: patronage payout cancel wire-2026-11-mary --reason 'account closed'")
def cancel_payout(reference: str, reason: Reason) -> None:
    """The payout was not made: the contributor is owed it again."""
    settings, out = current()
    with open_books(settings) as books:
        _show_payout(out, books, payouts.cancel(books, reference, reason))


@_payout.command("list", epilog="Example: patronage payout list --state started")
def list_payouts(
    contributor: Annotated[str | None, typer.Option(help="Only this contributor's.")] = None,
    state: Annotated[payouts.State | None, typer.Option(help="Only those that stand so.")] = None,
    after: Annotated[str | None, typer.Option(help="Those before the one of this reference.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=payouts.PAGE_MAX, help="How many, the newest.")] = 100,
) -> None:
    """Payouts, newest first."""
    settings, out = current()
    with open_books(settings) as books:
        found = payouts.listing(books.engine, contributor=contributor, state=state, after=after, limit=limit)
        if not out.result({"payouts": [each.to_json(books.currency) for each in found]}):
            _show_payouts(out, books, found)


def _show_payout(out: Out, books: Books, payout: payouts.Payout) -> None:
    if not out.result(payout.to_json(books.currency)):
        _show_payouts(out, books, [payout])


def _show_payouts(out: Out, books: Books, found: list[payouts.Payout]) -> None:
    columns = ["reference", "contributor", f"amount ({books.currency.code})", "state", "started", "ended", "reason"]
    rows = []
    for each in found:
        shown = each.to_json(books.currency)
        times = [moment(shown["started"]), moment(shown["ended"])]
        rows.append(
            [each.reference, each.contributor, shown["amount"]["amount"], each.state, *times, each.reason or ""]
        )
    out.table(columns, rows, numbers=[2])
