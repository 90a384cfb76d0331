"""The laboratory of the manipulation bench: the product's retriever and answers, every method's credit."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import numpy as np

from attribution.games.shapley import owen_values, unions_of
from attribution.games.values import counterfactual
from metering.records import VALUE_ONE
from retrieval import passage_table, retriever
from retrieval.catalogue import Catalogue, prepare
from retrieval.documents import Document
from retrieval.embedding import MiniLMEmbedder
from retrieval.near_duplicates import Words, contained
from retrieval.retriever import Retrieval, Retriever
from serving.generators import extractive
from serving.store.database import open_database, sqlite_url

TOP_K = 5
OURS = "counterfactual"
METHODS = ("equal", "score-proportional", "citation-count", "leave-one-out", "max game", OURS)


@dataclass(frozen=True)
class Question:
    """A question that people asked of one document."""

    text: str
    document: str
    answer: str


Asked = list[tuple[Question, Retrieval]]
Owners = Callable[[str, str], str]
"""From a document and who brought it to the account that it plays for."""


@dataclass
class Lab:
    """A corpus in the product's catalogue, to which an attack is added."""

    documents: list[Document]
    questions: list[Question]
    embedder: MiniLMEmbedder
    folder: Path
    prepared: dict[str, list[passage_table.PreparedPassage]] = field(default_factory=dict)

    @classmethod
    def read(cls, data: Path, embedder: MiniLMEmbedder, folder: Path) -> Self:
        """The documents and the answerable questions of a folder; databases are made in another one."""
        documents = [json.loads(line) for line in (data / "documents.jsonl").open(encoding="utf-8")]
        questions = [json.loads(line) for line in (data / "questions.jsonl").open(encoding="utf-8")]
        return cls(
            [Document(each["id"], each["title"], each["text"], each["contributor"]) for each in documents],
            [
                Question(each["question"], each["document"], each["answers"][0])
                for each in questions
                if each["answerable"]
            ],
            embedder,
            folder,
        )

    def targets(self, count: int, asked_of_each: int, seed: int) -> tuple[list[Document], list[Question]]:
        """Documents to attack, and questions whose answers are in them."""
        generator = random.Random(seed)
        of_each: dict[str, list[Question]] = {}
        for each in self.questions:
            of_each.setdefault(each.document, []).append(each)
        possible = [each for each in self.documents if len(of_each.get(each.id, ())) >= asked_of_each]
        chosen = generator.sample(possible, count)
        return chosen, [each for target in chosen for each in generator.sample(of_each[target.id], asked_of_each)]

    def passages(self, document: Document) -> list[passage_table.PreparedPassage]:
        """The passages of a text, embedded once."""
        if document.text not in self.prepared:
            self.prepared[document.text] = prepare(document, self.embedder)
        return self.prepared[document.text]

    def share(self, brought: Sequence[Document]) -> float:
        """Which part of all passages those of an attack are."""
        theirs = sum(len(self.passages(each)) for each in brought)
        return theirs / (theirs + sum(len(self.passages(each)) for each in self.documents))

    def ask(
        self, questions: Sequence[Question], brought: Sequence[Document] = (), *, defended: bool = True, more: str = ""
    ) -> Asked:
        """What is retrieved for questions, with ``more`` at their end, once more documents were registered."""
        with self._opened(brought, defended=defended) as found:
            return [
                (each, found.retrieve(each.text + more, top_k=TOP_K, purpose="answer", price=0)) for each in questions
            ]

    def before_and_after(self, questions: Sequence[Question], brought: Sequence[Document]) -> tuple[Asked, Asked]:
        """The same without the defence and with it."""
        return self.ask(questions, brought, defended=False), self.ask(questions, brought)

    def copies_among(self, documents: Sequence[Document]) -> tuple[int, list[float]]:
        """How many passages these documents have, and of each that is taken for a copy the part its original has."""
        path = self.folder / "among.sqlite3"
        self._fill(path, documents)
        engine = open_database(sqlite_url(path))
        stored = Catalogue(engine)
        every = list(stored.passages_of([each.number for each in stored.page(limit=len(documents))]))
        engine.dispose()
        path.unlink()
        whole = {each.id: each.document for each in every}
        runs = {
            number: np.unique(np.concatenate([each.shingled[0] for each in every if each.document == number]))
            for number in set(whole.values())
        }
        copies = [each for each in every if each.original is not None]
        return len(every), [contained(each.wording.runs, runs[whole[each.original]]) for each in copies]

    @contextmanager
    def _opened(self, brought: Sequence[Document], *, defended: bool) -> Iterator[Retriever]:
        base = self.folder / "base.sqlite3"
        if not base.exists():
            self._fill(base, self.documents)
        path = Path(shutil.copy(base, self.folder / "attacked.sqlite3"))
        with ExitStack() as stack:
            if not defended:
                stack.enter_context(patch.object(passage_table, "repeats", lambda *_: False))
                stack.enter_context(patch.object(retriever, "repeated_sentences", _nothing))
                stack.enter_context(patch.object(retriever, "echoes", _no_echo))
            self._fill(path, brought)
            engine = open_database(sqlite_url(path))
            yield Retriever(Catalogue(engine), self.embedder)
            engine.dispose()

    def _fill(self, path: Path, documents: Sequence[Document]) -> None:
        engine = open_database(sqlite_url(path))
        Catalogue(engine).put([(each, self.passages(each)) for each in documents], self.embedder.name)
        engine.dispose()


def _nothing(worded: Sequence[Words], _: object) -> list[np.ndarray]:
    return [np.full(len(each.lengths), -1) for each in worded]


def _no_echo(_: str, passages: Sequence[passage_table.PreparedPassage]) -> list[np.ndarray]:
    return [np.zeros(len(each.sentence_terms), np.bool_) for each in passages]


def as_brought(_: str, contributor: str) -> str:
    return contributor


@dataclass
class Capture:
    """What some documents got of the credit of all questions."""

    mine: float = 0.0
    all: float = 0.0

    def over(self, share: float) -> float:
        """The captured share of the credit, divided by a share of the corpus."""
        return self.mine / self.all / share if self.all else 0.0


def captured(asked: Asked, mine: Callable[[Question, str], bool], owners: Owners = as_brought) -> dict[str, Capture]:
    """By method, what the documents got that are ``mine`` for a question."""
    sums = {method: Capture() for method in METHODS}
    for question, retrieval in asked:
        for method, credited in credits_of(retrieval, owners).items():
            sums[method].mine += sum(part for name, part in credited.items() if mine(question, name))
            sums[method].all += sum(credited.values())
    return sums


def credits_of(found: Retrieval, owners: Owners = as_brought) -> dict[str, dict[str, float]]:
    """By method, the part of one query's royalties that each document gets."""
    answer = extractive.answer(found)
    read = found.documents[: len(answer.worths)]
    table = counterfactual(answer.worths, answer.slots)
    everyone = len(table) - 1
    scores = np.asarray([each.score for each in read])
    unions = unions_of([owners(each.document.id, each.document.contributor) for each in read])
    numerators, denominator = owen_values(table[None], unions)
    parts: dict[str, Any] = {
        "equal": _whole(np.ones(len(read))),
        "score-proportional": _whole(scores - scores.min(initial=np.inf)),
        "citation-count": _whole(np.bincount([each.source for each in answer.citations], minlength=len(read))),
        "leave-one-out": _whole(np.asarray([table[everyone] - table[everyone ^ 1 << i] for i in range(len(read))])),
        "max game": _whole(max_game(np.asarray([each.max(initial=0.0) for each in answer.worths]))),
        OURS: numerators[0] / (denominator * VALUE_ONE),
    }
    ids = [each.document.id for each in read]
    return {method: dict(zip(ids, values.tolist(), strict=True)) for method, values in parts.items()}


def max_game(worths: np.ndarray) -> np.ndarray:
    """Shapley values of a maximum: in ascending order, phi_i = sum over k <= i of (x_k - x_(k-1)) / (n - k + 1)."""
    order = np.argsort(worths)
    values = np.empty(len(worths))
    values[order] = np.cumsum(np.diff(worths[order], prepend=0.0) / np.arange(len(worths), 0, -1))
    return values


def _whole(values: np.ndarray) -> np.ndarray:
    return values / values.sum() if values.sum() > 0 else np.zeros(len(values))
