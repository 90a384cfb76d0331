from __future__ import annotations

import random
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.analysis import stems, term_ids
from retrieval.catalogue import prepare
from retrieval.chunking import sentences
from retrieval.embedding import MiniLMEmbedder
from retrieval.near_duplicates import (
    SHORT,
    SKETCH,
    Wording,
    contained,
    other_facts,
    relation,
    repeated_sentences,
    repeats,
    runs,
    runs_of,
    sketch,
    words_of,
)
from tests.benchmarks import attacks
from tests.unit.retrieval.library import TEXTS, document

WORK = (
    "The canal at Brindle was dug between 1791 and 1797 by a company of mill owners. Its eleven locks lift a barge by "
    "twenty-three metres within half a mile. When the railway came the tolls fell, and in 1871 the company was sold to "
    "its rival for less than the price of the land. A society of volunteers has restored nine of the locks, and boats "
    "pass the tunnel again every Sunday in summer."
)
# Two pages that fill one form with other facts.
VILLAGE = (
    "Lisów is a village in the administrative district of Gmina Morawica, within Kielce County, in south-central "
    "Poland. It lies approximately 6 kilometres east of Morawica and 17 kilometres south of the regional capital "
    "Kielce. The village has a population of 640."
)
OTHER_VILLAGE = (
    "Brudów is a village in the administrative district of Gmina Morawica, within Kielce County, in south-central "
    "Poland. It lies approximately 9 kilometres west of Morawica and 21 kilometres south of the regional capital "
    "Kielce. The village has a population of 210."
)


def ids(*lists: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Terms and lengths of sentences that are given as numbers."""
    return np.asarray([term for each in lists for term in each], np.uint32), np.asarray(list(map(len, lists)), np.int32)


@given(st.lists(st.lists(st.integers(0, 3), max_size=7), max_size=6))
def test_runs_are_those_of_a_plain_reference(said):
    hashes, owner = runs(*ids(*said))
    expected = []
    for number, each in enumerate(said):
        whole = [tuple(each[i : i + 3]) for i in range(len(each) - 2)] or ([tuple(each)] if each else [])
        expected += [(number, run) for run in whole]
    assert owner.tolist() == [number for number, _ in expected]
    named: dict[int, tuple[int, ...]] = {}
    for found, (_, run) in zip(hashes.tolist(), expected, strict=True):
        assert named.setdefault(found, run) == run
    assert len(set(named.values())) == len(named), "one hash a run"


def test_runs_do_not_cross_sentences_so_their_order_does_not_matter():
    said = [WORK[start:end] for start, end in sentences(WORK)]
    shuffled = " ".join(random.Random(1).sample(said, len(said)))
    assert shuffled != WORK
    assert np.array_equal(runs_of(shuffled), runs_of(WORK))


def test_containment_is_of_the_later_text_in_the_earlier():
    part, whole = runs_of(WORK.split(". ", maxsplit=1)[0] + "."), runs_of(WORK)
    assert contained(part, whole) == 1
    assert contained(whole, part) == pytest.approx(len(part) / len(whole))
    assert contained(np.empty(0, np.uint64), whole) == contained(whole, np.empty(0, np.uint64)) == 0


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_containment_is_that_of_sets(later: set[int], earlier: set[int]):
    found = contained(*(np.asarray(sorted(each), np.uint64) for each in (later, earlier)))
    assert found == (len(later & earlier) / len(later) if later else 0)


def test_a_sketch_is_the_smallest_hashes_as_a_database_takes_them():
    distinct = runs_of(WORK)
    found = sketch(distinct)
    assert len(found) == SKETCH < len(distinct)
    assert [each % 2**64 for each in found] == sorted(distinct.tolist())[:SKETCH]


@pytest.fixture(scope="module")
def wording(embedder: MiniLMEmbedder):
    """From a text of one passage to what it is compared by."""
    return lambda text: prepare(document("x", text), embedder)[0].wording


class TestRepeats:
    @pytest.mark.parametrize("kind", attacks.COPIES)
    @pytest.mark.parametrize("seed", range(3))
    def test_copies_are_found_however_they_were_made(self, wording, kind: str, seed: int):
        copy = attacks.COPIES[kind](WORK, random.Random(seed))
        assert repeats(wording(copy), wording(WORK))

    def test_different_texts_are_not_copies(self, wording):
        texts = [wording(text) for text in (*TEXTS.values(), WORK, VILLAGE)]
        assert not any(repeats(a, b) for a in texts for b in texts if a is not b)

    def test_a_quotation_does_not_make_a_text_a_copy(self, wording):
        quoted = WORK.split(". ")[1]
        article = f"Engineers still admire what the mill owners dared. {quoted}. {TEXTS['railway']} {TEXTS['volcano']}"
        assert not repeats(wording(article), wording(WORK))

    def test_a_part_of_a_text_is_a_copy_of_it_and_not_the_other_way_round(self, wording):
        part = WORK.split(". ", maxsplit=1)[0] + "."
        assert repeats(wording(part), wording(WORK))
        assert not repeats(wording(WORK), wording(part))

    def test_a_form_that_was_filled_anew_is_not_a_copy(self, wording):
        assert contained(wording(OTHER_VILLAGE).runs, wording(VILLAGE).runs) >= 0.5
        assert not repeats(wording(OTHER_VILLAGE), wording(VILLAGE))

    def test_footnotes_do_not_make_a_copy_an_original(self, wording):
        footnoted = "".join(f"{part} ({1990 + i})." for i, part in enumerate(WORK.split(".")[:-1]))
        assert not other_facts(words_of([footnoted, WORK]), np.asarray([0]), np.asarray([1])).any()
        assert repeats(wording(footnoted), wording(WORK))

    def test_capital_letters_do_not_make_words_facts(self, wording):
        edited = attacks.word_edits(WORK, random.Random(5)).title()
        assert repeats(wording(edited), wording(WORK))

    def test_a_short_text_is_a_copy_of_the_same_words_only(self, wording):
        assert repeats(wording("See also the index."), wording("See also the index!"))
        assert not repeats(wording("See also the index."), wording(f"See also the index. {WORK}"))


@pytest.mark.parametrize("kind", attacks.COPIES)
def test_the_relation_of_many_texts_is_that_of_each_pair(wording, embedder: MiniLMEmbedder, kind: str):
    """And the embedding of a text is made at most once, and of few."""
    made = [attacks.COPIES[kind](WORK, random.Random(seed)) for seed in range(3)]
    texts = [*TEXTS.values(), WORK, *made, VILLAGE, OTHER_VILLAGE, "", "See also the index.", WORK[: len(WORK) // 3]]
    embedded: list[str] = []

    def embed(text: str) -> np.ndarray:
        embedded.append(text)
        return embedder.embed_passage(text, []).passage

    found = relation(texts, embed)
    compared = [wording(text) if text else Wording("", np.empty(0, np.uint64), lambda: np.zeros(384)) for text in texts]
    for i, later in enumerate(compared):
        for j, earlier in enumerate(compared):
            assert found(i, j) == repeats(later, earlier), (texts[i], texts[j])
    assert len(embedded) == len(set(embedded)) <= 2 + len(made)


def test_a_relation_of_no_texts_embeds_nothing_and_has_no_pairs():
    embedded: list[str] = []
    found = relation([], lambda text: embedded.append(text) or np.zeros(1))
    with pytest.raises(IndexError):
        found(0, 0)
    assert embedded == []


STOCK = ["the", "Mill", "old", "Osk", "7", "19", "Bourne", "stands"]
SMALL_TEXTS = st.lists(st.sampled_from(STOCK), max_size=9).map(" ".join)


@given(st.lists(SMALL_TEXTS, min_size=2, max_size=4))
def test_other_facts_are_those_of_a_plain_reference(texts):
    """Of facts that the other text has not, those that stand behind as many of the words that both have once."""
    said = [[(word.lower(), i > 0 and not word.islower()) for i, word in enumerate(text.split())] for text in texts]
    said = [[(word, fact or word.isdigit()) for word, fact in each] for each in said]

    def facts(mine, theirs):
        counts = [Counter(word for word, _ in each) for each in (mine, theirs)]
        places, place = Counter(), 0
        for word, fact in mine:
            place += counts[0][word] == counts[1][word] == 1
            places[place] += fact and not counts[1][word]
        return places, sum(not counts[1][word] for word, _ in mine)

    pairs = [(later, earlier) for later in range(len(texts)) for earlier in range(later)]
    found = other_facts(words_of(texts), *np.asarray(pairs).T)
    for (later, earlier), other in zip(pairs, found.tolist(), strict=True):
        (mine, changed), (theirs, _) = facts(said[later], said[earlier]), facts(said[earlier], said[later])
        swapped = (mine & theirs).total()
        assert other == (swapped > 0 and swapped >= 0.05 * len(said[later]) and 2 * swapped >= changed)


@st.composite
def passages_of_sentences(draw):
    """Passages of sentences from a small stock, so that they have some in common."""
    stock = draw(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=9), min_size=1, max_size=6))
    return draw(st.lists(st.lists(st.sampled_from(stock), max_size=4), max_size=5))


@given(passages_of_sentences())
def test_repeated_sentences_are_those_of_a_plain_reference(chosen):
    worded, shingled = [], []
    for said in chosen:
        words = [" ".join("abcdefghijklmnopqrstuvwxyzäöüßé"[term] for term in each) for each in said]  # no facts
        worded.append(words_of(words))
        shingled.append(runs(*ids(*said)))
    earlier: list[tuple[int, set[tuple[int, ...]]]] = []
    expected = []
    for number, said in enumerate(chosen):
        row = []
        for each in said:
            mine = {tuple(each[i : i + 3]) for i in range(max(1, len(each) - 2))}
            row.append(
                next(
                    (
                        place
                        for place, theirs in earlier
                        if len(mine & theirs) >= (0.6 * len(mine) if len(mine) >= SHORT else len(mine))
                        and (len(mine) >= SHORT or len(mine) == len(theirs))
                    ),
                    -1,
                )
            )
            if row[-1] < 0:
                earlier.append((number, mine))
        expected.append(row)
    found = repeated_sentences(worded, shingled)
    assert [row.tolist() for row in found] == expected


def test_a_sentence_that_all_passages_say_over_and_over_is_compared_once():
    """Every two of 3,000 were a pair: one query for 50 such documents held up all others for ten seconds."""
    passage = ["Zeb zeb zeb zeb."] * 60
    stemmed = [stems(each) for each in passage]
    terms = term_ids([stem for each in stemmed for stem in each])
    shingled = runs(terms, np.asarray([len(each) for each in stemmed], np.int32))
    began = time.process_time()
    found = repeated_sentences([words_of(passage)] * 50, [shingled] * 50)
    assert time.process_time() - began < 2
    assert np.concatenate(found).tolist() == [-1] + [0] * (50 * 60 - 1)


def test_of_two_sentences_of_one_form_both_play():
    texts = [VILLAGE, OTHER_VILLAGE, VILLAGE]
    said = [[text[start:end] for start, end in sentences(text)] for text in texts]
    stemmed = [[stems(each) for each in parts] for parts in said]
    numbers: dict[str, int] = {}
    coded = [[[numbers.setdefault(stem, len(numbers)) for stem in each] for each in parts] for parts in stemmed]
    found = repeated_sentences(list(map(words_of, said)), [runs(*ids(*parts)) for parts in coded])
    assert [row.tolist()[1:] for row in found] == [[-1] * 2, [-1] * 2, [0] * 2]
