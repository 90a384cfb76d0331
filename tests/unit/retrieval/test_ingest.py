"""Ingest: in order, in short transactions, and what is done is kept when it is told to stop."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from metering.money import Currency
from retrieval.catalogue import Catalogue
from retrieval.chunking import Span
from retrieval.documents import Document, DocumentError
from retrieval.embedding import PassageVectors
from retrieval.files import Skipped
from retrieval.ingest import BATCH_DOCUMENTS, BATCH_PASSAGES, EXAMPLES, Ingest, Report
from retrieval.readers import Found, Rejection, read


class Counting:
    """An embedder that counts, and can be held up."""

    name = tokenizer = "counting"
    dimension, tokens_max = 8, 510

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.after = threading.Event()
        self.after.set()
        self.stop_at: tuple[int, threading.Event] | None = None

    def embed_passage(self, text: str, sentences: Sequence[Span]) -> PassageVectors:
        self.texts.append(text)
        if self.stop_at is not None and len(self.texts) >= self.stop_at[0]:
            self.stop_at[1].set()
        vectors = np.random.default_rng(len(text)).standard_normal((len(sentences) + 1, 8)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return PassageVectors(vectors[0], vectors[1:])

    def embed_query(self, text: str):
        raise NotImplementedError

    def count_tokens(self, text: str):
        raise NotImplementedError


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def puts(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, int]]]:
    """What each transaction stored: ids and passages."""
    found: list[list[tuple[str, int]]] = []
    real = catalogue.put

    def put(batch, embedder, paths):
        found.append([(document.id, len(parts or ())) for document, parts in batch])
        return real(batch, embedder, paths)

    monkeypatch.setattr(catalogue, "put", put)
    return found


def found(name: str, passages: int = 1) -> Found:
    words = random.Random(name)
    text = "\n\n".join(
        f"{name} {i} " + " ".join(f"w{words.randrange(10**6)}" for _ in range(110)) for i in range(passages)
    )
    return Found(Document(name, name, text, "ana"), f"{name}.txt", None)


def pipeline(catalogue: Catalogue, embedder: Counting) -> Ingest:
    return Ingest(catalogue, embedder, create_contributors=True)


def test_it_stores_in_order_in_transactions_of_a_bounded_size(catalogue, counting, puts):
    many = [found(f"d{i:03}", i % 2 + 1) for i in range(2 * BATCH_DOCUMENTS)]
    many.insert(70, found("large", BATCH_PASSAGES + 20))
    report = pipeline(catalogue, counting).run(many)
    assert [name for each in puts for name, _ in each] == [each.document.id for each in many]
    assert all(len(each) <= BATCH_DOCUMENTS for each in puts)
    assert all(sum(count for _, count in each) <= BATCH_PASSAGES for each in puts if len(each) > 1)
    assert (report.documents, report.passages, report.stopped) == (len(many), len(counting.texts), False)
    again = pipeline(catalogue, counting).run(many)
    assert (again.documents, again.unchanged, again.embedded) == (0, len(many), 0)
    assert report.embedded == len(counting.texts)


def test_a_stop_keeps_the_documents_that_are_done_and_the_next_run_embeds_only_the_others(catalogue, counting, puts):
    many, stop = [found(f"d{i:03}", 3) for i in range(80)], threading.Event()
    counting.stop_at = (60, stop)
    report = pipeline(catalogue, counting).run(many, stop=stop)
    stored = [name for each in puts for name, _ in each]
    assert report.stopped
    assert stored == [each.document.id for each in many[: len(stored)]]
    assert 0 < len(stored) == report.documents < 30
    assert len(counting.texts) < 90, "it does not embed what it will not store"
    counting.texts.clear()
    counting.stop_at = None
    again = pipeline(catalogue, counting).run(many)
    assert (again.documents, again.unchanged, again.stopped) == (80 - len(stored), len(stored), False)
    assert len(counting.texts) == 3 * (80 - len(stored))


def test_a_stop_ends_a_large_document_between_two_passages_and_stores_nothing_of_it(catalogue, counting, puts):
    stop = threading.Event()
    counting.stop_at = (50, stop)
    report = pipeline(catalogue, counting).run([found("small"), found("large", 2_000), found("later")], stop=stop)
    assert [name for each in puts for name, _ in each] == ["small"]
    assert (report.documents, report.stopped) == (1, True)
    assert len(counting.texts) < 100


def test_a_stop_is_seen_where_nothing_is_found(catalogue, counting):
    """In a folder of a million files of other types."""
    stop = threading.Event()

    def endless():
        number = 0
        while True:
            number += 1
            if number == 100:
                stop.set()
            yield Skipped(f"{number}.png", "files of type .png are not read")

    report = pipeline(catalogue, counting).run(endless(), stop=stop)
    assert report.stopped
    assert report.skipped["files of type .png are not read"].count == 99
    assert len(report.skipped["files of type .png are not read"].paths) == EXAMPLES


def test_an_embedder_that_fails_ends_it_and_what_was_done_is_kept(catalogue, counting, puts, monkeypatch):
    real = counting.embed_passage

    def embed(text, sentences):
        if text.startswith("d100 "):
            raise RuntimeError("the model is gone")
        return real(text, sentences)

    monkeypatch.setattr(counting, "embed_passage", embed)
    with pytest.raises(RuntimeError, match="the model is gone"):
        pipeline(catalogue, counting).run([found(f"d{i:03}") for i in range(110)])
    stored = [name for each in puts for name, _ in each]
    assert BATCH_DOCUMENTS <= len(stored) <= 100
    assert stored == [f"d{i:03}" for i in range(len(stored))]


def test_bad_documents_are_reported_and_lose_nothing_else(catalogue, counting):
    empty = Found(Document("e", "e", " ", "ana"), "e.txt", None)
    report = pipeline(catalogue, counting).run([found("a"), empty, found("a"), Rejection("x", 3, "bad"), found("b")])
    assert {(each.path, each.line) for each in report.rejected} == {("e.txt", None), ("a.txt", None), ("x", 3)}
    assert report.documents == 2
    with pytest.raises(DocumentError, match="unknown contributor"):
        Ingest(catalogue, counting).add(Document("z", "z", "Text.", "nobody"))


def test_a_file_keeps_the_id_it_had_and_no_other_file_takes_its_place(catalogue, counting, tmp_path, monkeypatch):
    def write(folder: Path, text: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "readme.md").write_text(text)

    def ingest(*paths: str | Path, moved: bool = False) -> Report:
        found = read([Path(path) for path in paths], "ana", Currency.of("USD").parse_amount)
        return Ingest(catalogue, counting, create_contributors=True, moved=moved).run(found)

    def stored() -> list[str]:
        return [each.id for each in catalogue.page()]

    first, second = tmp_path / "a" / "docs", tmp_path / "b" / "docs"
    monkeypatch.chdir(tmp_path)
    write(first, "The mill of Arve has four wheels.")
    write(second, "The otter of Lund swims at night.")
    assert ingest(first).documents == 1
    assert "was read from" in ingest(second).rejected[0].reason
    # As that says: a folder further up gives another id. However a path is written, the file has the id that it had.
    assert ingest("b").documents == 1
    assert stored() == ["ana/b/docs/readme.md", "ana/docs/readme.md"]
    write(first, "The mill of Arve has five wheels.")
    assert ingest("a").replaced == 1
    for spelled in ("a/docs/readme.md", "b/../a/docs", ".", "b/docs"):
        report = ingest(spelled)
        assert (report.unchanged, report.documents, report.rejected) == (2 if spelled == "." else 1, 0, []), spelled
    (tmp_path / "alias").symlink_to(first)
    assert ingest("alias").unchanged == 1
    assert stored() == ["ana/b/docs/readme.md", "ana/docs/readme.md"]
    # The same text elsewhere changes nothing, and where a file was moved that is said.
    write(tmp_path / "docs", "The mill of Arve has five wheels.")
    assert ingest("docs").unchanged == 1
    write(tmp_path / "docs", "The mill of Arve has six wheels.")
    assert "pass --moved" in ingest("docs").rejected[0].reason
    assert ingest("docs", moved=True).replaced == 1
    write(tmp_path / "docs", "The mill of Arve has seven wheels.")
    assert ingest("docs").replaced == 1
    # Of another contributor it is another document; what was withdrawn is brought again under another id.
    catalogue.withdraw(["ana/docs/readme.md"])
    assert "was withdrawn" in ingest("docs").rejected[0].reason
    assert ingest("docs/readme.md").documents == 1
    assert stored() == ["ana/b/docs/readme.md", "ana/docs/readme.md", "ana/readme.md"]


def test_a_document_of_an_older_version_learns_its_file_when_it_is_read_again(catalogue, counting, tmp_path):
    for name in "ab":
        (tmp_path / name / "docs").mkdir(parents=True)
        (tmp_path / name / "docs" / "readme.md").write_text(f"The text of {name}.")
    usd = Currency.of("USD").parse_amount
    ingest = pipeline(catalogue, counting)
    ingest.run([Found(Document("ana/docs/readme.md", "readme", "The text of a.", "ana"), "readme.md", None)])
    assert ingest.run(read([tmp_path / "a" / "docs"], "ana", usd)).unchanged == 1
    assert "was read from" in ingest.run(read([tmp_path / "b" / "docs"], "ana", usd)).rejected[0].reason
    # A line of JSON names its id: it means that document, beside a file too.
    line = Found(Document("ana/docs/readme.md", "readme", "Another text.", "ana"), "all.jsonl", 1)
    assert ingest.run([found("new"), line, *read([tmp_path / "b"], "ana", usd)]).replaced == 1
