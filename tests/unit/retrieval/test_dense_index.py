from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from retrieval.dense_index import DenseIndex, Mask, Rows
from retrieval.embedding import Vector, Vectors
from retrieval.similarity import Floats

DIMENSION = 16
MERGE = 1_024
"""With so many rows the delta becomes a snapshot."""


def unit_vectors(count: int, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def built(vectors: Vectors, steps: Sequence[int]) -> DenseIndex:
    """An index that took in the rows of ``vectors`` up to each of ``steps``, and then the rest."""
    index = DenseIndex(DIMENSION)
    for start, end in zip([0, *steps], [*steps, len(vectors)], strict=True):
        index = index.extended(vectors[start:end].copy())
    return index


def exact(vectors: Vectors, query: Vector) -> Floats:
    """Cosines by plain integers: steps of ``2 ** -24``, products and sums of those, rounded to a step once."""
    steps = [[round(float(each) * 2**24) for each in vector] for vector in (*vectors, query)]
    dots = [sum(a * b for a, b in zip(vector, steps[-1], strict=True)) for vector in steps[:-1]]
    return np.asarray([round(Fraction(dot, 2**24)) / 2**24 for dot in dots])


def assert_found(found: tuple[Rows, Floats], cosines: Floats, limit: int, allowed: Mask) -> None:
    """The rows are the best ones, best first, ties by row, to the last bit."""
    inside = np.flatnonzero(allowed)
    best = inside[np.argsort(-cosines[inside], kind="stable")][:limit]
    np.testing.assert_array_equal(found[0], best)
    np.testing.assert_array_equal(found[1], cosines[best])


MIXES = [
    pytest.param(1, [], id="one row"),
    pytest.param(MERGE - 1, [], id="a delta alone"),
    pytest.param(MERGE, [], id="a snapshot alone"),
    pytest.param(MERGE + 1, [MERGE], id="a snapshot and a delta of one row"),
    pytest.param(2 * MERGE + 7, [100, MERGE - 1, MERGE, 2 * MERGE - 1], id="two merges and a delta"),
    pytest.param(6 * MERGE, [5 * MERGE, 6 * MERGE - 300], id="a delta that is small for its snapshot"),
]


@pytest.mark.parametrize(("count", "steps"), MIXES)
@pytest.mark.parametrize("kept", [1.0, 0.5, 0.01])
def test_search_finds_what_brute_force_finds(count: int, steps: list[int], kept: float):
    vectors, queries = unit_vectors(count), unit_vectors(5, seed=1)
    index = built(vectors, steps)
    assert len(index) == count
    for seed, query in enumerate(queries):
        cosines = exact(vectors, query)
        allowed = np.random.default_rng(seed).random(count) < kept
        for limit in (1, 10, 2 * count):
            assert_found(index.search(query, limit, allowed), cosines, limit, allowed)


@pytest.mark.parametrize(("count", "steps"), MIXES)
def test_a_mask_that_allows_one_row_finds_that_row(count: int, steps: list[int]):
    """Wherever it stands: the mask is packed to bits, eight rows a byte."""
    vectors, (query,) = unit_vectors(count), unit_vectors(1, seed=1)
    index = built(vectors, steps)
    for row in {0, 7, 8, 9, count // 2, count - 2, count - 1}.intersection(range(count)):
        allowed = np.zeros(count, np.bool_)
        allowed[row] = True
        assert index.search(query, 10, allowed)[0].tolist() == [row]


@pytest.mark.parametrize(("count", "steps"), [pytest.param(0, [], id="no rows"), *MIXES])
def test_nothing_allowed_finds_nothing(count: int, steps: list[int]):
    index = built(unit_vectors(count), steps)
    rows, scores = index.search(unit_vectors(1)[0], 10, np.zeros(count, np.bool_))
    assert rows.shape == scores.shape == (0,)


def test_an_index_without_any_rows_finds_nothing():
    rows, scores = DenseIndex(DIMENSION).search(unit_vectors(1)[0], 10, np.empty(0, np.bool_))
    assert len(DenseIndex(DIMENSION)) == 0
    assert rows.shape == scores.shape == (0,)


@pytest.mark.parametrize(("count", "steps"), MIXES)
def test_scores_stand_in_the_order_of_the_rows_that_were_asked_for(count: int, steps: list[int]):
    vectors, (query,) = unit_vectors(count), unit_vectors(1, seed=1)
    rows = np.random.default_rng(2).permutation(count)
    np.testing.assert_array_equal(built(vectors, steps).scores(query, rows), exact(vectors[rows], query))
    assert built(vectors, steps).scores(query, np.empty(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("base", [0, 10, MERGE - 1, MERGE, MERGE + 500])
@pytest.mark.parametrize("more", [1, 600, 3 * MERGE])
def test_extended_never_changes_what_it_was_called_on(base: int, more: int):
    vectors, (query,) = unit_vectors(base + more), unit_vectors(1, seed=1)
    old = built(vectors[:base], [])
    everything = np.ones(base, np.bool_)
    before = old.search(query, base + more, everything)
    new = old.extended(vectors[base:])
    other = old.extended(-vectors[base:])
    assert (len(old), len(new), len(other)) == (base, base + more, base + more)
    for one, same in zip(before, old.search(query, base + more, everything), strict=True):
        np.testing.assert_array_equal(one, same)
    allowed = np.ones(base + more, np.bool_)
    assert_found(new.search(query, 10, allowed), exact(vectors, query), 10, allowed)
    turned = np.concatenate([vectors[:base], -vectors[base:]])
    assert_found(other.search(query, 10, allowed), exact(turned, query), 10, allowed)


def test_equal_rows_are_found_in_their_order():
    (query,) = unit_vectors(1)
    index = built(np.repeat(query[None], MERGE + 5, axis=0), [MERGE])
    rows, scores = index.search(query, MERGE + 5, np.ones(MERGE + 5, np.bool_))
    assert rows.tolist() == list(range(MERGE + 5))
    assert len(set(scores.tolist())) == 1


def test_rows_that_float32_does_not_tell_apart_are_told_apart():
    """All differ by a few steps, so what adds in float32 proposes them in an order of its own; the limit cuts there."""
    (query,) = unit_vectors(1)
    steps = np.random.default_rng(2).integers(-3, 4, (MERGE + 300, DIMENSION)).astype(np.float32)
    vectors = query + steps * np.float32(2.0**-24)
    allowed = np.ones(len(vectors), np.bool_)
    assert_found(built(vectors, [MERGE]).search(query, 100, allowed), exact(vectors, query), 100, allowed)
