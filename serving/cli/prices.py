"""Commands for price books."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from metering.pricing import PriceError
from serving.assembly import open_books
from serving.rules import pricelist
from serving.terminal.console import Out, current

_prices = typer.Typer(help="Price books: what queries cost, and from when.", no_args_is_help=True)

_FILE_BYTES_MAX = 1_000_000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_prices, name="prices")


@_prices.command("show")
def show() -> None:
    """Every price book, in the order in which they take effect."""
    settings, out = current()
    with open_books(settings) as books:
        now_ms = time.time_ns() // 1_000_000
        found = pricelist.render(books.rulebook.price_books(), books.currency, now_ms)
    if not out.result({"prices": found}):
        for book in found:
            _show(out, book)


@_prices.command("set", epilog="Example: patronage prices set prices.json --from 2026-12-01")
def set_prices(
    file: Annotated[
        Path, typer.Argument(help='JSON such as {"models": {"NAME": {"request": "0.002"}}, "free_per_month": "0.50"}.')
    ],
    effective: Annotated[
        str | None,
        typer.Option("--from", help="When it takes effect (UTC), such as 2026-12-01T00:00:00Z. Default: in seconds."),
    ] = None,
) -> None:
    """Add a price book, for queries that begin when it is in effect. Books are never changed or removed."""
    settings, out = current()
    if file.stat().st_size > _FILE_BYTES_MAX:
        raise PriceError(f"{file} is larger than any price list")
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PriceError(f"{file} is not JSON") from error
    with open_books(settings) as books:
        found = pricelist.parse(data, books.currency)
        effective_ms = found.effective_ms if effective is None else pricelist.moment(effective)
        book = books.rulebook.set_prices(found.models, found.free_per_month, effective_ms)
        result = pricelist.render_book(book, books.currency, in_force=False)
    if not out.result(result):
        _show(out, result)


def _show(out: Out, book: dict[str, Any]) -> None:
    state = " (in force)" if book["in_force"] else ""
    out.print(
        f"price book {book['version']}, from {book['effective_from']}{state}, "
        f"free a month: {book['free_per_month']['amount']}"
    )
    rows = [(name, *[amount["amount"] for amount in price.values()]) for name, price in sorted(book["models"].items())]
    columns = list(next(iter(book["models"].values())))
    out.table(["model", *columns], rows, numbers=range(1, len(columns) + 1))
    out.print("")
