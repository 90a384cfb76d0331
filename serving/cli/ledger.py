"""Commands for the ledger and its corrections."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from metering import journal, ledger, periods, sql
from serving.assembly import open_books, open_metering
from serving.books import Books
from serving.money import corrections
from serving.money.trial_balance import FOREVER_MS, TrialBalance, history, trial_balance
from serving.terminal.console import Out, current
from serving.terminal.summaries import moment

_ledger = typer.Typer(help="The double-entry books.")

_GROUP_ROWS = 20

At = Annotated[str | None, typer.Option(help="As of the end of a day, or a time such as 2026-11-30T12:00:00Z.")]
From = Annotated[str | None, typer.Option("--from", help="From a day, or a time, on.")]
To = Annotated[str | None, typer.Option("--to", help="Up to the end of a day, or to a time.")]
Every = Annotated[bool, typer.Option("--all", help=f"Every account, not only {_GROUP_ROWS} of each group.")]
Reference = Annotated[str, typer.Option(help="Names it; the same reference counts once.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept for ever.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_ledger, name="ledger")


@_ledger.callback(invoke_without_command=True)
def look(context: typer.Context) -> None:
    """The double-entry books; alone, the balances."""
    if context.invoked_subcommand is None:
        balances()


@_ledger.command("balances", epilog="Example: patronage ledger balances --at 2026-11-30")
def balances(at: At = None, every: Every = False) -> None:
    """Every account with its balance: what is owed is positive, and all of them sum to zero."""
    settings, out = current()
    at_ms = None if at is None else periods.last_ms(at)
    with open_books(settings) as books:
        found = trial_balance(books.engine, at_ms)
        if not out.result(found.to_json(books.currency)):
            _show_balances(out, books, found, every=every)


@_ledger.command("show", epilog="Example: patronage ledger show customer:acme --from 2026-11-01 --to 2026-11-30")
def show(
    account: str,
    start: From = None,
    end: To = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many transfers, the last ones.")] = 50,
) -> None:
    """The transfers of one account, with the balance after each."""
    settings, out = current()
    first, last = _range(start, end)
    with open_books(settings) as books:
        found = history(books.engine, books.currency, account, first, last, limit)
    if out.result(found):
        return
    if found["more"]:
        out.print(f"the last {limit}; --limit shows more")
    rows = [["", "", "opening", "", found["opening"]["amount"], ""]]
    for each in found["transfers"]:
        about = each["reference"] if each["reason"] is None else f"{each['reference']}: {each['reason']}"
        amounts = each["amount"]["amount"], each["balance"]["amount"]
        rows.append([moment(each["at"]), each["kind"], each["other"], *amounts, about])
    out.table(["time", "kind", "other account", "amount", "balance", "reference"], rows, numbers=[3, 4])


@_ledger.command("export", epilog="Example: patronage ledger export --format hledger -o books.journal")
def export(
    form: Annotated[journal.Format, typer.Option("--format", help="Whose journal.")] = journal.Format.beancount,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to a file.")] = None,
    start: From = None,
    end: To = None,
) -> None:
    """The ledger as a journal that plain-text accounting programs read."""
    settings, out = current()
    first, last = _range(start, end)
    if out.is_json and output is None:
        raise typer.BadParameter("--json needs a file to write to", param_hint="--output")
    with open_books(settings) as books, sql.snapshot(books.engine) as connection:
        title = f"Patronage, deployment {books.deployment.id}"
        if output is None:
            journal.write(connection, books.currency, form, sys.stdout, first, last, title)
            return
        temporary = output.with_name(f".{output.name}.tmp")
        with temporary.open("w", encoding="utf-8") as sink:
            count = journal.write(connection, books.currency, form, sink, first, last, title)
        temporary.replace(output)
    if not out.result({"written": str(output), "transfers": count}):
        out.print(f"written: {output}, {count} transfers")


@_ledger.command(
    "correct",
    context_settings={"ignore_unknown_options": True},  # so that -5 is a bad amount and not a bad option
    epilog="Example: patronage ledger correct --of funding/acme/invoice-17 --reason 'booked twice' --reference fix-3",
)
def correct(
    reason: Reason,
    reference: Reference,
    debit: Annotated[str | None, typer.Option(help="The account that gives, such as operator:platform.")] = None,
    credit: Annotated[str | None, typer.Option(help="The account that gets, such as customer:acme.")] = None,
    amount: Annotated[str | None, typer.Option(help="How much. With --of, the default is all of it.")] = None,
    of: Annotated[str | None, typer.Option(help="The transfer that is taken back, by its id.")] = None,
) -> None:
    """Put the books right: another transfer, with a reason. Nothing is ever changed."""
    settings, out = current()
    with open_books(settings) as books:
        units = None if amount is None else books.currency.parse_positive(amount)

        async def book() -> ledger.Transfer:
            async with open_metering(books) as metering:
                return await corrections.correct(
                    books, metering.meter,
                    debit=debit, credit=credit, units=units, reference=reference, reason=reason, of=of,
                )  # fmt: skip

        found = corrections.to_json(asyncio.run(book()), books.currency)
    if not out.result(found):
        out.print(f"{found['amount']['amount']} {found['amount']['currency']}: {found['debit']} -> {found['credit']}")


def _range(start: str | None, end: str | None) -> tuple[int, int]:
    return 0 if start is None else periods.first_ms(start), FOREVER_MS if end is None else periods.last_ms(end)


def _show_balances(out: Out, books: Books, found: TrialBalance, *, every: bool) -> None:
    amount = books.currency.format
    rows: list[tuple[str, str]] = []
    root = ""
    for group in found.groups:
        if group.root != root:
            root = group.root
            rows.append((root, ""))
        rows.append((f"  {group.name}", amount(group.balance)))
        largest = sorted(group.members.items(), key=lambda each: (-abs(each[1]), each[0]))
        shown = largest if every else largest[:_GROUP_ROWS]
        rows += [(f"    {account}", amount(units)) for account, units in shown]
        if len(shown) < len(largest):
            rows.append((f"    and {len(largest) - len(shown)} more: --all", ""))
    rows.append(("total", amount(sum(group.balance for group in found.groups))))
    out.table(["account", f"balance ({books.currency.code})"], rows, numbers=[1])
