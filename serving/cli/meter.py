"""Commands for the meter: look at its books in Redis, and make them anew after Redis lost them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from serving.assembly import open_books
from serving.terminal.console import current
from serving.upkeep import rebuilding

_meter = typer.Typer(help="The meter: the books in Redis.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_meter, name="meter")


@_meter.command("show")
def show() -> None:
    """Which Redis it is, whether it holds the books of every shard, and what waits for the drain."""
    settings, out = current()
    with open_books(settings) as books:
        found = asyncio.run(rebuilding.look(books))
    if not out.result(found):
        for server in found["servers"]:
            out.print(f"redis:    {server}")
        for warning in found["warnings"]:
            out.print(f"warning:  {warning}")
        out.print(
            f"shards:   {', '.join(f'{count} {state}' for state, count in found['shards'].items() if count)}",
            f"waiting:  {found['waiting']['records']} records, the oldest for {found['waiting']['seconds']} s",
            f"rebuilds: {found['rebuilds']}",
        )
        if server := found["server"]:
            out.print(f"server:   {server['host']}, {server['folder']}, lease for {server['lease_seconds']} s yet")


@_meter.command("rebuild", epilog="Example: patronage meter rebuild")
def rebuild(
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also where Redis still holds the books: they are thrown away. A server elsewhere that uses them is "
            "refused from then on.",
        ),
    ] = False,
) -> None:
    """Make the books in Redis anew from the ledger and the log, after Redis lost them. Stop the server first."""
    settings, out = current()
    with open_books(settings) as books, out.progress("rebuilding") as bar:
        task = bar.add_task("rebuilding", total=None, note="")
        done = asyncio.run(rebuilding.rebuild(books, force=force, progress=lambda step: bar.update(task, note=step)))
    if not out.result(asdict(done)):
        out.print(
            f"{done.accounts} accounts on {done.shards} shards opened as the ledger has them; {done.drained} records "
            f"were drained first, {done.marked} are recognised if they are captured again",
            "now run `patronage audit`, and start the server",
        )
