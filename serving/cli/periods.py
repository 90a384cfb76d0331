"""Commands for periods and their statements."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from metering import periods
from serving.assembly import open_books, open_metering
from serving.books import Books
from serving.closing import closing, explaining
from serving.portal import explanation_pages, statement_pages
from serving.terminal import summaries
from serving.terminal.console import CommandError, Out, current

_period = typer.Typer(help="Periods: calendar months in UTC.", no_args_is_help=True)


class Format(StrEnum):
    """How a statement is written."""

    json = "json"
    csv = "csv"
    html = "html"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_period, name="period")
    app.command(
        "statement",
        epilog="Example: patronage statement --contributor mary --period 2026-11 --format html -o s.html",
    )(statement)


@_period.command("close", epilog="Example: patronage period close 2026-11 --early")
def close(
    period: str,
    early: Annotated[
        bool,
        typer.Option("--early", help="Close a period that is not over; what comes later belongs to the next."),
    ] = False,
) -> None:
    """Close a period for ever: attribute it, post the credits, issue the statements."""
    settings, out = current()
    with open_books(settings) as books:
        periods.parse(period)
        asyncio.run(drain_captured(books))
        with out.progress("attributing") as bar:
            task = bar.add_task("attributing", total=None, note="")
            found = closing.close(
                books,
                period,
                early=early,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        _show(out, found.summary(books.currency), "closed")


@_period.command("preview", epilog="Example: patronage period preview 2026-11")
def preview(period: str) -> None:
    """What closing a period now would give."""
    settings, out = current()
    with open_books(settings) as books:
        periods.parse(period)
        asyncio.run(drain_captured(books))
        with out.progress("attributing") as bar:
            task = bar.add_task("attributing", total=None, note="")
            found = closing.preview(books, period, lambda done, total: bar.update(task, completed=done, total=total))
        _show(out, found.summary(books.currency), "preview")


@_period.command("explain", epilog="Example: patronage period explain 01a1ffbe14c7d6bf2885ecd64b2f -o credit.html")
def explain(
    record: Annotated[str, typer.Argument(help="The id of a record, which is that of its receipt.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it as a page to a file.")] = None,
) -> None:
    """Why the documents of one query earned what they did, from the charge to the last unit."""
    settings, out = current()
    with open_books(settings) as books:
        asyncio.run(drain_captured(books))
        try:
            found = explaining.explain(books, record)
        except explaining.UnknownRecord as error:
            raise CommandError(str(error.args[0])) from error
    if output is not None:
        output.write_text(explanation_pages.as_html(found))
    if out.result(found):
        return
    for step in found["steps"]:
        out.print(f"{step['title']}. {step['text']}", "")
    rows = [(each["part"], each["units"], bar) for each, bar in zip(found["picture"], _bars(found), strict=True)]
    out.table(["part of the charge", "units", ""], rows, numbers=[1])
    out.print("")
    _table(out, found["players"], ("document", "contributor", "alone", "last", "share"))
    out.print("")
    _table(out, found["credits"], ("document", "contributor", "role", "split_ppm", "exact", "reached", "units"))


def _table(out: Out, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    names = {"document", "contributor", "role"}
    numbers = [place for place, name in enumerate(columns) if name not in names]
    out.table(columns, [[_cell(row[name]) for name in columns] for row in rows], numbers)


def _bars(found: dict[str, Any]) -> list[str]:
    largest = max((abs(each["units"]) for each in found["picture"]), default=0) or 1
    return [summaries.bar(abs(each["units"]) / largest) for each in found["picture"]]


def _cell(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def statement(
    contributor: Annotated[str, typer.Option(help="Whose statement.")],
    period: Annotated[str, typer.Option(help="Of which period, YYYY-MM.")],
    form: Annotated[
        Format, typer.Option("--format", help="JSON carries the proof; CSV and HTML are for people.")
    ] = Format.json,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to a file.")] = None,
) -> None:
    """A contributor's statement for a closed period."""
    settings, out = current()
    with open_books(settings) as books:
        found = closing.statement(books, contributor, periods.parse(period))
        if found is None:
            if contributor not in books.catalogue.contributors():
                raise CommandError(f"there is no contributor {contributor}")
            raise CommandError(f"there is no statement of {contributor} for {period}: is the period closed?")
    text = {
        Format.json: lambda: json.dumps(found, indent=2, ensure_ascii=False) + "\n",
        Format.csv: lambda: statement_pages.as_csv(found),
        Format.html: lambda: statement_pages.as_html(found),
    }[form]()
    if output is not None:
        output.write_text(text)
        if not out.result({"written": str(output)}):
            out.print(f"written: {output}")
    elif not (out.is_json and out.result(found)):
        typer.echo(text, nl=False)


async def drain_captured(books: Books) -> None:
    """Move everything that was captured into the log and the ledger."""
    async with open_metering(books) as metering:
        await metering.drain.flush()


def _show(out: Out, summary: dict[str, Any], verb: str) -> None:
    if out.result(summary):
        return
    out.print(f"{verb} {summary['period']}: {summary['run_id']}", "")
    names = ("charged", "cost", "platform", "residual", "credited")
    out.table(
        ["records", *names],
        [[summary["records"], *[summary[name]["amount"] for name in names]]],
        numbers=range(6),
    )
    out.print("", summaries.audited(summary["ablation"]), "")
    summaries.earned(out, summary)
