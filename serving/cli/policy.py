"""Commands for the policy: what belongs to the documents, and by which functions it is divided."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from attribution.policy import GENERATED_VALUE_FUNCTIONS
from attribution.runs.adopted import VALUE_FUNCTIONS
from serving.assembly import open_books, open_embedder, open_valuing
from serving.terminal.console import Out, current

_policy = typer.Typer(help="The policy: what belongs to the documents, and how it is divided.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_policy, name="policy")


@_policy.command("show")
def show() -> None:
    """The policy in force."""
    settings, out = current()
    with open_books(settings) as books:
        _show(out, books.rulebook.policy.to_json())


@_policy.command("set", epilog="Example: patronage policy set --generated-value-function log_likelihood/1")
def set_policy(
    data_share_ppm: Annotated[
        int | None, typer.Option(help="The documents' part, in millionths, of what a charge leaves after its cost.")
    ] = None,
    value_function: Annotated[
        str | None, typer.Option(help=f"Values extractive answers: {', '.join(VALUE_FUNCTIONS)}.")
    ] = None,
    generated_value_function: Annotated[
        str | None,
        typer.Option(help=f"Values answers that a language model wrote: {', '.join(GENERATED_VALUE_FUNCTIONS)}."),
    ] = None,
    ablation_ppm: Annotated[
        int | None, typer.Option(help="How many in a million queries are drawn for the audit by ablation.")
    ] = None,
) -> None:
    """Put a new policy in force, for queries from now on; what is not given stays. Policies are never changed."""
    settings, out = current()
    changes = {
        "data_share_ppm": data_share_ppm,
        "value_function": value_function,
        "generated_value_function": generated_value_function,
        "ablation_ppm": ablation_ppm,
    }
    with open_books(settings) as books:
        valuing = open_valuing(settings, lambda: open_embedder(settings, books.directory))
        _show(out, books.rulebook.adopt_policy(changes, valuing.prove).to_json())


def _show(out: Out, policy: dict[str, Any]) -> None:
    if not out.result(policy):
        out.table(["field", "value"], list(policy.items()))
