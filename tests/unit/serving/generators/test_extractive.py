from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.catalogue import Catalogue, StoredDocument
from retrieval.chunking import sentences
from retrieval.documents import Terms
from retrieval.embedding import MiniLMEmbedder
from retrieval.evidence import Evidence, Question
from retrieval.retriever import Retrieval, RetrievedDocument, RetrievedPassage, Retriever
from serving.generators.extractive import (
    CONFIDENCE,
    DOCUMENTS_READ,
    NO_ANSWER,
    NO_ANSWER_ABOVE,
    SENTENCES_MAX,
    Answer,
    answer,
)
from tests.databases import new_sqlite
from tests.unit.retrieval.library import TEXTS, bring, document, shelf

ANSWERS = {
    "When was the lighthouse at Cape Hatteras built?": "1870",
    "How do honey bees tell each other where flowers are?": "dance",
    "Who made the most famous violins?": "Stradivari",
    "Who tested the first vaccine against smallpox?": "Jenner",
    "How many hearts does an octopus have?": "three",
    "How is the bishop moved in chess?": "diagonals",
    "Where was paper invented?": "China",
}
UNRELATED = [
    "What is the capital of Mongolia?",
    "How does quantum chromodynamics explain confinement?",
    "Which team won the football world cup in 1994?",
    "zzzz qqqq",
    "",
]
# A sentence as these tests write it: its text, similarity, coverage and BM25.
Measured = tuple[str, float, float, float]


@pytest.fixture(scope="module")
def library(embedder: MiniLMEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    """A retriever of the library of the tests of retrieval, with emoji before one of its texts."""
    engine = new_sqlite(tmp_path_factory.mktemp("library") / "catalogue.sqlite3")
    moved = document("paper", "\U0001f469\u200d\U0001f467 cafe\u0301. " + TEXTS["paper"])
    bring(Catalogue(engine), embedder, *(moved if each.id == "paper" else each for each in shelf()))
    yield Retriever(Catalogue(engine), embedder)
    engine.dispose()


def retrieved(library: Retriever, question: str, top_k: int = 5) -> Retrieval:
    return library.retrieve(question, top_k=top_k, purpose="answer", price=0)


def made(question: str, *documents: Sequence[Measured], scores: Sequence[float] | None = None) -> Retrieval:
    """A retrieval of documents of one passage each, with the evidence that is given."""
    found = []
    said: set[str] = set()
    for i, measured in enumerate(documents):
        texts = [text for text, *_ in measured]
        starts = np.cumsum([0, *(len(text) + 1 for text in texts)])[:-1]
        spans = np.asarray([(start, start + len(text)) for start, text in zip(starts, texts, strict=True)], np.int32)
        measures = (np.asarray([each[k] for each in measured], np.float64) for k in (1, 2, 3))
        own = np.asarray([text not in said and not said.add(text) for text in texts], np.bool_)
        passage = RetrievedPassage(i, 0, " ".join(texts), spans.reshape(-1, 2), Evidence(*measures), own, 0)
        stored = StoredDocument(i, f"d{i}", "ana", "0" * 64, "T", None, (), Terms(), 0, None, 1)
        found.append(RetrievedDocument(stored, 0.0 if scores is None else scores[i], (passage,)))
    nothing = np.empty(0)
    return Retrieval(Question(question, nothing.astype(np.float32), nothing.astype(np.uint32), nothing), tuple(found))


def assert_exact(given_answer: Answer, retrieval: Retrieval) -> None:
    """Every citation is a whole sentence of its source, word for word, where it says it is."""
    assert " ".join(each.quote for each in given_answer.citations) == given_answer.text
    for each in given_answer.citations:
        assert given_answer.text[slice(*each.answer_span)] == each.quote
        places = {
            (passage.start + start, passage.start + end): passage.text[start:end]
            for passage in retrieval.documents[each.source].passages
            for start, end in passage.sentences.tolist()
        }
        assert places[each.passage] == each.quote


def assert_probabilities(given_answer: Answer, retrieval: Retrieval) -> None:
    """One worth a sentence read; with that of "none of them" they are a distribution."""
    read = retrieval.documents[:DOCUMENTS_READ]
    assert len(given_answer.worths) == len(read)
    for worths, each in zip(given_answer.worths, read, strict=True):
        assert worths.shape == (sum(passage.own.sum() for passage in each.passages),)
        assert ((worths >= 0) & (worths <= 1)).all()
    assert sum(float(worths.sum()) for worths in given_answer.worths) <= 1 + 1e-12


class TestAnswers:
    @pytest.mark.parametrize("question", ANSWERS)
    def test_the_answer_is_in_it_verbatim_and_cited_exactly(self, library: Retriever, question: str):
        retrieval = retrieved(library, question)
        given_answer = answer(retrieval)
        assert ANSWERS[question] in given_answer.text
        assert ANSWERS[question] in given_answer.citations[0].quote
        assert_exact(given_answer, retrieval)

    def test_spans_are_offsets_into_the_text_of_the_whole_document(self, library: Retriever):
        retrieval = retrieved(library, "Where was paper invented?")
        first = answer(retrieval).citations[0]
        assert retrieval.documents[first.source].document.id == "paper"
        text = "\U0001f469\u200d\U0001f467 cafe\u0301. " + TEXTS["paper"]
        assert first.passage in sentences(text)
        assert text[slice(*first.passage)] == first.quote == "Paper was invented in China during the Han dynasty."

    def test_spans_in_a_later_passage_count_from_the_start_of_the_document(
        self, embedder: MiniLMEmbedder, tmp_path: Path
    ):
        engine = new_sqlite(tmp_path / "catalogue.sqlite3")
        text = "\U0001f41d " + "\n\n".join(TEXTS.values())
        bring(Catalogue(engine), embedder, document("all", text))
        for question, wanted in ANSWERS.items():
            given_answer = answer(retrieved(Retriever(Catalogue(engine), embedder), question))
            assert wanted in given_answer.text
            for each in given_answer.citations:
                assert each.passage in sentences(text)
                assert text[slice(*each.passage)] == each.quote
        engine.dispose()

    def test_it_has_no_more_sentences_than_it_needs_and_never_more_than_the_limit(self):
        many = [[(f"Sentence {i}.", 0.9, 1.0, 5.0)] for i in range(8)]
        assert answer(made("What?", *many)).slots == SENTENCES_MAX
        sure = [("The one.", 0.9, 1.0, 20.0)]
        assert answer(made("What?", sure, *([(f"Other {i}.", 0.1, 0.0, 0.0)] for i in range(8)))).slots == 1

    @pytest.mark.parametrize("question", ANSWERS)
    def test_it_stops_at_the_sentence_that_makes_it_confident(self, library: Retriever, question: str):
        given_answer = answer(retrieved(library, question))
        worths = np.sort(np.concatenate(given_answer.worths))[::-1]
        reached = np.cumsum(worths) / worths.sum()
        assert given_answer.slots == min(SENTENCES_MAX, int(np.argmax(reached >= CONFIDENCE)) + 1)

    def test_confidence_is_among_the_sentences_once_it_is_clear_that_there_is_an_answer(self):
        """The first is hardly likelier than "none of them", and still beyond comparison with the second."""
        retrieval = made("What?", [("First.", 0.6, 0.7, 1.7)], [("Second.", 0.4, 0.2, 0.0)])
        given_answer = answer(retrieval)
        assert 0.5 < float(given_answer.worths[0][0]) < 0.6
        assert given_answer.text == "First."

    def test_the_most_probable_sentence_comes_first_and_equals_in_the_order_of_their_documents(self):
        retrieval = made(
            "What?", [("Second.", 0.7, 1.0, 5.0)], [("First.", 0.75, 1.0, 5.0)], [("Third.", 0.7, 1.0, 5.0)]
        )
        assert answer(retrieval).text == "First. Second. Third."

    def test_a_sentence_of_several_documents_is_said_once(self):
        same = [("Bees dance to show where flowers are.", 0.8, 1.0, 8.0)]
        assert answer(made("How do bees dance?", same, same, same)).text == "Bees dance to show where flowers are."

    def test_a_sentence_that_a_document_repeats_is_said_once_and_leaves_room_for_others(self):
        repeats = [*[("Bees dance.", 0.8, 1.0, 8.0)] * SENTENCES_MAX, ("Flowers wait.", 0.78, 1.0, 7.0)]
        assert answer(made("How do bees dance?", repeats)).text == "Bees dance. Flowers wait."

    def test_the_same_retrieval_gives_the_same_answer(self, library: Retriever):
        first, second = (answer(retrieved(library, "How is the bishop moved in chess?")) for _ in range(2))
        assert (first.text, first.citations) == (second.text, second.citations)
        for one, other in zip(first.worths, second.worths, strict=True):
            np.testing.assert_array_equal(one, other)


class TestWhatIsAskedFor:
    @pytest.mark.parametrize(
        ("question", "named"),
        [
            ("When did it happen?", "It happened in 1870."),
            ("What year was that?", "That was in the 1790s."),
            ("In which century was it?", "It was in the last century."),
            ("When does it begin?", "It begins in October."),
            ("How many are there?", "There are seventeen or 17 of them."),
            ("How long is it?", "It is two miles long."),
            ("What percent of it is water?", "About 70 of it."),
            ("Why did it fall?", "It fell because it was heavy."),
            ("What caused it?", "That was due to rain."),
            ("Who made it?", "It was made by Stradivari."),
            ("Where is it?", "It is in Cremona."),
            ("Which city is it?", "They say it is Paris."),
        ],
    )
    def test_a_sentence_that_names_such_a_thing_goes_before_one_that_does_not(self, question: str, named: str):
        plain = "nothing of that kind is said here."
        documents = [[(text, 0.6, 0.5, 3.0)] for text in (plain, named, plain)]
        assert answer(made(question, *documents)).citations[0].quote == named

    @pytest.mark.parametrize("question", ["Who was Stradivari?", "Where is Stradivari?"])
    def test_a_name_that_the_question_gave_itself_is_no_answer(self, question: str):
        documents = [[(text, 0.6, 0.5, 3.0)] for text in ("it was Stradivari.", "it was Antonio.")]
        assert answer(made(question, *documents)).citations[0].quote == "it was Antonio."

    def test_a_question_that_asks_for_nothing_special_prefers_no_kind(self):
        texts = ("it is here.", "it was in 1870 because of Stradivari.")
        worths = answer(made("Tell me about it.", *([(text, 0.6, 0.5, 3.0)] for text in texts))).worths
        assert worths[0] == worths[1]


class TestAbstaining:
    @pytest.mark.parametrize("question", UNRELATED)
    def test_documents_that_do_not_answer_are_not_made_to(self, library: Retriever, question: str):
        retrieval = retrieved(library, question)
        given_answer = answer(retrieval)
        assert (given_answer.text, given_answer.citations, given_answer.slots) == (NO_ANSWER, (), 0)
        assert_probabilities(given_answer, retrieval)
        assert sum(float(worths.sum()) for worths in given_answer.worths) < 1 - NO_ANSWER_ABOVE

    def test_nothing_retrieved_is_no_answer(self):
        given_answer = answer(made("What?"))
        assert (given_answer.text, given_answer.citations, given_answer.worths) == (NO_ANSWER, (), ())


class TestWorths:
    @pytest.mark.parametrize("question", [*ANSWERS, *UNRELATED])
    @pytest.mark.parametrize("top_k", [1, 5, 50])
    def test_they_are_probabilities(self, library: Retriever, question: str, top_k: int):
        retrieval = retrieved(library, question, top_k)
        assert_probabilities(answer(retrieval), retrieval)

    def test_documents_beyond_those_read_earn_nothing_however_good(self):
        weak = [[(f"Sentence {i}.", 0.5, 0.5, 1.0)] for i in range(DOCUMENTS_READ)]
        perfect = [("The perfect answer.", 1.0, 1.0, 50.0)]
        given_answer = answer(made("What?", *weak, perfect))
        assert len(given_answer.worths) == DOCUMENTS_READ
        assert all(each.source < DOCUMENTS_READ for each in given_answer.citations)
        assert "perfect" not in given_answer.text
        without = answer(made("What?", *weak))
        assert without.text == given_answer.text
        assert np.concatenate(without.worths).tolist() == np.concatenate(given_answer.worths).tolist()

    def test_the_last_document_that_is_read_can_earn_all(self):
        weak = [[(f"Sentence {i}.", 0.2, 0.0, 0.0)] for i in range(DOCUMENTS_READ - 1)]
        given_answer = answer(made("What?", *weak, [("The perfect answer.", 1.0, 1.0, 50.0)]))
        assert given_answer.text == "The perfect answer."
        assert given_answer.worths[-1].sum() > 0.99

    @pytest.mark.parametrize("measure", [1, 2, 3])
    def test_more_evidence_is_worth_more(self, measure: int):
        better: list[float] = [0.5, 0.5, 2.0]
        better[measure - 1] += 0.2
        worths = answer(made("What?", [("One.", 0.5, 0.5, 2.0)], [("Two.", *better)])).worths
        assert worths[1].sum() > worths[0].sum()

    def test_a_better_rank_is_worth_more(self):
        same = [("One.", 0.5, 0.5, 2.0)]
        worths = answer(made("What?", same, same, scores=[3.0, 1.0])).worths
        assert worths[0].sum() > worths[1].sum()

    @given(
        st.lists(
            st.lists(
                st.tuples(
                    st.sampled_from(["One.", "Two words.", "In 1870.", "\U0001f41d e\u0301."]),
                    st.floats(-1, 1),
                    st.floats(0, 1),
                    st.floats(0, 10_000),
                ),
                min_size=1,
                max_size=4,
            ),
            max_size=DOCUMENTS_READ + 3,
        ),
        st.sampled_from(["When?", "Who is it?", "Tell me."]),
    )
    def test_whatever_the_evidence_the_answer_is_exact_and_the_worths_are_probabilities(
        self, documents: list[list[Measured]], question: str
    ):
        retrieval = made(question, *documents)
        given_answer = answer(retrieval)
        assert_probabilities(given_answer, retrieval)
        assert given_answer.slots <= SENTENCES_MAX
        if given_answer.citations:
            assert_exact(given_answer, retrieval)
        else:
            assert given_answer.text == NO_ANSWER
