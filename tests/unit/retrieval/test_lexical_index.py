from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from retrieval.lexical_index import LexicalEntry, LexicalIndex, LexicalView

ANYTHING = 2**53 - 1
"""A price above every floor."""


def entry(
    row: int, terms: Sequence[int], document: int | None = None, purposes: tuple[str, ...] | None = None, floor: int = 0
) -> LexicalEntry:
    return LexicalEntry(row, row if document is None else document, np.asarray(terms, np.uint32), purposes, floor)


def found(
    view: LexicalView, *terms: int, purpose: str = "answer", price: int = ANYTHING, limit: int = 1_000
) -> list[int]:
    rows, scores = view.search(terms, limit, purpose, price)
    assert len(rows) == len(scores)
    assert (np.diff(scores) <= 0).all()
    return rows.tolist()


def bm25(texts: Sequence[Sequence[int]], terms: Sequence[int]) -> dict[int, float]:
    """BM25 of every text with one of the terms, as Robertson and Zaragoza (2009) and tantivy have it."""
    mean = sum(map(len, texts)) / len(texts)
    scores = {}
    for row, text in enumerate(texts):
        counts = Counter(text)
        score = 0.0
        for term in terms:
            frequency = sum(term in other for other in texts)
            idf = math.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
            damping = 1.2 * (1 - 0.75 + 0.75 * len(text) / mean)
            score += idf * counts[term] * 2.2 / (counts[term] + damping)
        if set(terms) & set(text):
            scores[row] = score
    return scores


def test_which_of_equals_are_found_does_not_depend_on_how_the_index_grew():
    entries = [entry(row, [row % 3]) for row in range(300)]
    grown = LexicalIndex()
    for begin in range(0, 300, 50):
        view = grown.update((), entries[begin : begin + 50][::-1])
    at_once = LexicalIndex().update((), entries)

    for limit in (1, 7, 99, 100, 101):
        first = list(range(0, 300, 3))[:limit]
        assert found(view, 0, limit=limit) == found(at_once, 0, limit=limit) == first


@pytest.fixture
def index() -> LexicalIndex:
    return LexicalIndex()


def test_scores_are_bm25(index: LexicalIndex):
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 30, generator.integers(1, 20)).tolist() for _ in range(50)]
    view = index.update((), [entry(row, text) for row, text in enumerate(texts)])
    for terms in ([1], [2, 3], [4, 5, 6, 99]):
        rows, scores = view.search(terms, 50, "answer", 0)
        expected = bm25(texts, terms)
        assert set(rows.tolist()) == set(expected)
        np.testing.assert_allclose(scores, [expected[row] for row in rows.tolist()], rtol=1e-5)
        assert (np.diff(scores) <= 0).all()


def test_purposes_and_floors_do_not_change_a_score(index: LexicalIndex):
    texts = [[1, 2], [1, 3, 4], [2, 3]]
    view = index.update((), [entry(row, text, purposes=("answer",), floor=row) for row, text in enumerate(texts)])
    _, scores = view.search([1, 3], 10, "answer", 10)
    np.testing.assert_allclose(sorted(scores), sorted(bm25(texts, [1, 3]).values()), rtol=1e-5)


def test_the_whole_range_of_term_ids_is_told_apart(index: LexicalIndex):
    terms = [0, 1, 10, 11, 2**31, 2**32 - 1]
    view = index.update((), [entry(row, [term]) for row, term in enumerate(terms)])
    assert [found(view, term) for term in terms] == [[row] for row in range(len(terms))]


def test_no_terms_and_no_entries_find_nothing(index: LexicalIndex):
    empty = index.update((), ())
    assert found(empty, 1) == []
    assert empty.idf([1, 2]).shape == (2,)
    view = index.update((), [entry(0, [1])])
    assert found(view) == []
    assert found(view, 2) == []
    assert view.idf([]).shape == (0,)


def test_a_passage_without_words_is_never_found_and_does_no_harm(index: LexicalIndex):
    assert found(index.update((), [entry(0, []), entry(1, [1])]), 1) == [1]


def test_the_limit_keeps_the_best(index: LexicalIndex):
    view = index.update((), [entry(row, [1] * (row + 1)) for row in range(5)])
    every = found(view, 1)
    assert len(every) == 5
    assert found(view, 1, limit=2) == every[:2]


def test_equal_scores_stand_in_the_order_of_their_rows(index: LexicalIndex):
    assert found(index.update((), [entry(row, [1]) for row in (5, 3, 9, 1)]), 1) == [1, 3, 5, 9]


class TestTerms:
    @pytest.mark.parametrize(
        ("purposes", "allowed"),
        [
            (None, {"answer", "research", "training"}),
            (("answer",), {"answer"}),
            (("answer", "research"), {"answer", "research"}),
            ((), set()),
        ],
    )
    def test_a_passage_is_found_for_its_purposes_only(
        self, index: LexicalIndex, purposes: tuple[str, ...] | None, allowed: set[str]
    ):
        view = index.update((), [entry(0, [1], purposes=purposes)])
        assert {name for name in ("answer", "research", "training") if found(view, 1, purpose=name)} == allowed

    @pytest.mark.parametrize("purpose", ["", "ans", "answers", "ANSWER", "answer research", "answer*", "*answer"])
    def test_a_purpose_is_matched_whole(self, index: LexicalIndex, purpose: str):
        assert found(index.update((), [entry(0, [1], purposes=("answer",))]), 1, purpose=purpose) == []

    @pytest.mark.parametrize(("price", "rows"), [(0, [0]), (999, [0]), (1_000, [0, 1]), (2**53 - 1, [0, 1, 2])])
    def test_a_passage_is_found_from_its_floor_on(self, index: LexicalIndex, price: int, rows: list[int]):
        entries = [entry(0, [1]), entry(1, [1], floor=1_000), entry(2, [1], floor=2**53 - 1)]
        assert found(index.update((), entries), 1, price=price) == rows

    def test_terms_are_applied_before_the_best_are_chosen(self, index: LexicalIndex):
        """Else a query of a small price would find nothing among many dear passages."""
        entries = [entry(row, [1, 1, 1], floor=10) for row in range(100)] + [entry(100, [1, 2, 2, 2, 2])]
        assert found(index.update((), entries), 1, limit=1, price=5) == [100]


class TestUpdates:
    def test_a_document_is_removed_with_all_of_its_passages_and_no_others(self, index: LexicalIndex):
        view = index.update((), [entry(row, [1], document=row // 3) for row in range(9)])
        assert found(view, 1) == list(range(9))
        assert found(index.update([1], ()), 1) == [0, 1, 2, 6, 7, 8]

    def test_a_document_is_replaced_in_one_update(self, index: LexicalIndex):
        index.update((), [entry(0, [1], document=7), entry(1, [1], document=8)])
        view = index.update([7], [entry(2, [2], document=7)])
        assert (found(view, 1), found(view, 2)) == ([1], [2])

    def test_removing_what_is_not_there_is_harmless(self, index: LexicalIndex):
        index.update((), [entry(0, [1])])
        assert found(index.update([99], ()), 1) == [0]

    def test_a_view_is_not_affected_by_later_updates(self, index: LexicalIndex):
        old = index.update((), [entry(row, [1], floor=row) for row in range(10)])
        before, idf = found(old, 1), old.idf([1, 2]).tolist()
        for round_ in range(20):
            index.update([round_ % 10], [entry(100 + round_, [1, 2], document=round_ % 10)])
        new = index.update(range(10), ())
        assert found(new, 1) == []
        assert found(old, 1) == before == list(range(10))
        assert old.idf([1, 2]).tolist() == idf

    def test_most_of_the_passages_can_be_removed(self, index: LexicalIndex):
        index.update((), [entry(row, [1, 2]) for row in range(2_000)])
        assert found(index.update(range(1_999), ()), 1, 2) == [1_999]


class TestInverseDocumentFrequency:
    @pytest.mark.parametrize(("term", "frequency"), [(1, 10), (2, 5), (3, 1), (4, 0)])
    def test_it_is_that_of_bm25(self, index: LexicalIndex, term: int, frequency: int):
        view = index.update((), [entry(row, [1] + [2] * (row < 5) + [3] * (row == 0)) for row in range(10)])
        assert view.idf([term]) == pytest.approx(math.log(1 + (10 - frequency + 0.5) / (frequency + 0.5)))

    def test_it_is_never_negative_nor_infinite(self, index: LexicalIndex):
        index.update((), [entry(row, [1]) for row in range(10)])
        for view in (index.update(range(9), ()), index.update([9], ())):
            assert (view.idf([1, 2]) >= 0).all()
            assert np.isfinite(view.idf([1, 2])).all()

    def test_removed_passages_do_not_count(self, index: LexicalIndex):
        """Else a withdrawn document goes on weighing the evidence, and paying, of those that stay."""
        index.update((), [entry(row, [1] + [2] * (row < 6)) for row in range(10)])
        view = index.update(range(5), ())
        expected = [math.log(1 + (5 - n + 0.5) / (n + 0.5)) for n in (5, 1)]
        assert view.idf([1, 2]) == pytest.approx(expected)
