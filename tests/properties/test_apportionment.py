"""Apportionment: nothing lost, nothing invented, nobody favoured."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attribution.apportionment import apportion

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


@given(totals, weights, seeds)
def test_the_same_seed_gives_the_same_split(total, shares, seed):
    assume(sum(shares))
    assert apportion(total, shares, seed) == apportion(total, shares, seed)


@given(totals, weights, seeds, st.integers(1, 10**6))
def test_only_proportions_matter(total, shares, seed, factor):
    assume(sum(shares))
    assert apportion(total, shares, seed) == apportion(total, [weight * factor for weight in shares], seed)


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
