"""``make bench``: every claim about speed as a ratio to a named rival, measured in the same run.

``python -m tests.benchmarks [NAME...]`` runs some of them; ``--list`` names them all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.table import Table

from tests.benchmarks import attribution, drain, embedding, ledger, likelihood, metering
from tests.benchmarks import run as whole_run
from tests.benchmarks.measure import Result

BENCHMARKS: dict[str, Callable[[], Iterable[Result]]] = {
    "embedding": embedding.run,
    "attribution": attribution.run,
    "metering": metering.run,
    "drain": drain.run,
    "ledger": ledger.run,
    "run": whole_run.run,
    "likelihood": likelihood.run,
}


def main(names: list[str]) -> int:
    console = Console()
    if names == ["--list"]:
        console.print("\n".join(BENCHMARKS))
        return 0
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        console.print(f"unknown: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
        return 2
    table = Table("what", "ours", "rival", "its figure", "ratio", box=None, header_style="bold")
    for name in names or BENCHMARKS:
        with console.status(name):
            for result in BENCHMARKS[name]():
                table.add_row(*result.row())
    console.print(table)
    return 0


sys.exit(main(sys.argv[1:]))
