"""Similarity is exact: what integers give, for any dimension."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from retrieval.similarity import STEP, Floats, cosine, cosines, stepped


def integers(vectors: np.ndarray, vector: np.ndarray) -> list[float]:
    """Cosines by plain fractions, rounded to a step once."""
    found = []
    for each in vectors.tolist():
        dot = sum(Fraction(a) * Fraction(b) for a, b in zip(each, vector.tolist(), strict=True))
        found.append(round(dot / Fraction(STEP)) * STEP)
    return found


def unit(count: int, dimension: int) -> Floats:
    found = np.random.default_rng(dimension).normal(size=(count, dimension))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("dimension", [1, 2, 7, 64, 384, 4_096])
def test_cosines_are_what_integers_give(dimension: int):
    vectors = stepped(unit(9, dimension).astype(np.float32))
    assert cosines(vectors, vectors[0]).tolist() == integers(vectors, vectors[0])
    halves = unit(9, dimension).astype(np.float16)
    assert cosines(halves, vectors[0]).tolist() == integers(halves, vectors[0])


def test_opposites_and_equals_and_what_has_nothing_in_common():
    (vector,) = unit(1, 384).astype(np.float32)
    assert cosine(vector, vector) == pytest.approx(1, abs=1e-6)
    assert cosine(vector, -vector) == -cosine(vector, vector)
    axes = np.eye(3, dtype=np.float32)
    assert cosines(axes, axes[1]).tolist() == [0.0, 1.0, 0.0]


def test_steps_move_no_component_by_more_than_half_of_one():
    vectors = unit(50, 384).astype(np.float32)
    moved = stepped(vectors)
    assert np.abs(moved.astype(np.float64) - vectors).max() <= STEP / 2
    assert (moved / np.float32(STEP) % 1 == 0).all()
    assert stepped(moved).tobytes() == moved.tobytes()


def test_every_float16_of_at_most_one_is_of_steps():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.abs(halves.astype(np.float64)) <= 1].astype(np.float64)
    assert len(halves) == 2 * (15 * 2**10 + 1)
    assert (halves / STEP % 1 == 0).all()
