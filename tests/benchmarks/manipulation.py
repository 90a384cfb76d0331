"""The manipulation bench: what attacks on attribution earn, by method, before and after the defence.

``python -m tests.benchmarks.manipulation [--write] [--seed 1] [FOLDER]``, where FOLDER holds ``documents.jsonl`` and
``questions.jsonl``. Texts are real, retrieval and answers are the product's. With ``--write`` the tables of
``docs/manipulation.md`` and its plot are made anew, else they are printed.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np

from attribution.players import groups, paid
from attribution.shapley import owen_values, unions_of
from attribution.values import counterfactual
from metering.records import VALUE_ONE
from retrieval import passage_table, retriever
from retrieval.catalogue import Catalogue, prepare
from retrieval.documents import Document
from retrieval.embedding import MiniLMEmbedder
from retrieval.retriever import Retrieval, Retriever
from serving.database import open_database, sqlite_url
from serving.generators import extractive
from tests.benchmarks import attacks
from tests.benchmarks.squad import DATA

PAGE = Path(__file__).parents[2] / "docs" / "manipulation.md"
PLOT = PAGE.with_suffix(".svg")
TOP_K = 5
TARGETS, ASKED_OF_EACH = 16, 5
COPIES = (2, 4, 8)
ALPHAS = (0.01, 0.05, 0.1, 0.2)
METHODS = ("equal", "score-proportional", "citation-count", "leave-one-out", "max game", "counterfactual")
"""The last one is what Patronage pays by; where it is written twice, the copies are under one account and many."""

Credits = dict[str, float]
"""By document."""


class Question(msgspec.Struct):
    question: str
    document: str
    answers: list[str]
    answerable: bool


@dataclass
class Lab:
    """Real texts in the product's catalogue, which an attack is added to."""

    documents: list[Document]
    questions: list[Question]
    embedder: MiniLMEmbedder
    folder: Path
    prepared: dict[str, list[passage_table.PreparedPassage]] = field(default_factory=dict)

    def passages(self, document: Document) -> list[passage_table.PreparedPassage]:
        if document.text not in self.prepared:
            self.prepared[document.text] = prepare(document, self.embedder)
        return self.prepared[document.text]

    @contextmanager
    def opened(self, brought: Sequence[Document] = (), *, defended: bool = True) -> Iterator[Retriever]:
        """The retriever of the corpus with more documents, which are registered later."""
        base = self.folder / "base.sqlite3"
        if not base.exists():
            self._fill(base, self.documents)
        path = Path(shutil.copy(base, self.folder / "attacked.sqlite3"))
        with ExitStack() as stack:
            if not defended:
                stack.enter_context(patch.object(passage_table, "repeats", lambda *_: False))
                stack.enter_context(patch.object(retriever, "repeated_sentences", nothing_repeated))
            self._fill(path, brought)
            engine = open_database(sqlite_url(path))
            yield Retriever(Catalogue(engine), self.embedder)
            engine.dispose()
        for each in self.folder.glob("attacked.sqlite3*"):
            each.unlink()

    def _fill(self, path: Path, documents: Sequence[Document]) -> None:
        engine = open_database(sqlite_url(path))
        Catalogue(engine).put([(each, self.passages(each)) for each in documents], self.embedder.name)
        engine.dispose()

    def share(self, brought: Sequence[Document]) -> float:
        """Which part of all passages an attacker's are."""
        theirs = sum(len(self.passages(each)) for each in brought)
        return theirs / (theirs + sum(len(self.passages(each)) for each in self.documents))


def nothing_repeated(texts: Sequence[tuple[str, np.ndarray]], _: object) -> list[np.ndarray]:
    return [np.full(len(spans), -1) for _, spans in texts]


def credits_of(found: Retrieval, owners: Callable[[str, str], str]) -> dict[str, Credits]:
    """What every document gets of one query by each method; ``owners`` names the account of a document."""
    answer = extractive.answer(found)
    read = found.documents[: len(answer.worths)]
    ids = [each.document.id for each in read]
    table = counterfactual(answer.worths, answer.slots)
    everyone = len(table) - 1
    scores = np.asarray([each.score for each in read])
    cited = np.bincount([each.source for each in answer.citations], minlength=len(read))
    without = np.asarray([table[everyone] - table[everyone ^ 1 << i] for i in range(len(read))])
    best = np.asarray([each.max(initial=0.0) for each in answer.worths])
    unions = unions_of([owners(each.document.id, each.document.contributor) for each in read])
    numerators, denominator = owen_values(table[None], unions)
    weights = {
        "equal": normalised(np.ones(len(read))),
        "score-proportional": normalised(scores - scores.min(initial=np.inf)),
        "citation-count": normalised(cited),
        "leave-one-out": normalised(without),
        "max game": normalised(max_game(best)),
        "counterfactual": numerators[0] / (denominator * VALUE_ONE),
    }
    return {method: dict(zip(ids, values.tolist(), strict=True)) for method, values in weights.items()}


def max_game(worths: np.ndarray) -> np.ndarray:
    """Shapley values of the largest worth: ascending, phi_i = sum of (x_k - x_(k-1)) / (n - k + 1) up to i."""
    order = np.argsort(worths)
    steps = np.diff(worths[order], prepend=0.0) / np.arange(len(worths), 0, -1)
    values = np.empty(len(worths))
    values[order] = np.cumsum(steps)
    return values


def normalised(values: np.ndarray) -> np.ndarray:
    return values / values.sum() if values.sum() > 0 else np.zeros(len(values))


Owners = Callable[[str, str], str]
Asked = list[tuple[Question, Retrieval]]


def as_brought(_: str, contributor: str) -> str:
    return contributor


def ask(found: Retriever, questions: Sequence[Question], suffix: str = "") -> Asked:
    return [
        (each, found.retrieve(each.question + suffix, top_k=TOP_K, purpose="answer", price=0)) for each in questions
    ]


def captured(asked: Asked, owned: Callable[[Question, str], bool], owners: Owners = as_brought) -> dict[str, Capture]:
    """By method, what ``owned`` documents got of all questions, and what everyone got."""
    sums = {method: Capture() for method in METHODS}
    for question, retrieval in asked:
        for method, credits in credits_of(retrieval, owners).items():
            sums[method].mine += sum(units for name, units in credits.items() if owned(question, name))
            sums[method].all += sum(credits.values())
    return sums


@dataclass
class Capture:
    mine: float = 0.0
    all: float = 0.0

    def over(self, share: float) -> float:
        """The captured share of the credit, divided by a share of the corpus."""
        return self.mine / self.all / share if self.all else 0.0


def both(lab: Lab, brought: Sequence[Document], questions: Sequence[Question], suffix: str = "") -> tuple[Asked, Asked]:
    """What is retrieved without the defence and with it."""
    answers = []
    for defended in (False, True):
        with lab.opened(brought, defended=defended) as found:
            answers.append(ask(found, questions, suffix))
    return answers[0], answers[1]


def own_copies(targets: Sequence[Document], make: Callable[..., str], count: int) -> list[Document]:
    """``count`` texts instead of one, of every target: the first is there already."""
    generator = random.Random(count)
    return [
        Document(f"{each.id}#{i}", each.title, make(each.text, generator), each.contributor)
        for each in targets
        for i in range(1, count)
    ]


def owner_gains(lab: Lab, targets: Sequence[Document], questions: Sequence[Question]) -> Iterator[list[str]]:
    """What the owner of a work gains by bringing it several times."""

    def own(question: Question, name: str) -> bool:
        return name.partition("#")[0] == question.document

    def many(name: str, contributor: str) -> str:
        return name if "#" in name else contributor

    with lab.opened() as found:
        honest = captured(ask(found, questions), own)
    for kind, make in attacks.COPIES.items():
        for count in COPIES:
            cells = []
            for asked in both(lab, own_copies(targets, make, count), questions):
                one, other = captured(asked, own), captured(asked, own, many)
                got = [*one.values(), other[METHODS[-1]]]
                base = [*honest.values(), honest[METHODS[-1]]]
                cells.append([a.mine / b.mine - 1 for a, b in zip(got, base, strict=True)])
            yield [f"{kind}, k = {count}", *(f"{a:+.1%} → {b:+.1%}" for a, b in zip(*cells, strict=True))]


def crowding(lab: Lab, targets: Sequence[Document], questions: Sequence[Question]) -> Iterator[list[str]]:
    """How many of the documents that are found without copies are still found beside eight of each target."""
    with lab.opened() as found:
        honest = [{each.document.id for each in got.documents} for _, got in ask(found, questions)]
    for kind, make in (attacks.COPIES | attacks.HIDDEN).items():
        kept = [
            np.mean(
                [
                    len(names & {each.document.id for each in got.documents}) / len(names)
                    for names, (_, got) in zip(honest, asked, strict=True)
                ]
            )
            for asked in both(lab, own_copies(targets, make, COPIES[-1]), questions)
        ]
        yield [f"{kind}, k = {COPIES[-1]}", *(f"{share:.0%}" for share in kept)]


def equal_sources(limit: int = 2) -> Iterator[list[str]]:
    """Attribution alone: one of two equal sources is there k times, all under dates of their own."""
    for count in COPIES:
        worths = np.ones(count + 1)
        relation = np.zeros((count + 1, count + 1), np.bool_)
        relation[:count, :count] = True
        grouped = groups(relation, list(range(count + 1)), [str(i) for i in range(count + 1)])
        plain = max_game(worths)
        merged = paid(grouped, max_game(worths[: len(grouped)]).tolist())
        gains = [limit * sum(each[:count]) - 1 for each in (plain.tolist(), merged)]
        yield [f"k = {count}", *(f"{gain:+.0%}" for gain in gains)]


def attacks_on_others(
    lab: Lab, targets: Sequence[Document], questions: Sequence[Question], seed: int
) -> dict[str, list[Document]]:
    """What is brought by each attack, by name."""
    generator = random.Random(seed)

    def stolen(make: Callable[..., str]) -> list[Document]:
        return [
            Document(f"{each.id}#{i}", each.title, make(each.text, generator), f"thief-{i}")
            for each in targets
            for i in range(4)
        ]

    articles: dict[str, list[str]] = {}
    for each in lab.documents:
        articles.setdefault(each.contributor, []).append(each.text)
    topics = {each.id: articles[each.contributor] for each in lab.documents}
    lies = [each.answers[0] for each in lab.questions if each.answerable]
    ways = attacks.COPIES | attacks.HIDDEN
    found = {f"4 copies of a work of another, {kind}": stolen(make) for kind, make in ways.items()}
    found["two works of others in one"] = [
        Document(f"{a.id}#bridge", a.title, f"{a.text}\n\n{b.text}", "thief")
        for a, b in zip(targets, targets[1:], strict=False)
    ]
    found["keyword stuffing"] = [
        Document(f"stuffed-{i}", "", attacks.stuffed(topics[each.document], generator), f"liar-{i}")
        for i, each in enumerate(questions)
    ]
    for name, make in (("question echo with a false answer", attacks.echo), ("the same, restated", attacks.statement)):
        found[name] = [
            Document(f"echo-{i}", "", make(each.question, generator.choice(lies)), f"liar-{i}")
            for i, each in enumerate(questions)
        ]
    return found


def captures(
    lab: Lab, targets: Sequence[Document], questions: Sequence[Question], seed: int
) -> Iterator[tuple[str, float, list[tuple[float, float]]]]:
    """Each attack: its share of the corpus, and by method the captured share over that, before and after."""
    for name, brought in attacks_on_others(lab, targets, questions, seed).items():
        theirs, share = {each.id for each in brought}, lab.share(brought)
        found = [captured(asked, lambda _, document: document in theirs) for asked in both(lab, brought, questions)]  # noqa: B023
        yield name, share, [(found[0][m].over(share), found[1][m].over(share)) for m in METHODS]


def triggers(
    lab: Lab, questions: Sequence[Question], seed: int
) -> Iterator[tuple[str, float, list[tuple[float, float]]]]:
    """A collective plants a string that is then asked for: captured share over corpus share, honest and planted."""
    for alpha in ALPHAS:
        generator = random.Random(seed)
        members = generator.sample(lab.documents, round(alpha * len(lab.documents)))
        planted = [
            msgspec.structs.replace(each)
            if False
            else Document(each.id, each.title, attacks.with_trigger(each.text, [TRIGGER], generator), each.contributor)
            for each in members
        ]
        theirs = {each.id for each in members}
        with lab.opened() as found:
            honest = captured(ask(found, questions, SUFFIX), lambda _, document: document in theirs)  # noqa: B023
        with lab.opened(planted) as found:
            got = captured(ask(found, questions, SUFFIX), lambda _, document: document in theirs)  # noqa: B023
        yield f"α = {alpha:.0%}", alpha, [(honest[m].over(alpha), got[m].over(alpha)) for m in METHODS]
