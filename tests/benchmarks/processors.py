"""The same questions answered as several processors and in one thread and two: do the same bytes come out?

``python -m tests.benchmarks.processors [--questions 200] [--seed 1] [FOLDER]``, where FOLDER holds ``documents.jsonl``
and ``questions.jsonl``. Prints a table: how many questions have the sources, answers, values and credits of the first
row. Each row is a process of its own, as ``tests/processors.py`` says: in the first table over documents that were
embedded once, in the second each process embeds the documents and the questions itself.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from attribution.games.values import COUNTERFACTUAL
from attribution.runs.run import Batch, divide, shares
from attribution.value_functions.support import SUPPORT
from retrieval.catalogue import Catalogue
from retrieval.embedding import MiniLMEmbedder
from retrieval.ingest import Ingest
from retrieval.readers import read
from retrieval.retriever import Retriever
from serving.assembly import open_books
from serving.generators.extractive import Extractive
from serving.generators.query import Query
from serving.rules.rulebook import EXTRACTIVE
from serving.settings import Settings
from serving.store.database import open_database, sqlite_url
from serving.valuing.functions import Counterfactual, Support
from serving.valuing.text_analyzer import EmbeddingAnalyzer
from tests.benchmarks.squad import DATA
from tests.deciding import digest
from tests.processors import configurations, start
from tests.records import a_record, a_use

MODULE = "tests.benchmarks.processors"
MEASURES = ("vectors", "sources", "answers", "values", "credits")


def embedder() -> MiniLMEmbedder:
    return MiniLMEmbedder(Path(tempfile.gettempdir()) / "patronage-tests-models")


def ingest(folder: Path, data_dir: Path) -> Path:
    """A catalogue of the documents; its database."""
    with open_books(Settings(data_dir=data_dir)) as books:
        pipeline = Ingest(books.catalogue, embedder(), create_contributors=True)
        pipeline.run(read([folder / "documents.jsonl"], None, books.currency.parse_amount))
    return data_dir / "patronage.sqlite3"


def answered(database: Path, questions: list[str]) -> Iterator[dict[str, str]]:
    """Digests of what each question gives."""
    model = embedder()
    retriever = Retriever(Catalogue(open_database(sqlite_url(database))), model)
    functions = {COUNTERFACTUAL: Counterfactual(), SUPPORT: Support(EmbeddingAnalyzer(model))}
    for number, question in enumerate(questions):
        found = retriever.retrieve(question, top_k=5, purpose="answer", price=10**9)
        made = Extractive().begin(Query(question, EXTRACTIVE), found)
        uses = tuple(a_use(each.document.id, each.document.contributor) for each in found.documents)
        tables = {name: tuple(function.table(made.grounded).tolist()) for name, function in functions.items()}
        records = [
            a_record(id=f"{number} {name}", uses=uses, values=table, value_function=name)
            for name, table in tables.items()
        ]
        yield {
            "vectors": digest(found.question.vector),
            "sources": digest([(each.document.id, each.score) for each in found.documents]),
            "answers": digest((made.text, made.citations)),
            "values": digest(tables),
            "credits": digest((divide(Batch.of(records)).units.tolist(), [shares(record) for record in records])),
        }


def compared(title: str, given: dict[str, list[str]], folder: Path, questions: list[str]) -> Table:
    """A table of one process for each configuration; ``given`` are the arguments of each."""
    table = Table("processor/threads", *MEASURES, title=title, box=None, header_style="bold")
    first: list[dict[str, str]] = []
    for name, environment in configurations():
        process = start(MODULE, [str(folder), "--worker", *given[name]], environment)
        printed, _ = process.communicate()
        found: list[dict[str, str]] = json.loads(printed)
        assert len(found) == len(questions)
        first = first or found
        same = [sum(a[each] == b[each] for a, b in zip(found, first, strict=True)) for each in MEASURES]
        table.add_row(name, *(f"{count}/{len(questions)}" for count in same))
    return table


def chosen(folder: Path, count: int, seed: int) -> list[str]:
    questions = [json.loads(line)["question"] for line in (folder / "questions.jsonl").open()]
    random.Random(seed).shuffle(questions)
    return questions[:count]


def main(arguments: Any) -> None:
    questions = chosen(arguments.folder, arguments.questions, arguments.seed)
    if arguments.worker:
        data_dir = Path(arguments.worker)
        database = data_dir / "patronage.sqlite3"
        if not database.exists():
            database = ingest(arguments.folder, data_dir)
        sys.stdout.write(json.dumps(list(answered(database, questions))))
        return
    sizes = ["--questions", str(arguments.questions), "--seed", str(arguments.seed)]
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        once = Path(scratch) / "once"
        ingest(arguments.folder, once)
        names = [name for name, _ in configurations()]
        given = {name: [str(once), *sizes] for name in names}
        console.print(compared("documents embedded once", given, arguments.folder, questions))
        given = {name: [f"{scratch}/{place}", *sizes] for place, name in enumerate(names)}
        console.print(compared("documents embedded by each", given, arguments.folder, questions))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DATA)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", metavar="DATA_DIR", help="answer in this process and print the digests")
    main(parser.parse_args())
