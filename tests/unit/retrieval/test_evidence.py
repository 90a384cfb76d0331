from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from retrieval.analysis import stems, subject_stems, term_ids
from retrieval.catalogue import prepare
from retrieval.documents import Document
from retrieval.embedding import MiniLMEmbedder
from retrieval.evidence import Question, weigh
from retrieval.passage_table import PreparedPassage
from tests.unit.retrieval.library import document

QUESTIONS = [
    "When was the lighthouse at Cape Hatteras built?",
    "How do honey bees tell each other where flowers are?",
    "What is it?",
    "zzz unknown zzz",
    "",
]
MEAN_WORDS = 22.0


@pytest.fixture(scope="module")
def shelf(prepared_shelf: list[tuple[Document, list[PreparedPassage]]]) -> list[PreparedPassage]:
    return [passage for _, passages in prepared_shelf for passage in passages]


def asked(embedder: MiniLMEmbedder, text: str, idf: Sequence[float] | None = None) -> Question:
    terms = term_ids(subject_stems(text))
    weights = np.linspace(0.5, 3, len(terms)) if idf is None else np.asarray(idf)
    return Question(text, embedder.embed_query(text), terms, weights)


def reference(question: Question, passage: PreparedPassage) -> list[tuple[float, float, float]]:
    """Similarity, coverage and BM25 of each sentence, from its words, one at a time."""
    wanted = dict(zip(subject_stems(question.text), question.idf.tolist(), strict=True))
    result = []
    for (start, end), vector in zip(passage.sentences.tolist(), passage.sentence_vectors, strict=True):
        words = stems(passage.text[start:end])
        named = sum(weight for stem, weight in wanted.items() if stem in words)
        lexical = 0.0
        for stem, weight in wanted.items():
            count = words.count(stem)
            lexical += weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(words) / MEAN_WORDS))
        similarity = sum(float(a) * float(b) for a, b in zip(vector, question.vector, strict=True))
        result.append((similarity, named / (sum(wanted.values()) or 1.0), lexical))
    return result


@pytest.mark.parametrize("text", QUESTIONS)
def test_the_measures_are_those_of_a_plain_reference(embedder: MiniLMEmbedder, shelf: list[PreparedPassage], text: str):
    question = asked(embedder, text)
    weighed = weigh(question, shelf)
    assert len(weighed) == len(shelf)
    for passage, evidence in zip(shelf, weighed, strict=True):
        expected = np.asarray(reference(question, passage)).T
        actual = (evidence.similarity, evidence.coverage, evidence.lexical)
        for measure, values in zip(actual, expected, strict=True):
            assert measure.shape == (len(passage.sentences),)
            np.testing.assert_allclose(measure, values, rtol=1e-4, atol=1e-5)


def test_a_passage_has_the_same_evidence_alone_as_beside_others(embedder: MiniLMEmbedder, shelf: list[PreparedPassage]):
    question = asked(embedder, QUESTIONS[0])
    for passage, together in zip(shelf, weigh(question, shelf), strict=True):
        (alone,) = weigh(question, [passage])
        np.testing.assert_array_equal(alone.similarity, together.similarity)
        np.testing.assert_array_equal(alone.coverage, together.coverage)
        np.testing.assert_array_equal(alone.lexical, together.lexical)


def test_coverage_is_the_weighted_part_of_the_question_that_a_sentence_names(embedder: MiniLMEmbedder):
    (passage,) = prepare(document("d", "Red apples. Red, red, red. Green apples and pears. None of it."), embedder)
    question = asked(embedder, "red apples", idf=[1.0, 3.0])
    (evidence,) = weigh(question, [passage])
    assert evidence.coverage.tolist() == [1.0, 0.25, 0.75, 0.0]
    assert evidence.lexical[3] == 0
    assert evidence.lexical[0] > evidence.lexical[2] > evidence.lexical[1]


def test_repeating_a_word_pays_less_and_less(embedder: MiniLMEmbedder):
    text = " ".join(" ".join(["Red"] * n + ["x"] * (12 - n)) + "." for n in (1, 2, 4, 8))
    (passage,) = prepare(document("d", text), embedder)
    (evidence,) = weigh(asked(embedder, "red", idf=[1.0]), [passage])
    assert (np.diff(evidence.lexical) > 0).all()
    assert evidence.lexical[-1] < 2.2
    assert set(evidence.coverage) == {1.0}


def test_no_passages_have_no_evidence(embedder: MiniLMEmbedder):
    assert weigh(asked(embedder, QUESTIONS[0]), []) == []


def test_a_question_whose_words_are_everywhere_has_no_coverage_and_divides_by_nothing(
    embedder: MiniLMEmbedder, shelf: list[PreparedPassage]
):
    question = asked(embedder, "lighthouse built", idf=[0.0, 0.0])
    for evidence in weigh(question, shelf):
        assert not evidence.coverage.any()
        assert not evidence.lexical.any()
        assert all(math.isfinite(value) for value in evidence.similarity)
