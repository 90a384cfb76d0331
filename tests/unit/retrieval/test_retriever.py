from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval.catalogue import Catalogue, StoredDocument, prepare
from retrieval.chunking import Span
from retrieval.documents import Document, Terms
from retrieval.embedding import MiniLMEmbedder, PassageVectors, Vector
from retrieval.passage_table import PreparedPassage
from retrieval.retriever import (
    CANDIDATES,
    PASSAGES_PER_DOCUMENT,
    EmbedderMismatch,
    Retrieval,
    Retriever,
)
from tests.unit.retrieval.library import TEXTS, bring, document

BEES = "How do honey bees tell each other where flowers are?"
NO_WORDS = "?"
"""A question that only the dense index has candidates for."""
QUESTIONS = {
    "lighthouse": "When was the lighthouse at Cape Hatteras built?",
    "bees": BEES,
    "violin": "Who made the most famous violins?",
    "vaccine": "Who tested the first vaccine against smallpox?",
    "coffee": "At what temperature are coffee beans roasted?",
}
DEAD_ROWS = 1_100
"""More than the retriever keeps when they are the most."""


def asked(
    retriever: Retriever, question: str = BEES, *, top_k: int = 5, purpose: str = "answer", price: int = 0
) -> Retrieval:
    return retriever.retrieve(question, top_k=top_k, purpose=purpose, price=price)


def names(retrieval: Retrieval) -> list[str]:
    return [each.document.id for each in retrieval.documents]


def many_passages(embedder: MiniLMEmbedder, name: str, count: int) -> tuple[Document, list[PreparedPassage]]:
    """A document of ``count`` like passages, without the price of embedding each: the same words, in other orders."""
    base = document(name, TEXTS["bees"])
    (passage,) = prepare(base, embedder)
    text = "\n\n".join([base.text] * count)
    shuffler = np.random.default_rng(list(name.encode()))
    return replace(base, text=text), [
        replace(passage, start=i * (len(base.text) + 2), terms=shuffler.permutation(passage.terms))
        for i in range(count)
    ]


@pytest.fixture
def retriever(catalogue: Catalogue, embedder: MiniLMEmbedder) -> Retriever:
    """A retriever of an empty catalogue."""
    return Retriever(catalogue, embedder)


@pytest.fixture
def stocked(library: Catalogue, embedder: MiniLMEmbedder) -> Retriever:
    """A retriever of the whole library."""
    return Retriever(library, embedder)


class TestWhatIsFound:
    def test_the_document_that_answers_comes_first(self, stocked: Retriever):
        assert {name: names(asked(stocked, question))[0] for name, question in QUESTIONS.items()} == {
            name: name for name in QUESTIONS
        }

    def test_scores_fall_and_the_passages_of_a_document_stand_best_first(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        catalogue.withdraw(list(TEXTS))
        bring(catalogue, embedder, document("both", "\n\n".join(TEXTS.values())), document("bees", "Bees and flowers."))
        found = asked(stocked).documents
        scores = [each.score for each in found]
        assert scores == sorted(scores, reverse=True)
        both = next(each for each in found if each.document.id == "both")
        assert len(both.passages) > 1
        assert "dance" in both.passages[0].text

    def test_top_k_counts_documents_and_takes_all_where_there_are_fewer(self, stocked: Retriever):
        for top_k in (1, 3, len(TEXTS) - 1, len(TEXTS), len(TEXTS) + 1, 50):
            found = names(asked(stocked, top_k=top_k))
            assert len(set(found)) == len(found) == min(top_k, len(TEXTS))

    def test_a_smaller_top_k_gives_the_head_of_a_larger_one(self, stocked: Retriever):
        assert names(asked(stocked, top_k=8))[:3] == names(asked(stocked, top_k=3))

    def test_every_passage_is_cut_from_the_text_of_its_version(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        bring(catalogue, embedder, document("long", "\U0001f41d " + "\n\n".join(TEXTS.values())))
        for each in asked(stocked, top_k=50).documents:
            text = catalogue.text(each.document.id, each.document.version)
            assert text is not None
            for passage in each.passages:
                assert text[passage.start : passage.start + len(passage.text)] == passage.text
                assert len(passage.evidence.similarity) == len(passage.sentences)

    def test_a_huge_document_leaves_room_for_top_k_documents(
        self, catalogue: Catalogue, embedder: MiniLMEmbedder, stocked: Retriever
    ):
        """Its passages fill both lists of candidates, and must not be all that is looked at."""
        catalogue.put([many_passages(embedder, "huge", 3 * CANDIDATES)], embedder.name)
        found = asked(stocked, top_k=10)
        assert len(names(found)) == 10
        assert {"huge", "bees"} <= set(names(found)[:2])
        huge = next(each for each in found.documents if each.document.id == "huge")
        assert len(huge.passages) <= PASSAGES_PER_DOCUMENT

    def test_many_documents_of_many_good_passages_leave_room_for_top_k_documents(
        self, catalogue: Catalogue, embedder: MiniLMEmbedder, stocked: Retriever
    ):
        """A closer look at the best passages alone would be a look at too few documents."""
        like = [many_passages(embedder, f"like{i}", PASSAGES_PER_DOCUMENT) for i in range(12)]
        catalogue.put(like, embedder.name)
        for top_k in (12, 15, 20, 12 + len(TEXTS)):
            assert len(set(names(asked(stocked, top_k=top_k)))) == top_k

    def test_any_question_is_taken(self, stocked: Retriever):
        for question in ("", " ", "?", "the of and", "zzzz qqqq", "\U0001f41d", "bee " * 5_000):
            found = asked(stocked, question)
            assert len(found.documents) == 5, question[:40]
            assert all(np.isfinite(each.score) for each in found.documents), question[:40]

    def test_the_same_question_finds_the_same_again(self, stocked: Retriever):
        first, second = asked(stocked), asked(stocked)
        assert names(first) == names(second)
        assert [each.score for each in first.documents] == [each.score for each in second.documents]

    def test_the_order_in_which_documents_came_does_not_matter(
        self, catalogue: Catalogue, embedder: MiniLMEmbedder, stocked: Retriever
    ):
        fresh = asked(stocked, top_k=50)
        catalogue.withdraw(list(TEXTS))
        assert names(asked(stocked)) == []
        for name in reversed(TEXTS):
            bring(catalogue, embedder, document(f"again/{name}", TEXTS[name]))
        again = asked(Retriever(catalogue, embedder), top_k=50)
        assert names(again) == [f"again/{name}" for name in names(fresh)]
        assert [each.score for each in again.documents] == pytest.approx([each.score for each in fresh.documents])


class TestEmptyCatalogue:
    def test_nothing_is_found_and_nothing_fails(self, retriever: Retriever):
        assert retriever.refresh() == 0
        found = asked(retriever)
        assert found.documents == ()
        assert found.question.text == BEES

    def test_nothing_is_found_once_everything_is_withdrawn(self, stocked: Retriever, catalogue: Catalogue):
        assert names(asked(stocked)) != []
        catalogue.withdraw(list(TEXTS))
        assert asked(stocked).documents == ()
        assert stocked.refresh() == 0

    def test_the_first_document_is_found_at_once(
        self, retriever: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        asked(retriever)
        bring(catalogue, embedder, document("bees"))
        assert names(asked(retriever)) == ["bees"]


class TestChanges:
    def test_a_withdrawn_document_is_gone_with_the_next_question_on_every_replica(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        replica = Retriever(catalogue, embedder)
        assert names(asked(stocked))[0] == names(asked(replica))[0] == "bees"
        catalogue.withdraw(["bees"])
        for each in (stocked, replica):
            assert "bees" not in names(asked(each, top_k=50))
            assert len(names(asked(each, top_k=50))) == len(TEXTS) - 1

    def test_a_replaced_text_is_gone_at_once_and_the_new_one_is_found(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        asked(stocked, top_k=50)
        changed = document("railway", "The waggle of honey bees tells other bees where the flowers are.")
        bring(catalogue, embedder, changed)
        railway = next(each for each in asked(stocked).documents[:2] if each.document.id == "railway")
        assert railway.document.version == changed.version
        assert [passage.text for passage in railway.passages] == [changed.text]
        everything = [
            passage.text
            for name in QUESTIONS.values()
            for each in asked(stocked, name, top_k=50).documents
            for passage in each.passages
        ]
        assert TEXTS["railway"] not in everything

    def test_an_earlier_text_can_come_back(self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder):
        first = asked(stocked, top_k=50)
        for text in ("Something else.", TEXTS["bees"]):
            bring(catalogue, embedder, document("bees", text))
            asked(stocked)
        assert asked(stocked).documents[0].document.version == first.documents[0].document.version

    def test_titles_change_without_new_passages(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        before = asked(stocked).documents[0]
        catalogue.put([(document("bees", title="On Bees"), None)], embedder.name)
        after = asked(stocked).documents[0]
        assert (before.document.title, after.document.title) == ("Bees", "On Bees")
        assert [passage.id for passage in before.passages] == [passage.id for passage in after.passages]

    def test_one_change_among_others_changes_nothing_else(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        assert stocked.refresh() == len(TEXTS)
        bring(catalogue, embedder, document("more", "More about the honey of bees."))
        assert stocked.refresh() == len(TEXTS) + 1
        assert set(names(asked(stocked, top_k=50))) == {*TEXTS, "more"}

    def test_a_replica_with_a_history_finds_what_a_fresh_one_finds(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        """Else two replicas, or one before and after a restart, answer and pay differently."""
        drafts = [document(f"draft{i}", f"Draft {i} says that honey bees dance among flowers.") for i in range(10)]
        bring(catalogue, embedder, *drafts)
        asked(stocked)
        catalogue.withdraw([each.id for each in drafts])
        old, fresh = asked(stocked, top_k=50), asked(Retriever(catalogue, embedder), top_k=50)
        assert old.question.idf == pytest.approx(fresh.question.idf)
        assert names(old) == names(fresh)
        assert [each.score for each in old.documents] == pytest.approx([each.score for each in fresh.documents])


class TestTerms:
    @pytest.mark.parametrize("question", [BEES, NO_WORDS], ids=["by its words", "by its meaning alone"])
    def test_a_document_is_found_for_its_purposes_only(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder, question: str
    ):
        bring(catalogue, embedder, document("bees", terms=Terms(("research", "teaching"))))
        for purpose in ("research", "teaching"):
            assert "bees" in names(asked(stocked, question, top_k=50, purpose=purpose))
        for purpose in ("answer", "training", "", "*"):
            found = names(asked(stocked, question, top_k=50, purpose=purpose))
            assert "bees" not in found
            assert len(found) == len(TEXTS) - 1

    def test_a_document_without_any_purpose_is_found_for_none(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        bring(catalogue, embedder, document("bees", terms=Terms(())))
        for purpose in ("answer", "research", "", "*"):
            assert "bees" not in names(asked(stocked, top_k=50, purpose=purpose))

    @pytest.mark.parametrize("question", [BEES, NO_WORDS], ids=["by its words", "by its meaning alone"])
    def test_a_document_is_found_from_its_floor_on(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder, question: str
    ):
        bring(catalogue, embedder, document("bees", terms=Terms(None, 1_000)))
        prices = (0, 999, 1_000, 2**53 - 1)
        found = [price for price in prices if "bees" in names(asked(stocked, question, top_k=50, price=price))]
        assert found == [1_000, 2**53 - 1]

    def test_both_terms_must_be_met(self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder):
        bring(catalogue, embedder, document("bees", terms=Terms(("research",), 1_000)))
        met = {
            (purpose, price)
            for purpose in ("answer", "research")
            for price in (0, 1_000)
            if "bees" in names(asked(stocked, purpose=purpose, price=price))
        }
        assert met == {("research", 1_000)}

    def test_changed_terms_hold_from_the_next_question_on(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        for terms, seen in ((Terms(), True), (Terms(None, 5), False), (Terms(("answer",)), True), (Terms(()), False)):
            catalogue.put([(document("bees", terms=terms), None)], embedder.name)
            assert ("bees" in names(asked(stocked))) is seen

    def test_many_documents_that_may_not_be_used_leave_top_k_that_may(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        """Terms are applied before ranking, not to what ranking left."""
        dear = [many_passages(embedder, f"dear{i}", 1) for i in range(2 * CANDIDATES)]
        catalogue.put([(replace(each, terms=Terms(None, 10)), parts) for each, parts in dear], embedder.name)
        assert names(asked(stocked, price=9)) == names(asked(stocked, price=0))
        assert len(names(asked(stocked, price=9))) == 5
        assert sum(name.startswith("dear") for name in names(asked(stocked, price=10))) >= 4


class TestCompaction:
    def test_an_index_of_mostly_dead_rows_is_built_anew_and_finds_the_same(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        catalogue.put([many_passages(embedder, "huge", DEAD_ROWS)], embedder.name)
        assert stocked.refresh() == len(TEXTS) + DEAD_ROWS
        catalogue.withdraw(["huge", "paper"])
        assert stocked.refresh() == len(TEXTS) - 1
        bring(catalogue, embedder, document("more", "More about the honey of bees."))
        found = asked(stocked, top_k=50)
        assert len(stocked._view.passage) == len(TEXTS)
        fresh = asked(Retriever(catalogue, embedder), top_k=50)
        assert names(found) == names(fresh)
        assert [each.score for each in found.documents] == pytest.approx([each.score for each in fresh.documents])
        catalogue.withdraw(["bees"])
        assert "bees" not in names(asked(stocked, top_k=50))

    def test_replacing_one_document_for_ever_does_not_grow_the_index_for_ever(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        huge, passages = many_passages(embedder, "huge", 400)
        largest = 0
        for edition in range(8):
            catalogue.put([(replace(huge, text=f"{huge.text} {edition}"), passages)], embedder.name)
            assert stocked.refresh() == len(TEXTS) + 400
            largest = max(largest, len(stocked._view.passage))
        assert largest < 6 * 400
        assert names(asked(stocked, QUESTIONS["violin"]))[0] == "violin"


class RenamedEmbedder:
    """The packaged model under another name, as another version of it would come."""

    def __init__(self, embedder: MiniLMEmbedder) -> None:
        self.name = "other/model"
        self.dimension = embedder.dimension
        self.tokenizer = embedder.tokenizer
        self._embedder = embedder

    def embed_query(self, text: str) -> Vector:
        return self._embedder.embed_query(text)

    def embed_passage(self, text: str, sentences: list[Span]) -> PassageVectors:
        return self._embedder.embed_passage(text, sentences)

    def count_tokens(self, text: str) -> int:
        return self._embedder.count_tokens(text)


class TestEmbedderMismatch:
    def test_a_catalogue_of_another_model_is_refused_until_it_is_embedded_anew(
        self, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        other = RenamedEmbedder(embedder)
        bring(catalogue, other, document("bees"))
        retriever = Retriever(catalogue, embedder)
        for _ in range(2):
            with pytest.raises(EmbedderMismatch, match=r"other/model.*patronage reembed"):
                asked(retriever)
            with pytest.raises(EmbedderMismatch):
                retriever.refresh()
        embedded_anew(catalogue, embedder, "bees")
        assert names(asked(retriever)) == ["bees"]

    def test_a_few_passages_of_another_model_are_enough(self, library: Catalogue, embedder: MiniLMEmbedder):
        bring(library, RenamedEmbedder(embedder), document("more", "More about bees."))
        with pytest.raises(EmbedderMismatch):
            asked(Retriever(library, embedder))

    def test_a_retriever_at_work_refuses_vectors_of_another_model_too(
        self, stocked: Retriever, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        """`patronage reembed` may run beside a server that still has the old setting."""
        assert names(asked(stocked))[0] == "bees"
        embedded_anew(catalogue, RenamedEmbedder(embedder), *TEXTS)
        with pytest.raises(EmbedderMismatch):
            asked(stocked)

    def test_vectors_of_withdrawn_documents_do_not_matter(self, catalogue: Catalogue, embedder: MiniLMEmbedder):
        bring(catalogue, RenamedEmbedder(embedder), document("old", "Old text about bees."))
        bring(catalogue, embedder, document("bees"))
        catalogue.withdraw(["old"])
        assert names(asked(Retriever(catalogue, embedder))) == ["bees"]


def embedded_anew(catalogue: Catalogue, embedder: MiniLMEmbedder | RenamedEmbedder, *ids: str) -> None:
    def prepared(stored: StoredDocument) -> list[PreparedPassage]:
        return prepare(document(stored.id, catalogue.text(stored.id, stored.version)), embedder)

    catalogue.replace_passages([(each, prepared(each)) for each in catalogue.get(ids).values()], embedder.name)
