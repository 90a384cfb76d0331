"""The value function ``support``: what makes a passage worth something for an answer, and what does not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from attribution.games.max_games import MaxGame
from attribution.value_functions.support import READ_CHARS, Passage, support
from metering.records import VALUE_ONE
from serving.valuing.text_analyzer import EmbeddingAnalyzer

FACT = Passage("The Vellmar lighthouse was built in 1847 by the engineer Ottilie Brandt.", "Vellmar lighthouse")
BRANDT = Passage("Ottilie Brandt was born in Stade, where her father was a shipwright.", "Ottilie Brandt")
BREAD = Passage("Sourdough bread needs flour, water, salt and a day of patience.", "Sourdough")
TIDES = Passage("Spring tides follow the full moon by about two days.", "Tides")
QUESTION = "When was the Vellmar lighthouse built?"


class Counting(EmbeddingAnalyzer):
    """An analyzer that counts the characters it embeds."""

    chars = 0

    def vectors(self, text, spans):
        self.chars += len(text)
        return super().vectors(text, spans)


@pytest.fixture
def analyzer(embedder):
    return Counting(embedder)


def parts(game: MaxGame) -> list[float]:
    return (game.solve() / VALUE_ONE).tolist()


def added(game: MaxGame) -> float:
    return (game.value_all - game.value_none) / VALUE_ONE


def test_the_passage_with_the_answer_earns_nearly_everything(analyzer):
    game = support(QUESTION, "It was built in 1847.", [BREAD, FACT, TIDES], analyzer)
    assert parts(game)[1] > 0.95
    assert added(game) > 0.95


def test_without_an_answer_the_question_says_what_is_worth_something(analyzer):
    assert parts(support(QUESTION, "", [TIDES, BREAD, FACT], analyzer))[2] > 0.9


@pytest.mark.parametrize("answer", ["Yes.", "no", " ", "...", "The"])
def test_an_answer_that_says_nothing_leaves_the_question(analyzer, answer):
    game = support("Is the Vellmar lighthouse old?", answer, [FACT, BREAD], analyzer)
    assert len(game.scores) == 1
    assert parts(game)[0] > 0.9


def test_passages_about_something_else_add_nothing(analyzer):
    game = support(QUESTION, "It was built in 1847.", [BREAD, TIDES], analyzer)
    assert added(game) < 0.01
    assert game.value_none > 0.99 * VALUE_ONE


def test_every_sentence_of_the_answer_is_a_key_point(analyzer):
    answer = "The Vellmar lighthouse was built in 1847. Spring tides follow the full moon by two days."
    game = support("What do you know of the coast?", answer, [FACT, TIDES, BREAD], analyzer)
    assert len(game.scores) == 2
    first, second, other = parts(game)
    assert min(first, second) > 0.4
    assert other < 0.1


def test_a_second_hop_earns_through_its_title(analyzer):
    """Who was born there is said by a passage that the question does not name, but the lighthouse's passage does."""
    question, answer = "Where was the engineer of the Vellmar lighthouse born?", "Stade"
    linked = parts(support(question, answer, [FACT, BRANDT, BREAD], analyzer))
    assert min(linked[:2]) > 0.2
    unlinked = [FACT, Passage(BRANDT.text, "A life"), BREAD]
    assert sum(linked[:2]) > 0.9
    assert parts(support(question, answer, unlinked, analyzer))[1] < linked[1]


def test_a_title_inside_a_longer_title_is_not_named(analyzer):
    short = Passage("Vellmar is a town on the estuary with a market.", "Vellmar")
    with_title = parts(support(QUESTION, "", [FACT, short], analyzer))
    assert with_title[0] > with_title[1]
    named = support("Where is Vellmar?", "", [FACT, short], analyzer)
    assert parts(named)[1] > parts(named)[0]


def test_the_order_of_passages_makes_no_difference(analyzer):
    passages = [FACT, BRANDT, BREAD, TIDES]
    expected = support(QUESTION, "In 1847, by Ottilie Brandt.", passages, analyzer)
    for order in itertools.permutations(range(4)):
        game = support(QUESTION, "In 1847, by Ottilie Brandt.", [passages[i] for i in order], analyzer)
        assert (game.scores == expected.scores[:, list(order)]).all()
        assert (game.baseline == expected.baseline).all()


def test_equal_evidence_earns_the_same(analyzer):
    game = support(QUESTION, "1847", [FACT, BREAD, FACT], analyzer)
    first, _, last = parts(game)
    assert first == last == pytest.approx(added(game) / 2, abs=0.01)


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "?!", "\U0001f35e"])
def test_a_passage_without_words_earns_nothing(analyzer, text):
    game = support(QUESTION, "It was built in 1847.", [FACT, Passage(text)], analyzer)
    assert parts(game)[1] < 0.001


def test_one_passage_that_answers_earns_it_all(analyzer):
    assert added(support(QUESTION, "It was built in 1847.", [FACT], analyzer)) > 0.95


def test_what_is_embedded_is_bounded(analyzer):
    long = Passage(" ".join(f"Sentence number {i} speaks of the lighthouse at Vellmar." for i in range(2_000)))
    support(QUESTION, "1847", [long, long, FACT], analyzer)
    assert analyzer.chars < READ_CHARS + 300


def test_values_are_between_none_and_one(analyzer):
    for answer in ("", "1847", "One. Two. Three words here. Four!"):
        game = support(QUESTION, answer, [FACT, BRANDT, TIDES], analyzer)
        assert 0 <= game.value_none <= game.value_all <= VALUE_ONE
        table = game.table()
        assert (np.diff(table[[0, 1, 3, 7]]) >= 0).all()
