"""The command of the audit by ablation."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from metering import periods
from serving.assembly import open_ablation_function, open_books
from serving.cli.periods import drain_captured
from serving.closing import ablation
from serving.terminal import summaries
from serving.terminal.console import current

_group = typer.Typer(help="The audit by ablation: sampled queries, recomputed.", no_args_is_help=True)
_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(_group, name="ablation")


@_group.command("run", epilog="Example: patronage ablation run --period 2026-11")
def run(period: Annotated[str, typer.Option(help="Of which period, YYYY-MM; before it is closed.")]) -> None:
    """Recompute the period's sample with the audit's value function; what is done stays done if it is interrupted."""
    settings, out = current()
    with open_books(settings) as books:
        periods.parse(period)
        function = open_ablation_function(settings)
        asyncio.run(drain_captured(books))
        with out.progress("recomputing") as bar:
            task = bar.add_task("recomputing", total=None, note="")
            done = ablation.run(
                books, period, function, lambda done, total: bar.update(task, completed=done, total=total)
            )
    found = done.to_json()
    if out.result(found):
        return
    out.print(summaries.audited(found), f"{done.new} of them now, with {function.name} {function.model}".rstrip(), "")
    queries = sorted(found["queries"], key=lambda each: (not each["low"], each["lds"] is None, each["lds"]))
    rows = [
        (each["record"][:16], each["kendall_tau"], each["lds"], each["masks"], "LOW" if each["low"] else "")
        for each in queries[:_SHOWN]
    ]
    out.table(["query", "Kendall's tau", "datamodeling score", "masks", ""], rows, numbers=[1, 2, 3])
    if done.destroyed:
        out.print(f"{done.destroyed} drawn queries are past the dispute window: their text is destroyed")
    for reason in done.unscorable:
        out.print(f"not recomputed: {reason}")
