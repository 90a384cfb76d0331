"""Commands for documents: ingest, list, withdraw, ask."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.files import shown
from retrieval.ingest import Ingest, Report
from retrieval.readers import read
from serving import rendering
from serving.answering.answered import Answered
from serving.assembly import open_books, open_embedder, open_service
from serving.generators.query import PURPOSE_DEFAULT, TOP_K_DEFAULT, TOP_K_MAX, Query
from serving.rules.rulebook import EXTRACTIVE
from serving.terminal import summaries
from serving.terminal.console import CommandError, Out, current
from serving.terminal.stopping import STOPPED, stoppable
from serving.upkeep import reembedding

_documents = typer.Typer(help="The catalogue of documents.", no_args_is_help=True)

_PAGE = 1_000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ingest", epilog="Example: patronage ingest ./essays --contributor mary")(ingest)
    app.command("query", epilog="Example: patronage query 'Who wrote it?' --key patronage-customer-...")(query)
    app.command("reembed")(reembed)
    app.add_typer(_documents, name="documents")


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Folders, .txt, .md, .html, .pdf and .jsonl files.")],
    contributor: Annotated[
        str | None, typer.Option(help="Whose documents they are, where the files do not say.")
    ] = None,
    create_contributors: Annotated[
        bool,
        typer.Option("--create-contributors", help="Register contributors that are named and not known."),
    ] = False,
    moved: Annotated[
        bool, typer.Option("--moved", help="Files lie in another place than when they were read last.")
    ] = False,
) -> None:
    """Bring documents in. Text that is there already costs nothing; changed text makes a new version.

    Ctrl-C keeps what is done; the same command goes on there.
    """
    settings, out = current()
    with stoppable() as stop, open_books(settings) as books:
        if contributor is not None and not create_contributors and contributor not in books.catalogue.contributors():
            raise CommandError(
                f"there is no contributor {contributor}: add it with `patronage contributor add`, "
                "or pass --create-contributors"
            )
        embedder = open_embedder(settings, books.directory)
        pipeline = Ingest(books.catalogue, embedder, create_contributors=create_contributors, moved=moved)
        with out.progress("ingesting") as bar:
            task = bar.add_task("ingesting", total=None, note="")

            def show(report: Report) -> None:
                done = report.documents + report.unchanged + len(report.rejected)
                bar.update(task, completed=done, note=f"{report.embedded} passages")

            report = pipeline.run(read(paths, contributor, books.currency.parse_amount), show, stop)
    _show(out, report)
    if report.stopped:
        again = ["patronage", "ingest", *map(shown, paths)]
        again += [] if contributor is None else ["--contributor", contributor]
        again += ["--create-contributors"] if create_contributors else []
        again += ["--moved"] if moved else []
        again += [] if out.data_dir is None else ["--data-dir", shown(out.data_dir)]
        out.aside.print(
            f"patronage: stopped; {report.documents + report.unchanged} documents are stored. "
            f"To go on there: {shlex.join(again)}",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(STOPPED)
    if not report.documents and not report.unchanged:
        raise CommandError(f"nothing was ingested: {_why(report)}")


def _show(out: Out, report: Report) -> None:
    rejected = [{"path": each.path, "line": each.line, "reason": each.reason} for each in report.rejected]
    result = {
        "documents": report.documents,
        "passages": report.passages,
        "unchanged": report.unchanged,
        "replaced": report.replaced,
        "rejected": rejected,
        "skipped": [
            {"reason": reason, "count": each.count, "paths": each.paths} for reason, each in report.skipped.items()
        ],
        "stopped": report.stopped,
    }
    if out.result(result):
        return
    skipped = sum(each.count for each in report.skipped.values())
    out.print(
        f"{report.documents} documents ({report.replaced} replaced) in {report.passages} passages, "
        f"{report.unchanged} unchanged, {len(rejected)} rejected{f', {skipped} skipped' if skipped else ''}"
    )
    for each in report.rejected:
        line = "" if each.line is None else f" line {each.line}"
        out.aside.print(f"rejected: {each.path}{line}: {each.reason}", markup=False, soft_wrap=True)
    for reason, those in report.skipped.items():
        more = f" and {those.count - len(those.paths)} more" if those.count > len(those.paths) else ""
        out.aside.print(f"skipped: {', '.join(those.paths)}{more}: {reason}", markup=False, soft_wrap=True)


def _why(report: Report) -> str:
    if report.rejected:
        return report.rejected[0].reason
    if not report.skipped:
        return "there is no document in what was named"
    return "; ".join(f"{each.count} skipped, {reason}" for reason, each in report.skipped.items())


@_documents.command("list")
def list_documents(
    contributor: Annotated[str | None, typer.Option(help="Only this contributor's.")] = None,
) -> None:
    """Every document with its version, contributor, terms and state."""
    settings, out = current()
    rows: list[dict[str, Any]] = []
    with open_books(settings) as books:
        after = ""
        while page := books.catalogue.page(contributor, after=after, limit=_PAGE):
            rows += rendering.documents(page, books.catalogue, books.currency)
            after = page[-1].id
    if not out.result({"documents": rows}):
        table = [(row["id"], row["version"][:12], row["contributor"], _terms(row), row["state"]) for row in rows]
        out.table(["id", "version", "contributor", "terms", "state"], table)


@_documents.command("withdraw", epilog="Example: patronage documents withdraw mary/essays/one.txt")
def withdraw(ids: list[str]) -> None:
    """Withdraw documents: no query that begins after this retrieves or cites them."""
    settings, out = current()
    with open_books(settings) as books:
        withdrawn = books.catalogue.withdraw(ids)
    unknown = [each for each in ids if each not in withdrawn]
    if not out.result({"withdrawn": withdrawn, "unknown": unknown}):
        out.print(*[f"withdrawn: {each}" for each in withdrawn])
    if unknown:
        raise CommandError(f"there is no document {', '.join(unknown)}")


def query(
    question: str,
    key: Annotated[str, typer.Option(help="A customer's API key; the query is paid from that account.")],
    top_k: Annotated[int, typer.Option(min=1, max=TOP_K_MAX, help="Documents to retrieve.")] = TOP_K_DEFAULT,
    purpose: Annotated[
        str, typer.Option(help="What the answer is for; documents may allow some only.")
    ] = PURPOSE_DEFAULT,
) -> None:
    """Ask a paid question."""
    settings, out = current()
    with open_books(settings) as books:
        caller = books.identities.find(key)
        if caller is None or caller.role != "customer":
            raise CommandError("this is not a customer's API key: make one with `patronage customer add`")

        async def ask() -> Answered:
            async with open_service(books) as service:
                return await service.answering.answer(caller, Query(question, EXTRACTIVE, top_k, purpose))

        answered = asyncio.run(ask())
        result = rendering.answer(answered, books.currency)
    if not out.result(result):
        summaries.answer(out, result)


def reembed() -> None:
    """Embed every document anew, after PATRONAGE_EMBEDDER was changed. Stop the server first."""
    settings, out = current()
    with open_books(settings) as books, out.progress("embedding") as bar:
        task = bar.add_task("embedding", total=books.catalogue.count()[0], note="")
        embedder = open_embedder(settings, books.directory)
        done = reembedding.reembed(books, embedder, lambda count: bar.update(task, completed=count))
    if not out.result({"documents": done}):
        out.print(f"{done} documents embedded anew")


def _terms(row: dict[str, Any]) -> str:
    purposes, floor = row["terms"]["purposes"], row["terms"]["floor"]["amount"]
    return f"{'any purpose' if purposes is None else ', '.join(purposes) or 'no purpose'}; floor {floor}"
