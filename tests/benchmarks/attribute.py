"""``patronage attribute`` on annotated cases: who is credited, and in how many milliseconds.

``python -m tests.benchmarks.attribute [--questions 300] [--seed 1] [FOLDER]``, where FOLDER holds
``hotpotqa-annotated/`` and ``squad-dev/``. Prints one JSON object. The marks of the annotators are read only after the
credits are computed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from attribution.cases.case import Case, CasePassage, Result, decode_case
from attribution.cases.methods import METHODS, attribute_case
from attribution.games.players import Relation
from attribution.value_functions.support import Span, Vectors
from retrieval.embedding import Embedder, MiniLMEmbedder
from retrieval.ingest import Ingest
from retrieval.readers import read
from retrieval.retriever import Retriever
from serving.assembly import open_books
from serving.generators import extractive
from serving.settings import Settings
from serving.valuing.text_analyzer import EmbeddingAnalyzer

DATA = Path(__file__).parents[3] / "shared" / "data"
HOTPOTQA, SQUAD = "hotpotqa-annotated", "squad-dev"
METHODS_COMPARED = ("shapley", "leave-one-out", "banzhaf", "token-count", "citation-count", "equal")


class _Remembering(EmbeddingAnalyzer):
    """Analyzes a text once, however many methods are compared on it."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self._vectors = cache(super().vectors)
        self._relation = cache(super().relation)

    def vectors(self, text: str, spans: Sequence[Span]) -> Vectors:
        return self._vectors(text, tuple(spans))

    def relation(self, texts: Sequence[str]) -> Relation:
        return self._relation(tuple(texts))


def jaccard(weights: Sequence[float], marked: set[int]) -> float:
    """Of the passages with the largest weights, as many as are marked, and the marked ones: shared, of all."""
    largest = set(sorted(range(len(weights)), key=lambda i: (-weights[i], i))[: len(marked)])
    return len(largest & marked) / len(largest | marked)


def hotpotqa(folder: Path, embedder: Embedder) -> dict[str, Any]:
    """Agreement with people on questions that take two passages or more."""
    lines = (folder / "cases.jsonl").read_bytes().splitlines()
    marks = [[passage["relevance"] for passage in json.loads(line)["passages"]] for line in lines]
    cases = [decode_case(line) for line in lines]
    analyzer = EmbeddingAnalyzer(embedder)
    attribute_case(cases[0], analyzer)  # the first call loads what later ones find loaded
    results, latencies, used = [], [], []
    for case in cases:
        began, before = time.perf_counter(), time.process_time()
        results.append(attribute_case(case, analyzer))
        latencies.append((time.perf_counter() - began) * 1000)
        used.append((time.process_time() - before) * 1000)
    comparing = _Remembering(embedder)
    marked = [{i for i, mark in enumerate(each) if mark} for each in marks]
    credits_ = [
        sorted((shared(result)[i] for i in each), reverse=True) for result, each in zip(results, marked, strict=True)
    ]
    found: dict[str, Any] = {
        "cases": len(cases),
        "ms_per_case_p50": round(statistics.median(latencies), 1),
        "ms_per_case_max": round(max(latencies), 1),
        "cpu_ms_per_case_p50": round(statistics.median(used), 1),
        "second_marked_passage": mean(each[1] for each in credits_ if len(each) > 1),
        "documents_add": mean(result.value_all - result.value_none for result in results),
    }
    for method in METHODS_COMPARED:
        weights = [shared(attribute_case(case, comparing, method=method)) for case in cases]
        found[f"jaccard_{method}"] = mean(jaccard(each, most) for each, most in zip(weights, marked, strict=True))
    return found


def squad(folder: Path, embedder: Embedder, count: int, seed: int, *, every: int = 1) -> dict[str, Any]:
    """The part of the credit that goes to the paragraph a question was asked of, where it was retrieved.

    The corpus is every paragraph, or every second with ``every=2``; it is asked only of what is in it.
    """
    lines = (folder / "documents.jsonl").read_text().splitlines()[::every]
    texts = {each["id"]: each for each in map(json.loads, lines)}
    questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    questions = [question for question in questions if question["answerable"] and question["document"] in texts]
    random.Random(seed).shuffle(questions)
    answered = _answered(embedder, [each["question"] for each in questions[:count]], texts)
    analyzer = _Remembering(embedder)
    gold: dict[str, list[float]] = {method: [] for method in METHODS}
    for question, case in zip(questions, answered, strict=False):
        places = [i for i, passage in enumerate(case.passages) if passage.id == question["document"]]
        for method in METHODS if places else ():
            gold[method].append(shared(attribute_case(case, analyzer, method=method))[places[0]])
    return {"questions": len(gold["equal"]), **{f"gold_{method}": mean(each) for method, each in gold.items()}}


def _answered(embedder: Embedder, questions: Sequence[str], texts: dict[str, Any]) -> list[Case]:
    """The questions with the product's own top five and its extractive answer, as a log would have them."""
    cases = []
    with tempfile.TemporaryDirectory() as scratch, open_books(Settings(data_dir=Path(scratch) / "data")) as books:
        pipeline = Ingest(books.catalogue, embedder, create_contributors=True)
        corpus = Path(scratch) / "documents.jsonl"
        corpus.write_text("".join(f"{json.dumps(each)}\n" for each in texts.values()))
        pipeline.run(read([corpus], None, books.currency.parse_amount))
        retriever = Retriever(books.catalogue, embedder)
        for question in questions:
            found = retriever.retrieve(question, top_k=5, purpose="answer", price=10**9)
            answer = extractive.answer(found)
            passages = tuple(
                CasePassage(
                    each.document.id, texts[each.document.id]["text"], each.document.title, None, score=each.score
                )
                for each in found.documents
            )
            cases.append(Case(question, question, passages, answer.text if answer.citations else ""))
    return cases


def shared(result: Result) -> list[float]:
    """The weights as parts of what all passages earned."""
    total = sum(share.weight for share in result.shares) or 1.0
    return [share.weight / total for share in result.shares]


def mean(values: Any) -> float:
    return round(statistics.mean(values), 4)


def measure(folder: Path, count: int, seed: int) -> dict[str, Any]:
    embedder = MiniLMEmbedder(Path(tempfile.gettempdir()) / "patronage-tests-models")
    return {
        "hotpotqa": hotpotqa(folder / HOTPOTQA, embedder),
        "squad": squad(folder / SQUAD, embedder, count, seed),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DATA)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    sys.stdout.write(json.dumps(measure(chosen.folder, chosen.questions, chosen.seed), indent=2) + "\n")
