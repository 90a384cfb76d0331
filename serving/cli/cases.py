"""The command for the logs of other retrieval-augmented systems: attribute."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from attribution.cases.case import CaseError, Result, encode_result
from attribution.cases.methods import METHODS, VALUE_FUNCTIONS
from attribution.games.estimation import BUDGET, BUDGET_MAX, BUDGET_MIN
from attribution.games.values import TABLE_PLAYERS_MAX
from serving.cases import open_attributor, read_lines
from serving.terminal.console import CommandError, Out, current


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("attribute", epilog="Example: patronage attribute cases.jsonl -o credits.jsonl")(attribute)


def _method(name: str) -> str:
    if name not in METHODS:
        raise typer.BadParameter(f"there is no method {name}; there are {', '.join(METHODS)}")
    return name


def _value_function(name: str) -> str:
    found = [known for known in VALUE_FUNCTIONS if name in (known, known.partition("/")[0])]
    if not found:
        raise typer.BadParameter(f"there is no value function {name} for cases; there is {', '.join(VALUE_FUNCTIONS)}")
    return found[-1]


def attribute(
    cases: Annotated[Path, typer.Argument(help="A file with a case in JSON on each line.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the results go. Default: standard output.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(callback=_method, help=f"How what the passages earned is divided: {', '.join(METHODS)}."),
    ] = "shapley",
    value_function: Annotated[
        str,
        typer.Option(
            callback=_value_function,
            help=f"What a coalition of passages is worth: {', '.join(VALUE_FUNCTIONS)}; without a version, the newest.",
        ),
    ] = "support",
    budget: Annotated[
        int,
        typer.Option(
            min=BUDGET_MIN,
            max=BUDGET_MAX,
            help="Coalitions that are valued at most, where a case has too many passages for all: with log_likelihood, "
            f"more than {TABLE_PLAYERS_MAX}.",
        ),
    ] = BUDGET,
) -> None:
    """What each passage earned in the answers of any retrieval-augmented system: a line in, a line out, in order."""
    settings, out = current()
    if not cases.is_file():
        raise CommandError(f"there is no file {cases}")
    if output is not None and output.exists() and output.samefile(cases):
        raise CommandError(f"{output} holds the cases: choose another file for the results")
    attributor = open_attributor(settings, method, value_function, budget)
    rejected: list[dict[str, Any]] = []
    results: list[Result] = []
    with cases.open("rb") as file:
        total = sum(1 for _ in read_lines(file))
    began = time.perf_counter()
    with cases.open("rb") as file, _opened(output, out) as results_file, out.progress("attributing") as bar:
        task = bar.add_task("attributing", total=total, note="")
        for number, result in attributor.lines(read_lines(file)):
            if isinstance(result, CaseError):
                rejected.append({"path": str(cases), "line": number, "reason": str(result)})
                out.aside.print(f"rejected: {cases} line {number}: {result}", markup=False, soft_wrap=True)
            elif results_file is None:
                results.append(result)
            else:
                results_file.write(encode_result(result) + b"\n")
            bar.update(task, advance=1, note=f"{len(rejected)} rejected" if rejected else "")
    done = total - len(rejected)
    milliseconds = round((time.perf_counter() - began) * 1000 / max(total, 1), 2)
    summary = {"cases": done, "rejected": rejected, "ms_per_case": milliseconds}
    if results_file is None:
        out.result({**summary, "results": [json.loads(encode_result(each)) for each in results]})
    elif output is not None and not out.result({**summary, "output": str(output)}):
        out.print(f"{done} cases attributed in {milliseconds} ms each, {len(rejected)} rejected: {output}")
    if rejected:
        raise CommandError(f"{len(rejected)} of {total} cases could not be attributed; the others were")


@contextmanager
def _opened(output: Path | None, out: Out) -> Iterator[BinaryIO | None]:
    """Where results are written as they come; None where they must wait to be part of one JSON object.

    A file is in its place only when it is complete. What is no file, and what a link leads to, is written where it is:
    a renaming would put a file in the place of the link, which may be ``/dev/stderr``.
    """
    if output is None:
        yield None if out.is_json else sys.stdout.buffer
    elif output.is_symlink() or (output.exists() and not output.is_file()):
        with output.open("wb") as there:
            yield there
    else:
        partial = output.with_name(f"{output.name}.partial")
        with partial.open("wb") as file:
            yield file
        partial.replace(output)
