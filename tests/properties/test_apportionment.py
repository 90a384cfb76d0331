"""Apportionment: nothing lost, nothing invented, nobody favoured."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attribution.apportionment import apportion, apportion_all, offset

totals = st.integers(0, 2**53)
weights = st.lists(st.integers(0, 2**60), min_size=1, max_size=40)
seeds = st.binary(max_size=16)
MONEY = settings(max_examples=10 * settings().max_examples)


@MONEY
@given(totals, weights, seeds)
def test_every_cell_gets_its_exact_share_rounded_up_or_down_and_nothing_is_left(total, shares, seed):
    assume(sum(shares))
    cells = apportion(total, shares, seed)
    assert sum(cells) == total
    for cell, weight in zip(cells, shares, strict=True):
        exact = Fraction(total * weight, sum(shares))
        assert abs(cell - exact) < 1
        assert weight or cell == 0


@pytest.mark.parametrize(
    ("total", "shares", "seed", "cells"),
    [
        (10, [1, 1, 1], b"", [3, 3, 4]),
        (10, [1, 1, 1], b"receipt", [4, 3, 3]),
        (1, [1, 17, 1, 81], b"01a2008788fb90c335c2273ba755", [0, 0, 0, 1]),
        (2**53, [2**60, 1, 2**59, 0], b"x", [6004799503160661, 0, 3002399751580331, 0]),
        (1_209_250, [999_999, 1], b"a", [1_209_249, 1]),
        (7, [3, -1, 2], b"b", [5, -2, 4]),
    ],
)
def test_a_seed_gives_the_same_split_for_ever(total, shares, seed, cells):
    """What was once credited is recomputed by every later version."""
    assert apportion(total, shares, seed) == cells


@given(totals, weights, seeds)
def test_the_split_is_that_of_the_rule(total, shares, seed):
    """A cell gets the points that fall on its stretch: those below its end less those below its beginning."""
    assume(sum(shares))
    digest = hashlib.sha256(b"systematic/1\0" + seed).digest()
    start = Fraction(int.from_bytes(digest[:8], "big"), 2**64)
    ends = [start + Fraction(total * sum(shares[: place + 1]), sum(shares)) for place in range(len(shares))]
    points = [0, *map(floor, ends)]
    assert apportion(total, shares, seed) == [after - before for before, after in pairwise(points)]


@given(totals, weights, seeds, st.integers(1, 10**6))
def test_only_proportions_matter(total, shares, seed, factor):
    assume(sum(shares))
    assert apportion(total, shares, seed) == apportion(total, [weight * factor for weight in shares], seed)


signed = st.lists(st.integers(-(2**60), 2**60), min_size=1, max_size=40)


@MONEY
@given(totals, signed, seeds)
def test_negative_shares_are_rounded_up_or_down_too_and_nothing_is_left(total, shares, seed):
    assume(sum(shares) > 0)
    cells = apportion(total, shares, seed)
    assert sum(cells) == total
    for cell, weight in zip(cells, shares, strict=True):
        assert abs(cell - Fraction(total * weight, sum(shares))) < 1


lines = st.lists(
    st.tuples(
        st.integers(0, 2**30) | st.integers(0, 2**50), st.lists(st.integers(-(2**60), 2**60), max_size=12), seeds
    ),
    min_size=1,
    max_size=8,
)


@MONEY
@given(lines)
def test_many_at_once_are_split_as_one_by_one(given_lines):
    """Whatever floating point proposes, the integers are those of the rule."""
    whole = 2**66
    expected = [apportion(total, [*cells, whole - sum(cells)], seed)[:-1] for total, cells, seed in given_lines]
    found = apportion_all(
        np.asarray([total for total, _, _ in given_lines], np.int64),
        np.asarray([len(cells) for _, cells, _ in given_lines], np.int64),
        np.asarray([cell / whole for _, cells, _ in given_lines for cell in cells], np.float64),
        [seed for _, _, seed in given_lines],
        lambda row: expected[row],
    )
    assert found.tolist() == [unit for units in expected for unit in units]


def test_a_stretch_that_ends_near_a_point_is_decided_by_integers():
    """A share a hair below half: where the offset is small, floats cannot tell on which side of a point it ends."""
    weights, total = [2**59 - 1, 2**59 + 1], 2**40
    seeds = [str(i).encode() for i in range(10_000)]
    near = next(seed for seed in seeds if offset(seed) < 2**64 // 1_000)
    far = next(seed for seed in seeds if 2**62 < offset(seed) < 2**63)
    asked = []

    def exactly(row):
        asked.append(row)
        return apportion(total, weights, near)[:-1]

    found = apportion_all(
        np.asarray([total, total], np.int64),
        np.asarray([1, 1], np.int64),
        np.asarray([weights[0] / 2**60] * 2, np.float64),
        [far, near],
        exactly,
    )
    assert asked == [1]
    assert found.tolist() == [apportion(total, weights, seed)[0] for seed in (far, near)]


def test_small_shares_earn_what_they_should_on_average():
    """Largest remainder would give the two small ones nothing, for ever."""
    rounds = 20_000
    sums = [0, 0, 0, 0]
    for i in range(rounds):
        for place, cell in enumerate(apportion(3, [1, 17, 1, 81], hashlib.sha256(str(i).encode()).digest())):
            sums[place] += cell
    for total, weight in zip(sums, [1, 17, 1, 81], strict=True):
        expected = rounds * 3 * weight / 100
        assert abs(total - expected) < 5 * (expected**0.5 + 1)


@pytest.mark.parametrize(("total", "shares"), [(1, []), (1, [0, 0]), (-1, [1]), (1, [2, -2]), (0, [1, -1])])
def test_what_cannot_be_split_is_refused(total, shares):
    with pytest.raises(ValueError, match=r"weight|negative"):
        apportion(total, shares, b"")


def test_nothing_splits_into_nothing():
    assert apportion(0, [0, 0], b"") == [0, 0]
    assert apportion(0, [], b"") == []
