"""The retriever while others change the catalogue: what was acknowledged holds for what begins after it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from retrieval.catalogue import Catalogue
from retrieval.embedding import MiniLMEmbedder
from retrieval.retriever import Retrieval, Retriever
from tests.unit.retrieval.library import TEXTS, bring, document

READERS = 4
QUESTION = "How do honey bees tell each other where flowers are?"


def asked(retriever: Retriever, top_k: int = 50) -> Retrieval:
    return retriever.retrieve(QUESTION, top_k=top_k, purpose="answer", price=0)


class Turns:
    """Counts what readers have done, so that a writer can wait until all of them have looked again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._done = [0] * READERS
        self.over = False

    def count(self, reader: int) -> None:
        with self._changed:
            self._done[reader] += 1
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def wait_for_every_reader(self) -> None:
        """Until every reader has begun and ended a retrieval since now, or one of them has failed."""
        with self._changed:
            wanted = [done + 2 for done in self._done]
            ready = self._changed.wait_for(
                lambda: self.over or all(done >= want for done, want in zip(self._done, wanted, strict=True)), 60
            )
        assert ready, "the readers do not come on"


@contextmanager
def readers(look: Callable[[int], None]) -> Iterator[Turns]:
    """Threads that call ``look`` with their number, again and again, until the block ends."""
    turns = Turns()

    def run(reader: int) -> None:
        try:
            while not turns.over:
                look(reader)
                turns.count(reader)
        finally:
            turns.stop()

    with ThreadPoolExecutor(READERS) as pool:
        running: list[Future[None]] = [pool.submit(run, reader) for reader in range(READERS)]
        try:
            yield turns
        finally:
            turns.stop()
        for each in running:
            each.result()


@pytest.fixture
def replicas(library: Catalogue, embedder: MiniLMEmbedder) -> list[Retriever]:
    """Two retrievers of one catalogue that holds the library."""
    return [Retriever(library, embedder) for _ in range(2)]


def test_a_withdrawn_document_is_in_no_retrieval_that_began_after(replicas: list[Retriever], catalogue: Catalogue):
    withdrawn: set[str] = set()

    def look(reader: int) -> None:
        before = frozenset(withdrawn)
        found = {each.document.id for each in asked(replicas[reader % 2]).documents}
        assert not found & before

    with readers(look) as turns:
        turns.wait_for_every_reader()
        for name in TEXTS:
            assert catalogue.withdraw([name]) == [name]
            withdrawn.add(name)
            turns.wait_for_every_reader()
    assert asked(replicas[0]).documents == ()


def test_a_replaced_text_is_in_no_retrieval_that_began_after_and_none_is_mixed(
    replicas: list[Retriever], catalogue: Catalogue, embedder: MiniLMEmbedder
):
    editions = [document("bees", f"Edition {i}. {TEXTS['bees']} It ends {i}.") for i in range(6)]
    number = {each.version: i for i, each in enumerate(editions)}
    current = [0]
    bring(catalogue, embedder, editions[0])

    def look(reader: int) -> None:
        least = current[0]
        for each in asked(replicas[reader % 2]).documents:
            if each.document.id == "bees":
                found = number[each.document.version]
                assert found >= least
                assert [passage.text for passage in each.passages] == [editions[found].text]

    with readers(look) as turns:
        for i, edition in enumerate(editions):
            bring(catalogue, embedder, edition)
            current[0] = i
            turns.wait_for_every_reader()
    (bees,) = [each for each in asked(replicas[1]).documents if each.document.id == "bees"]
    assert number[bees.document.version] == len(editions) - 1


def test_documents_that_come_while_others_look_are_all_found_once(
    replicas: list[Retriever], catalogue: Catalogue, embedder: MiniLMEmbedder
):
    came: set[str] = set()

    def look(reader: int) -> None:
        before = frozenset(came)
        found = [each.document.id for each in asked(replicas[reader % 2], top_k=200).documents]
        assert before <= set(found)
        assert len(set(found)) == len(found)

    with readers(look) as turns:
        for i in range(6):
            bring(catalogue, embedder, document(f"new{i}", f"New work number {i} on honey bees."))
            came.add(f"new{i}")
            turns.wait_for_every_reader()
    for replica in replicas:
        assert replica.refresh() == len(TEXTS) + 6


def test_threads_that_ask_at_once_build_one_index(library: Catalogue, embedder: MiniLMEmbedder):
    retriever = Retriever(library, embedder)
    start = threading.Barrier(READERS)

    def look(_: int) -> list[tuple[str, float]]:
        start.wait(30)
        return [(each.document.id, each.score) for each in asked(retriever).documents]

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(look, range(READERS)))
    assert len(found[0]) == len(TEXTS)
    assert all(each == found[0] for each in found)
    assert len(retriever._view.passage) == len(TEXTS)
