"""What decides, from the search to the last unit of money: a digest of each step, of inputs that are the same always.

``python -m tests.deciding DATABASE`` prints the digests as JSON; ``DATABASE`` is one that :func:`fill` filled.
``tests/properties/test_processors.py`` compares what processes print that compute as different processors.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attribution.agreement import agreement
from attribution.arithmetic import Floats, exponential, logarithm
from attribution.cases.case import Case, CasePassage
from attribution.cases.methods import attribute_case
from attribution.games.estimation import estimate, estimate_owen
from attribution.games.semivalues import SEMIVALUES, from_tables
from attribution.games.values import TABLE_PLAYERS_MAX
from attribution.runs.run import Batch, divide, owen_shares, shares
from attribution.value_functions.likelihood import Prompt, log_likelihood
from retrieval.catalogue import Catalogue
from retrieval.chunking import Span
from retrieval.dense_index import DenseIndex
from retrieval.embedding import PassageVectors, Vector, Vectors, _direction
from retrieval.evidence import Question, weigh
from retrieval.near_duplicates import relation
from retrieval.retriever import Retriever
from serving.generators.extractive import Extractive
from serving.generators.query import Query
from serving.rules.rulebook import EXTRACTIVE
from serving.store.database import open_database, sqlite_url
from serving.valuing.functions import Counterfactual, Rerun, Support
from serving.valuing.text_analyzer import EmbeddingAnalyzer
from tests.records import a_record, a_use
from tests.unit.retrieval.library import TEXTS, bring, document

DIMENSION = 384
QUESTIONS = (
    "When was the lighthouse at Cape Hatteras built?",
    "How many strings has a violin, and who made the most famous violins?",
    "What does the blue blood of an octopus have to do with its three hearts in the lighthouse?",
)


class HashedEmbedder:
    """An embedder without a model, whose vectors are the same everywhere: each word has a random one of its own."""

    name = "hashed"
    dimension = DIMENSION
    tokens_max = 512

    def embed_query(self, text: str) -> Vector:
        return _direction(np.asarray([self._word(word) for word in text.lower().split()], np.float32))

    def embed_passage(self, text: str, sentences: Sequence[Span]) -> PassageVectors:
        parts = [self.embed_query(text[start:end]) for start, end in sentences]
        return PassageVectors(self.embed_query(text), np.asarray(parts, np.float32).reshape(-1, DIMENSION))

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def _word(self, word: str) -> Vectors:
        seed = int.from_bytes(hashlib.sha256(word.strip(".,?").encode()).digest()[:8], "big")
        return np.random.default_rng(seed).random(DIMENSION, np.float32) - np.float32(0.5)


class RandomScorer:
    """A language model that finds tokens as probable as it happens."""

    name = "random"
    opening = ()

    def tokenize(self, text: str) -> tuple[list[int], list[Span]]:
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        return list(range(len(spans))), spans

    def score(self, prompt: Prompt, coalitions: Sequence[int] | None = None) -> Floats:
        asked = range(2 ** len(prompt.documents)) if coalitions is None else coalitions
        return np.asfortranarray(-np.random.default_rng(6).random((len(asked), prompt.scored)))


def digest(found: Any) -> str:
    """Of an array, or of whatever else has a representation."""
    data = found.tobytes() if isinstance(found, np.ndarray) else repr(found).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def texts() -> dict[str, str]:
    """The library, and works that are made of its words."""
    dice = np.random.default_rng(3)
    words = sorted({word for text in TEXTS.values() for word in text.split()})
    fillers = {f"filler{i}": " ".join(dice.choice(words, 12)).rstrip(".") + "." for i in range(60)}
    return {**TEXTS, **fillers}


def fill(catalogue: Catalogue) -> None:
    """Bring the works."""
    bring(catalogue, HashedEmbedder(), *(document(name, text) for name, text in texts().items()))


def answers(database: Path) -> Iterator[tuple[str, Any]]:
    """Retrieval, answers, values and credits of questions about the library."""
    embedder = HashedEmbedder()
    catalogue = Catalogue(open_database(sqlite_url(database)))
    retriever = Retriever(catalogue, embedder)
    functions = [Counterfactual(), Support(EmbeddingAnalyzer(embedder)), Rerun()]
    records = []
    for number, question in enumerate(QUESTIONS):
        found = retriever.retrieve(question, top_k=10, purpose="answer", price=10**9)
        made = Extractive().begin(Query(question, EXTRACTIVE), found)
        evidence = [each.evidence for found in found.documents for each in found.passages]
        yield f"similarity {number}", np.concatenate([each.similarity for each in evidence])
        yield f"coverage {number}", np.concatenate([each.coverage for each in evidence])
        yield f"lexical {number}", np.concatenate([each.lexical for each in evidence])
        yield f"sources {number}", [(each.document.id, each.score) for each in found.documents]
        yield f"answer {number}", (made.text, made.citations)
        yield f"worths {number}", np.concatenate(made.grounded.worths)
        for function in functions:
            table = function.table(made.grounded)
            yield f"{function.name} {number}", table
            record = a_record(
                id=f"{number} {function.name}",
                uses=tuple(a_use(each.document.id, f"c{i // 2}") for i, each in enumerate(found.documents)),
                values=tuple(table.tolist()),
            )
            records.append(record)
            yield f"agreement {number} {function.name}", agreement(record, owen_shares(record)[0], table, "", "")
    yield "shares", [shares(record) for record in records]
    yield "units", divide(Batch.of(records)).units


def search() -> Iterator[tuple[str, Any]]:
    """Rows of a snapshot and of a delta, many of which float32 does not tell apart."""
    dice = np.random.default_rng(7)
    base = dice.normal(size=(6, DIMENSION)).astype(np.float32)
    base /= np.sqrt((base.astype(np.float64) ** 2).sum(axis=1, keepdims=True)).astype(np.float32)
    near = base[:, None] + np.float32(2.0**-24) * dice.integers(-2, 3, (6, 250, DIMENSION)).astype(np.float32)
    vectors = near.reshape(-1, DIMENSION)
    index = DenseIndex(DIMENSION).extended(vectors[:1_200]).extended(vectors[1_200:])
    for number, query in enumerate(base):
        yield f"search {number}", index.search(query, 100, np.ones(len(index), np.bool_))


def games() -> Iterator[tuple[str, Any]]:
    """The solvers, on random games."""
    dice = np.random.default_rng(1)
    tables = dice.integers(0, 10**6, (50, 2**9))
    for semivalue in SEMIVALUES.values():
        yield semivalue.name, from_tables(tables, semivalue)
    heights = dice.random((3, 40))

    def value(coalitions: Any) -> Any:
        # Whole numbers: the estimate is what is looked at, and not this sum.
        return np.floor(np.where(coalitions[:, None, :], heights, 0).max(axis=2) * 10**6).sum(axis=1)

    for players, budget in ((13, 300), (40, 2_048), (40, 60)):
        padded = [0] * (40 - players)
        yield (
            f"estimate {players} {budget}",
            estimate(lambda each: value(np.insert(each, padded, False, axis=1)), players, budget=budget, seed=5),  # noqa: B023 # called at once
        )
    yield "estimate in unions", estimate_owen(value, tuple(i // 3 for i in range(40)), budget=4_000, seed=5)
    documents = list(TEXTS.values())[:7]
    yield "likelihood", log_likelihood(QUESTIONS[0], documents[0], documents, RandomScorer()).values


def cases(embedder: HashedEmbedder) -> Iterator[tuple[str, Any]]:
    """Cases of other systems, of few passages and of many."""
    for count in (5, TABLE_PLAYERS_MAX + 5):
        passages = tuple(
            CasePassage(name, text, name, f"c{i % 4}", registered_at=f"2026-01-{i + 1:02}T00:00:00Z")
            for i, (name, text) in enumerate(list(texts().items())[:count])
        )
        case = Case(f"case {count}", QUESTIONS[1], passages, " ".join(list(TEXTS.values())[:3]))
        yield case.id, attribute_case(case, EmbeddingAnalyzer(embedder))


def steps(database: Path) -> Iterator[tuple[str, Any]]:
    """Everything that must not differ."""
    dice = np.random.default_rng(2)
    yield "exponential", exponential(dice.uniform(-50, 20, 100_000))
    yield "logarithm", [logarithm(2 * total + 2, 2 * n + 1) for total in (9, 646, 10**6) for n in range(9)]
    yield "vector", _direction(dice.normal(size=(500, DIMENSION)).astype(np.float32))
    embedder = HashedEmbedder()
    related = relation([*TEXTS.values(), *TEXTS.values()], lambda text: embedder.embed_passage(text, []).passage)
    yield "copies", [[related(i, j) for j in range(i)] for i in range(2 * len(TEXTS))]
    yield "no evidence", weigh(Question("", embedder.embed_query("a"), np.zeros(0, np.uint32), np.zeros(0)), [])
    yield from search()
    yield from answers(database)
    yield from cases(embedder)
    yield from games()


def libraries() -> Iterator[tuple[str, Any]]:
    """What libraries compute in an order or to a last digit of their own: it shows what the variables change."""
    dice = np.random.default_rng(4)
    first, second = dice.normal(size=(2, 300, DIMENSION))
    yield "numpy's exponential", np.exp(dice.uniform(-50, 20, 100_000))
    yield "BLAS", first @ second.T


if __name__ == "__main__":
    printed = {
        "steps": {name: digest(found) for name, found in steps(Path(sys.argv[1]))},
        "libraries": {name: digest(found) for name, found in libraries()},
    }
    sys.stdout.write(json.dumps(printed))
