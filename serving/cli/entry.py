"""The entry point: global options anywhere on the line, and one clear line for whatever goes wrong."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import sqlalchemy as sa
import typer
from pydantic import ValidationError

from attribution.cases.case import CaseError
from attribution.policy import PolicyError
from attribution.runs.adopted import UnknownRule
from attribution.runs.run import RunError
from attribution.value_functions.likelihood import LikelihoodError
from metering.drain import DrainBusy
from metering.formats import UnknownFormat
from metering.meter import InsufficientFunds, MeterError, MeterLost
from metering.money import MoneyError
from metering.periods import PeriodError
from metering.pricing import PriceError
from metering.records import RecordError
from metering.redis.connection import RedisUnfit
from metering.redis.server import RedisServerError
from metering.usage_log import SegmentError
from retrieval.documents import DocumentError
from retrieval.embedding import EmbedderError
from retrieval.retriever import EmbedderMismatch
from serving import __version__
from serving.answering.pools import Overloaded
from serving.answering.sampled_texts import SampleError
from serving.assembly import AssemblyError
from serving.cli import (
    ablation,
    cases,
    checks,
    customers,
    documents,
    keys,
    ledger,
    meter,
    payouts,
    people,
    periods,
    policy,
    prices,
    server,
)
from serving.closing.ablation import AblationError
from serving.closing.closing import ClosingError, NotOverError
from serving.generators.query import QueryError
from serving.money.booking import BookingError
from serving.notify.webhooks import WebhookError
from serving.people.identity import IdentityError
from serving.rules.limits import LimitError
from serving.settings import Settings
from serving.store.data_dir import DataDirError
from serving.store.database import DatabaseError
from serving.store.instance import InstanceError
from serving.telemetry import logs
from serving.terminal.console import CommandError, Options, Out, choose
from serving.upkeep.rebuilding import RebuildError
from serving.valuing.functions import NotValued

app = typer.Typer(
    name="patronage",
    help="A retrieval-augmented model server that pays the people whose documents it uses.",
    epilog="--data-dir and --json go with every command, anywhere on the line. Try: patronage demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for part in (
    server, people, customers, keys, prices, policy, documents, periods,
    ledger, payouts, ablation, cases, meter, checks,
):  # fmt: skip
    part.register(app)

_EXPECTED = (
    AblationError, AssemblyError, BookingError, CaseError, ClosingError, CommandError, DataDirError, DatabaseError,
    DocumentError, DrainBusy, EmbedderError, EmbedderMismatch, IdentityError, InstanceError, LikelihoodError,
    LimitError, MoneyError, NotValued, Overloaded, PeriodError, PolicyError, PriceError, QueryError, RebuildError,
    RecordError, RedisServerError, RedisUnfit, RunError, SampleError, SegmentError, UnknownFormat, UnknownRule,
    WebhookError,
)  # fmt: skip


def _show_version(context: typer.Context, *, wanted: bool) -> None:
    if wanted:
        out = Out(Options(None, bool(context.params.get("as_json"))))
        if not out.result({"version": __version__}):
            out.print(__version__)
        raise typer.Exit


@app.callback()
def options(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of everything that is stored. Default: PATRONAGE_DATA_DIR or ./patronage-data."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", is_eager=True, help="Print one JSON object on standard output.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    """A retrieval-augmented model server that pays the people whose documents it uses."""
    chosen = Options(data_dir, as_json)
    choose(chosen)
    logs.configure(chosen.settings().log_level)


def main() -> None:
    """Run the command line and exit: 0 done, 1 it could not be done, 2 wrong usage."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and give its exit status."""
    try:
        app(_hoisted(arguments), prog_name="patronage")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        return _say("interrupted; what was stored stays stored")
    except Exception as error:  # noqa: BLE001 # nothing leaves the program as a traceback
        return _say(_explain(error))
    return 0


def _hoisted(arguments: Sequence[str]) -> list[str]:
    """The global options first, wherever they stand before a ``--``."""
    first: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        if item == "--":
            return [*first, *rest, item, *items]
        if item == "--json":
            first.insert(0, item)  # before --version, which asks for it
        elif item == "--version" or item.startswith("--data-dir="):
            first.append(item)
        elif item == "--data-dir":
            first += [item, *[value for value in [next(items, None)] if value is not None]]
        else:
            rest.append(item)
    return first + rest


def _explain(error: Exception) -> str:
    match error:
        case InsufficientFunds():
            return "the account does not cover what this query may cost: add credit with `patronage customer credit`"
        case MeterLost():
            return (
                f"{error}; nothing is served until the books are where they belong: docs/operations.md says how, and "
                "when to run `patronage meter rebuild`"
            )
        case MeterError():
            return str(error)
        case ValidationError():
            first = error.errors()[0]
            return f"setting PATRONAGE_{'_'.join(map(str, first['loc'])).upper()}: {first['msg']}"
        case sa.exc.DBAPIError():
            return f"the database cannot be used: {error.orig}"
        case NotOverError():
            return f"{error}: pass --early"
        case _ if isinstance(error, _EXPECTED):
            return str(error) or type(error).__name__
        case OSError():
            return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        case _:
            if Settings().log_level == "debug":
                traceback.print_exception(error)
            return f"this is a bug in Patronage: {type(error).__name__}: {error}"


def _say(message: str) -> int:
    line = " ".join(message.split())
    sys.stderr.write(f"patronage: {line}\n")
    return 1
