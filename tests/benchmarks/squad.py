"""The main job on SQuAD through HTTP: retrieval, answers, credit, conservation, speed.

``python -m tests.benchmarks.squad [--questions 1000] [--seed 1] [--value-function counterfactual/1] [FOLDER]``, where
FOLDER holds ``documents.jsonl`` and ``questions.jsonl``. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil

from attribution.games.values import COUNTERFACTUAL
from attribution.runs.adopted import VALUE_FUNCTIONS
from attribution.runs.run import shares
from metering.records import VALUE_ONE
from retrieval.retriever import Retriever
from serving.assembly import open_books, open_embedder, open_valuing
from serving.generators.extractive import Extractive
from serving.generators.query import Query
from serving.rules.rulebook import EXTRACTIVE
from serving.settings import Settings
from tests.records import a_record, a_use
from tests.servers import Server, cli

DATA = Path(__file__).parents[3] / "shared" / "data" / "squad-dev"


def normalised(text: str) -> str:
    return " " + " ".join(re.findall(r"\w+", text.lower())) + " "


def measure(folder: Path, count: int, seed: int, value_function: str = COUNTERFACTUAL) -> dict[str, Any]:
    questions = [json.loads(line) for line in (folder / "questions.jsonl").open()]
    random.Random(seed).shuffle(questions)
    questions = questions[:count]
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = Path(scratch) / "data"
        began = time.perf_counter()
        ingested = cli(data_dir, "ingest", str(folder / "documents.jsonl"), "--create-contributors")
        ingest_s = time.perf_counter() - began
        cli(data_dir, "policy", "set", "--value-function", value_function)
        key = cli(data_dir, "customer", "add", "Bench", "--credit", "1000")["api_key"]
        with Server(data_dir) as server, server.client(key) as client:
            replies, latencies = ask(client, questions)
            assert server.process is not None
            memory = psutil.Process(server.process.pid).memory_info().rss
            receipts = [client.get(f"/v1/receipts/{reply['receipt']['id']}").json() for reply in replies]
            spent = Decimal(1000) - Decimal(client.get("/v1/account").json()["balance"]["amount"])
        period = time.strftime("%Y-%m", time.gmtime())
        closed = cli(data_dir, "period", "close", period, "--early")
        audit = cli(data_dir, "audit")
        attribution_ms = attributed(data_dir, [question["question"] for question in questions], value_function)
    per_query = all(
        amount(receipt, "charge") == sum(amount(receipt, name) for name in ("cost", "platform", "pool"))
        for receipt in receipts
    )
    total = sum(amount(closed, name) for name in ("cost", "platform", "credited", "residual"))
    return {
        "value_functions": closed["value_functions"],
        "questions": len(questions),
        "documents_per_second": round(ingested["documents"] / ingest_s, 1),
        **quality(questions, replies),
        "latency_ms_p50": round(statistics.median(latencies) * 1000, 2),
        "latency_ms_p99": round(sorted(latencies)[int(len(latencies) * 0.99)] * 1000, 2),
        "attribution_ms": round(attribution_ms, 3),
        "attribution_part": round(attribution_ms / 1000 / statistics.mean(latencies), 4),
        "server_mib": round(memory / 2**20),
        "conserved_per_query": per_query,
        "conserved_total": total == amount(closed, "charged") == spent,
        "charged": closed["charged"]["amount"],
        "audit": audit["balanced"],
    }


def ask(client: Any, questions: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[float]]:
    replies, latencies = [], []
    for question in questions:
        began = time.perf_counter()
        reply = client.post("/v1/query", json={"question": question["question"], "top_k": 5})
        latencies.append(time.perf_counter() - began)
        assert reply.status_code == 200, reply.text
        replies.append(reply.json())
    return replies, latencies


def attributed(data_dir: Path, questions: list[str], value_function: str) -> float:
    """How long the worth of every coalition and the shares of an answer take, in milliseconds a query."""
    spent = 0.0
    with open_books(Settings(data_dir=data_dir)) as books:
        embedder = open_embedder(books.settings, books.directory)
        retriever, valuing = Retriever(books.catalogue, embedder), open_valuing(books.settings, lambda: embedder)
        valuing.load(books.rulebook.policy)
        for question in questions:
            retrieval = retriever.retrieve(question, top_k=5, purpose="answer", price=VALUE_ONE)
            grounded = Extractive().begin(Query(question, EXTRACTIVE), retrieval).grounded
            uses = tuple(a_use(f"d{i}", f"c{i}") for i in range(len(grounded.read)))
            began = time.perf_counter()
            _, table = valuing.value(value_function, grounded, sent=False)
            spent += time.perf_counter() - began
            record = a_record(values=tuple(table.tolist()), uses=uses)
            began = time.perf_counter()
            shares(record)
            spent += time.perf_counter() - began
    return 1000 * spent / len(questions)


def quality(questions: list[dict[str, Any]], replies: list[dict[str, Any]]) -> dict[str, Any]:
    recall, contains, sentences, abstained = [], [], [], []
    gold: dict[str, list[float]] = {"credit": [], "equal": [], "score_proportional": [], "citation_count": []}
    for question, reply in zip(questions, replies, strict=True):
        sources = reply["sources"]
        ranks = [source["document_id"] for source in sources]
        recall.append(question["document"] in ranks)
        sentences.append(len(reply["citations"]))
        if not question["answerable"]:
            continue
        answer = normalised(reply["answer"])
        contains.append(any(normalised(each) in answer for each in question["answers"]))
        abstained.append(not reply["citations"])
        if question["document"] not in ranks:
            continue
        place = ranks.index(question["document"])
        credited = sum(source["share"] for source in sources)
        lowest = min(source["score"] for source in sources)
        scores = [source["score"] - lowest for source in sources]
        cited = [citation["source"] for citation in reply["citations"]]
        gold["credit"].append(sources[place]["share"] / credited if credited else 0.0)
        gold["equal"].append(1 / len(sources))
        gold["score_proportional"].append(scores[place] / (sum(scores) or 1))
        gold["citation_count"].append(cited.count(place) / len(cited) if cited else 0.0)
    return {
        "recall_at_5": round(statistics.mean(recall), 4),
        "answer_contains_gold": round(statistics.mean(contains), 4),
        "sentences_mean": round(statistics.mean(sentences), 3),
        "abstained_on_answerable": round(statistics.mean(abstained), 4),
        **{f"gold_{name}": round(statistics.mean(values), 4) for name, values in gold.items()},
    }


def amount(value: dict[str, Any], name: str) -> Decimal:
    return Decimal(value[name]["amount"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DATA)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--value-function", default=COUNTERFACTUAL, choices=tuple(VALUE_FUNCTIONS))
    chosen = parser.parse_args()
    found = measure(chosen.folder, chosen.questions, chosen.seed, chosen.value_function)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
