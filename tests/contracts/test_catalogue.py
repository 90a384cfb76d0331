"""What the catalogue promises, on every database that Patronage runs on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from retrieval.catalogue import Catalogue, prepare
from retrieval.documents import PPM, Document, DocumentError, SplitShare, Terms
from retrieval.embedding import MiniLMEmbedder
from retrieval.passage_table import PreparedPassage, StoredPassage

MODEL = "model/1"
TEXT = "Zoë\u2019s cafe\u0301 \U0001f469\u200d\U0001f467 opens. It closes."


@pytest.fixture
def catalogue(engine: sa.Engine) -> Catalogue:
    return Catalogue(engine)


def document(name: str = "d", text: str = TEXT, **more: Any) -> Document:
    return Document(**{"id": name, "title": "A title", "text": text, "contributor": "ana"} | more)


def passage(text: str = "Some words.", start: int = 0, seed: int = 0, dimension: int = 8) -> PreparedPassage:
    generator = np.random.default_rng([seed, *text.encode()])  # other words, other terms: no copies
    return PreparedPassage(
        start=start,
        text=text,
        sentences=np.asarray([[0, 4], [5, len(text)]], np.int32),
        terms=generator.integers(0, 2**32, 6, np.uint32),
        sentence_terms=np.asarray([2, 4], np.int32),
        vector=generator.standard_normal(dimension).astype(np.float32),
        sentence_vectors=generator.standard_normal((2, dimension)).astype(np.float16),
    )


def put(catalogue: Catalogue, *documents: Document, parts: int = 1) -> list[Any]:
    """Put documents, each with passages that carry the version of its text."""
    prepared = [[passage(f"{each.version} {i}", i) for i in range(parts)] for each in documents]
    return catalogue.put(list(zip(documents, prepared, strict=True)), MODEL)


def passages_of(catalogue: Catalogue, *names: str) -> list[StoredPassage]:
    return list(catalogue.passages_of([each.number for each in catalogue.get(names).values()]))


def changed_since(catalogue: Catalogue, since: int) -> list[str]:
    return sorted(each.id for each in catalogue.changes(since)[1])


class TestPut:
    def test_a_new_document_is_stored_with_everything_that_was_brought(self, catalogue: Catalogue):
        brought = document(
            url="https://example.org/Zoë",
            splits=(SplitShare("ana", "author", 600_000), SplitShare("bo", "translator", 400_000)),
            terms=Terms(("answer", "research"), 2**53 - 1),
        )
        assert put(catalogue, brought) == ["added"]
        stored = catalogue.get(["d"])["d"]
        for name in ("id", "title", "contributor", "url", "splits", "terms", "version"):
            assert getattr(stored, name) == getattr(brought, name), name
        assert (stored.withdrawn_ms, stored.changed) == (None, catalogue.epoch())
        assert catalogue.by_number([stored.number]) == {stored.number: stored}
        assert catalogue.text("d", brought.version) == TEXT

    def test_without_splits_the_contributor_is_stored_as_the_author_of_all(self, catalogue: Catalogue):
        put(catalogue, document())
        assert catalogue.get(["d"])["d"].splits == (SplitShare("ana", "author", PPM),)

    def test_the_same_again_is_unchanged_and_keeps_its_passages(self, catalogue: Catalogue):
        first = document(terms=Terms(("research", "answer")))
        put(catalogue, first)
        before, parts = catalogue.get(["d"]), [each.id for each in passages_of(catalogue, "d")]
        again = replace(first, terms=Terms(("answer", "research", "answer")))
        assert put(catalogue, again) == ["unchanged"]
        assert catalogue.put([(first, None)], MODEL) == ["unchanged"]
        assert catalogue.get(["d"]) == before
        assert [each.id for each in passages_of(catalogue, "d")] == parts

    @pytest.mark.parametrize(
        "change",
        [
            {"title": "Another"},
            {"url": "https://example.org/"},
            {"splits": (SplitShare("bo", "editor", PPM),)},
            {"terms": Terms(("answer",))},
            {"terms": Terms(())},
            {"terms": Terms(None, 1)},
        ],
        ids=["title", "url", "splits", "purposes", "no purposes", "floor"],
    )
    def test_anything_but_the_text_is_updated_without_new_passages(self, catalogue: Catalogue, change: dict[str, Any]):
        put(catalogue, document())
        before, parts = catalogue.get(["d"])["d"], [each.id for each in passages_of(catalogue, "d")]
        assert catalogue.put([(document(**change), None)], MODEL) == ["updated"]
        after = catalogue.get(["d"])["d"]
        assert after == replace(before, **change, changed=catalogue.epoch())
        assert after.changed > before.changed
        assert [each.id for each in passages_of(catalogue, "d")] == parts

    def test_another_text_replaces_passages_and_keeps_the_number_and_every_version(self, catalogue: Catalogue):
        first, second = document(), document(text="Another text.", title="B")
        put(catalogue, first, parts=3)
        before, old = catalogue.get(["d"])["d"], passages_of(catalogue, "d")
        assert put(catalogue, second, parts=2) == ["replaced"]
        after = catalogue.get(["d"])["d"]
        assert (after.number, after.added_ms) == (before.number, before.added_ms)
        assert (after.version, after.title) == (second.version, "B")
        assert [each.version for each in passages_of(catalogue, "d")] == [second.version] * 2
        assert list(catalogue.passages([each.id for each in old])) == []
        assert [catalogue.text("d", each.version) for each in (first, second)] == [TEXT, "Another text."]

    def test_an_earlier_text_can_come_back(self, catalogue: Catalogue):
        first, second = document(), document(text="Another text.")
        assert [put(catalogue, each) for each in (first, second, first)] == [["added"], ["replaced"], ["replaced"]]
        assert [each.version for each in passages_of(catalogue, "d")] == [first.version]

    def test_the_number_of_a_passage_is_never_given_again(self, catalogue: Catalogue):
        """Replicas keep passages by their number."""
        seen: set[int] = set()
        for edition in range(5):
            put(catalogue, document(text=f"Edition {edition}."), parts=3)
            found = {each.id for each in passages_of(catalogue, "d")}
            assert len(found) == 3
            assert not found & seen
            seen |= found

    def test_a_document_of_another_contributor_is_refused_and_left_as_it_was(self, catalogue: Catalogue):
        put(catalogue, document())
        before = catalogue.get(["d"])
        outcomes = put(catalogue, document(contributor="bo", text="Mine now."), document("e", contributor="bo"))
        assert isinstance(outcomes[0], DocumentError)
        assert "taken by another contributor" in str(outcomes[0])
        assert outcomes[1] == "added"
        assert catalogue.get(["d"]) == before
        assert catalogue.text("d", document(text="Mine now.").version) is None

    def test_texts_that_changed_while_they_were_compared_are_refused(self, catalogue: Catalogue):
        put(catalogue, document())
        outcomes = catalogue.put([(document(text="Another."), None), (document("new"), None)], MODEL)
        assert [type(each) for each in outcomes] == [DocumentError, DocumentError]
        assert catalogue.get(["d", "new"]).keys() == {"d"}
        assert catalogue.get(["d"])["d"].version == document().version

    def test_an_empty_batch_is_harmless(self, catalogue: Catalogue):
        assert catalogue.put([], MODEL) == []
        assert catalogue.count() == (0, 0)


class TestWithdraw:
    def test_a_withdrawn_document_loses_its_passages_and_keeps_its_versions(self, catalogue: Catalogue):
        put(catalogue, document(), document("e"), parts=2)
        assert catalogue.withdraw(["d"]) == ["d"]
        stored = catalogue.get(["d"])["d"]
        assert stored.withdrawn_ms is not None
        assert stored.changed == catalogue.epoch()
        assert passages_of(catalogue, "d") == []
        assert len(passages_of(catalogue, "e")) == 2
        assert catalogue.count() == (1, 2)
        assert catalogue.text("d", stored.version) == TEXT

    def test_repeating_it_answers_the_same_and_changes_nothing(self, catalogue: Catalogue):
        put(catalogue, document())
        assert catalogue.withdraw(["d"]) == ["d"]
        before = catalogue.get(["d"])
        assert catalogue.withdraw(["d"]) == ["d"]
        assert catalogue.get(["d"]) == before

    def test_it_is_for_ever(self, catalogue: Catalogue):
        put(catalogue, document())
        catalogue.withdraw(["d"])
        for each in (document(), document(text="Another text."), document(title="Another")):
            (outcome,) = put(catalogue, each)
            assert isinstance(outcome, DocumentError)
            assert "was withdrawn" in str(outcome)
        assert passages_of(catalogue, "d") == []
        assert catalogue.get(["d"])["d"].withdrawn_ms is not None

    def test_a_contributor_withdraws_only_what_is_theirs(self, catalogue: Catalogue):
        put(catalogue, document(), document("e", contributor="bo"))
        assert catalogue.withdraw(["d", "e", "nothing"], "bo") == ["e"]
        assert {name: each.withdrawn_ms is None for name, each in catalogue.get(["d", "e"]).items()} == {
            "d": True,
            "e": False,
        }

    def test_ids_that_do_not_exist_are_not_answered(self, catalogue: Catalogue):
        assert catalogue.withdraw(["nothing"]) == []
        assert catalogue.withdraw([]) == []


class TestClock:
    def test_every_change_advances_it_and_is_among_the_changes_since(self, catalogue: Catalogue):
        changes = [
            lambda: put(catalogue, document("a"), document("b", text="The other one.")),
            lambda: put(catalogue, document("a", text="Another.")),
            lambda: catalogue.put([(document("b", text="The other one.", title="Another"), None)], MODEL),
            lambda: catalogue.replace_passages([(catalogue.get(["a"])["a"], [passage()])], MODEL),
            lambda: catalogue.withdraw(["b"]),
        ]
        for change, expected in zip(changes, [["a", "b"], ["a"], ["b"], ["a"], ["b"]], strict=True):
            before = catalogue.epoch()
            change()
            assert catalogue.epoch() > before
            assert changed_since(catalogue, before) == expected
            assert catalogue.changes(before)[0] == catalogue.epoch()
            assert changed_since(catalogue, catalogue.epoch()) == []
        assert changed_since(catalogue, -1) == ["a", "b"]

    def test_what_is_refused_or_unchanged_is_not_among_the_changes(self, catalogue: Catalogue):
        put(catalogue, document(), document("gone"))
        catalogue.withdraw(["gone"])
        before = catalogue.epoch()
        put(catalogue, document(), document("gone"))
        put(catalogue, document(contributor="bo"))
        catalogue.withdraw(["gone", "nothing"])
        assert changed_since(catalogue, before) == []

    def test_a_reader_beside_writers_misses_no_change(self, catalogue: Catalogue):
        """Ticks become visible in their order: a reader that has seen one has seen all before it."""
        writers, rounds = 4, 12
        over = threading.Event()

        def read() -> set[str]:
            seen: set[str] = set()
            since = 0
            while True:
                last = over.is_set()
                since, changed = catalogue.changes(since)
                seen |= {each.id for each in changed}
                if last:
                    return seen

        def write(writer: int) -> None:
            for i in range(rounds):
                assert put(catalogue, document(f"w{writer}/{i}")) == ["added"]

        with ThreadPoolExecutor(writers + 1) as pool:
            reader = pool.submit(read)
            try:
                list(pool.map(write, range(writers)))
            finally:
                over.set()
            assert reader.result() == {f"w{writer}/{i}" for writer in range(writers) for i in range(rounds)}
        assert catalogue.epoch() == writers * rounds


class TestPassages:
    def assert_same(self, stored: Sequence[StoredPassage], prepared: Sequence[PreparedPassage]) -> None:
        assert len(stored) == len(prepared)
        for one, other in zip(stored, prepared, strict=True):
            for field in fields(PreparedPassage):
                kept, brought = getattr(one, field.name), getattr(other, field.name)
                if isinstance(brought, np.ndarray):
                    assert (kept.dtype, kept.shape) == (brought.dtype, brought.shape), field.name
                    assert kept.tobytes() == brought.tobytes(), field.name
                else:
                    assert kept == brought, field.name

    def test_they_come_back_bit_by_bit(self, catalogue: Catalogue):
        prepared = [passage(f"{i} \U0001f469\u200d\U0001f467", i, seed=i) for i in range(7)]
        prepared.append(replace(passage(), terms=np.empty(0, np.uint32), sentence_terms=np.asarray([0, 0], np.int32)))
        catalogue.put([(document(), prepared)], MODEL)
        self.assert_same(passages_of(catalogue, "d"), prepared)

    def test_those_of_the_packaged_model_too(self, catalogue: Catalogue, embedder: MiniLMEmbedder):
        brought = document(text="\n\n".join([TEXT] * 60))
        prepared = prepare(brought, embedder)
        assert len(prepared) > 1
        catalogue.put([(brought, prepared)], embedder.name)
        stored = passages_of(catalogue, "d")
        self.assert_same(stored, prepared)
        for each in stored:
            assert brought.text[each.start : each.start + len(each.text)] == each.text

    def test_they_are_read_by_document_and_by_id_in_any_number(self, catalogue: Catalogue):
        """More than are asked for in one statement."""
        put(catalogue, *(document(f"d{i}") for i in range(600)), parts=2)
        documents = catalogue.get([f"d{i}" for i in range(600)])
        stored = list(catalogue.passages_of([each.number for each in documents.values()]))
        assert len(stored) == 1_200
        assert [each.id for each in catalogue.passages([each.id for each in stored] + [10**6])] == [
            each.id for each in stored
        ]
        assert len(catalogue.by_number([each.number for each in documents.values()])) == 600
        assert catalogue.count() == (600, 1_200)
        assert len(catalogue.withdraw(list(documents))) == 600
        assert catalogue.count() == (0, 0)

    def test_they_are_replaced_when_a_text_is_embedded_anew(self, catalogue: Catalogue):
        put(catalogue, document(), document("e"), parts=2)
        before = catalogue.get(["d"])["d"]
        new = [passage("New.", seed=1), passage("Newer.", seed=2)]
        catalogue.replace_passages([(before, new)], "model/2")
        self.assert_same(passages_of(catalogue, "d"), new)
        assert catalogue.get(["d"])["d"] == replace(before, changed=catalogue.epoch())
        assert {each.embedder for each in passages_of(catalogue, "d")} == {"model/2"}
        assert {each.embedder for each in passages_of(catalogue, "e")} == {MODEL}

    def test_embedding_anew_never_brings_back_what_was_replaced_or_withdrawn_meanwhile(self, catalogue: Catalogue):
        put(catalogue, document(), document("e"))
        stale = catalogue.get(["d", "e"])
        put(catalogue, document(text="Another."))
        catalogue.withdraw(["e"])
        before = catalogue.epoch()
        catalogue.replace_passages([(each, [passage()]) for each in stale.values()], "model/2")
        assert [each.version for each in passages_of(catalogue, "d", "e")] == [document(text="Another.").version]
        assert {each.embedder for each in passages_of(catalogue, "d", "e")} == {MODEL}
        assert changed_since(catalogue, before) == []


class TestLists:
    NAMES = ("B", "a", "a/b", "b", "c-d", "c.d", "cd", "d2", "d10", "z", "ä", "\u65e5", "\U0001f41d")

    def pages(self, catalogue: Catalogue, contributor: str | None = None, limit: int = 2) -> list[str]:
        found: list[str] = []
        while page := catalogue.page(contributor, after=found[-1] if found else "", limit=limit):
            assert len(page) <= limit
            found += [each.id for each in page]
            assert len(found) <= len(self.NAMES), "a page was given twice"
        return found

    def test_pages_give_every_document_once_and_in_one_order_whatever_their_size(self, catalogue: Catalogue):
        """How accents and capitals are ordered is the database's choice; losing one at the edge of a page is not."""
        put(catalogue, *(document(name) for name in reversed(self.NAMES)))
        catalogue.withdraw(["b"])
        whole = self.pages(catalogue, limit=100)
        assert sorted(whole) == sorted(self.NAMES)
        assert [name for name in whole if len(name) == 1 and "a" <= name <= "z"] == ["a", "b", "z"]
        for limit in (1, 2, 5, len(self.NAMES)):
            assert self.pages(catalogue, limit=limit) == whole

    def test_pages_of_a_contributor_have_only_theirs(self, catalogue: Catalogue):
        put(catalogue, *(document(name, contributor="ana" if len(name) > 1 else "bo") for name in self.NAMES))
        assert sorted(self.pages(catalogue, "ana")) == sorted(name for name in self.NAMES if len(name) > 1)
        assert self.pages(catalogue, "nobody") == []

    def test_contributors_are_registered_once(self, catalogue: Catalogue):
        assert catalogue.add_contributor("bo", "Bo")
        assert catalogue.add_contributor("ana", "Zoë")
        assert not catalogue.add_contributor("bo", "Another Bo")
        assert catalogue.contributors() == {"ana": "Zoë", "bo": "Bo"}

    def test_what_does_not_exist_is_not_found(self, catalogue: Catalogue):
        put(catalogue, document())
        assert catalogue.get(["nothing"]) == {}
        assert catalogue.get([]) == {}
        assert catalogue.by_number([10**6]) == {}
        assert catalogue.text("d", "0" * 64) is None
        assert catalogue.text("nothing", document().version) is None


class TestConcurrentWriters:
    THREADS = 6

    def test_nothing_is_lost(self, catalogue: Catalogue):
        def write(thread: int) -> None:
            for i in range(8):
                assert put(catalogue, document(f"{thread}/{i}"), document(f"{thread}/{i}/b"), parts=2) == ["added"] * 2
                assert catalogue.withdraw([f"{thread}/{i}/b"]) == [f"{thread}/{i}/b"]

        with ThreadPoolExecutor(self.THREADS) as pool:
            list(pool.map(write, range(self.THREADS)))
        assert catalogue.count() == (self.THREADS * 8, self.THREADS * 8 * 2)
        assert catalogue.epoch() == self.THREADS * 8 * 2

    def test_one_document_always_has_the_passages_of_its_own_version(self, catalogue: Catalogue):
        put(catalogue, document())

        def write(thread: int) -> None:
            for i in range(8):
                assert put(catalogue, document(text=f"Text {thread} {i}."), parts=3) == ["replaced"]

        with ThreadPoolExecutor(self.THREADS) as pool:
            list(pool.map(write, range(self.THREADS)))
        stored = catalogue.get(["d"])["d"]
        assert [each.version for each in passages_of(catalogue, "d")] == [stored.version] * 3
        assert catalogue.epoch() == stored.changed == 1 + self.THREADS * 8
        assert catalogue.text("d", stored.version) is not None

    def test_a_new_id_goes_to_one_contributor(self, catalogue: Catalogue):
        start = threading.Barrier(self.THREADS)

        def write(thread: int) -> Any:
            start.wait(30)
            return put(catalogue, document(contributor=f"c{thread}"))[0]

        with ThreadPoolExecutor(self.THREADS) as pool:
            outcomes = list(pool.map(write, range(self.THREADS)))
        assert outcomes.count("added") == 1
        assert sum(isinstance(each, DocumentError) for each in outcomes) == self.THREADS - 1
        assert catalogue.get(["d"])["d"].contributor == f"c{outcomes.index('added')}"
        assert len(passages_of(catalogue, "d")) == 1

    def test_a_withdrawal_beside_replacements_is_final(self, catalogue: Catalogue):
        put(catalogue, document())
        start = threading.Barrier(2)

        def replace_text() -> list[Any]:
            start.wait(30)
            return [put(catalogue, document(text=f"Text {i}."))[0] for i in range(20)]

        with ThreadPoolExecutor(2) as pool:
            replacing = pool.submit(replace_text)
            start.wait(30)
            catalogue.withdraw(["d"])
            assert passages_of(catalogue, "d") == []
            outcomes = replacing.result()
        first = next((i for i, each in enumerate(outcomes) if isinstance(each, DocumentError)), len(outcomes))
        assert outcomes[:first] == ["replaced"] * first
        assert all(isinstance(each, DocumentError) for each in outcomes[first:])
        assert passages_of(catalogue, "d") == []
        assert catalogue.get(["d"])["d"].withdrawn_ms is not None
