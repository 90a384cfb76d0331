"""Embedding on the CPU against sentence-transformers on torch, same model, same texts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics

from retrieval.chunking import passages
from retrieval.embedding import MiniLMEmbedder, packaged_model_folder
from tests.benchmarks.measure import Result, rates


def run() -> Iterator[Result]:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 # the rival, heavy

    ours = MiniLMEmbedder(Path(tempfile.gettempdir()) / "patronage-tests-models")
    rival = SentenceTransformer(str(packaged_model_folder()), device="cpu")
    questions = [f"What does the {name} statement do, and when?" for name in list(topics)[:40]]
    parts = [
        (text[passage.start : passage.end], [(a - passage.start, b - passage.start) for a, b in passage.sentences])
        for text in list(topics.values())[:12]
        for passage in passages(text)
    ][:96]
    our_rate, their_rate = rates(
        len(questions),
        lambda: [ours.embed_query(question) for question in questions],
        lambda: [rival.encode(question, show_progress_bar=False) for question in questions],
    )
    yield Result("questions, one at a time", our_rate, "sentence-transformers (torch)", their_rate, "/s")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        our_rate, their_rate = rates(
            len(parts),
            lambda: list(pool.map(lambda part: ours.embed_passage(*part), parts)),
            lambda: rival.encode([text for text, _ in parts], batch_size=16, show_progress_bar=False),
            rounds=3,
        )
    yield Result("passages (ours: with every sentence)", our_rate, "sentence-transformers (torch)", their_rate, "/s")
