"""The Owen and Shapley values against their definitions, and the axioms."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.games.shapley import owen_values, unions_of
from attribution.games.values import counterfactual
from metering.records import VALUE_ONE


def by_orders(table, unions):
    """The definition: average marginal contribution over all orders that keep unions together."""
    members = {union: [i for i, each in enumerate(unions) if each == union] for union in set(unions)}
    sums, count = [0] * len(unions), 0
    for order in itertools.permutations(members):
        for inner in itertools.product(*[list(itertools.permutations(members[union])) for union in order]):
            count += 1
            coalition = 0
            for member in itertools.chain(*inner):
                sums[member] += table[coalition | 1 << member] - table[coalition]
                coalition |= 1 << member
    return [Fraction(total, count) for total in sums]


@st.composite
def games(draw, players=5):
    count = draw(st.integers(0, players))
    table = draw(st.lists(st.integers(-VALUE_ONE, VALUE_ONE), min_size=2**count, max_size=2**count))
    owners = draw(st.lists(st.sampled_from("abcde"), min_size=count, max_size=count))
    return table, unions_of(owners)


def solve(table, unions):
    numerators, denominator = owen_values(np.asarray([table], np.int64), unions)
    return [Fraction(value, denominator) for value in numerators[0].tolist()]


@given(games())
def test_equal_to_the_definition_exactly(game):
    table, unions = game
    assert solve(table, unions) == by_orders(table, unions)


@given(games(8))
def test_efficiency(game):
    table, unions = game
    assert sum(solve(table, unions)) == table[-1] - table[0]


@given(games(6), st.data())
def test_a_null_player_earns_nothing(game, data):
    table, unions = game
    place = data.draw(st.integers(0, len(unions)))
    low = (1 << place) - 1
    wider = [table[(index & low) | ((index >> 1) & ~low)] for index in range(2 * len(table))]
    more = [*unions[:place], max(unions, default=-1) + 1, *unions[place:]]
    renumbered = unions_of([str(union) for union in more])
    assert solve(wider, renumbered)[place] == 0


@given(games(6), st.randoms(use_true_random=False))
def test_the_order_of_players_does_not_matter(game, shuffler):
    table, unions = game
    order = list(range(len(unions)))
    shuffler.shuffle(order)
    permuted = [0] * len(table)
    for index, value in enumerate(table):
        moved = sum(1 << new for new, old in enumerate(order) if index >> old & 1)
        permuted[moved] = value
    values = solve(table, unions)
    assert solve(permuted, unions_of([str(unions[old]) for old in order])) == [values[old] for old in order]


@given(st.integers(1, 6), st.data())
def test_symmetric_players_earn_the_same(count, data):
    by_size = data.draw(st.lists(st.integers(0, VALUE_ONE), min_size=count + 1, max_size=count + 1))
    table = [by_size[index.bit_count()] for index in range(2**count)]
    assert len(set(solve(table, tuple(range(count))))) == 1


@given(games(5), st.data())
def test_additivity(game, data):
    table, unions = game
    other = data.draw(st.lists(st.integers(-VALUE_ONE, VALUE_ONE), min_size=len(table), max_size=len(table)))
    total = [a + b for a, b in zip(table, other, strict=True)]
    parts = zip(solve(table, unions), solve(other, unions), strict=True)
    assert solve(total, unions) == [a + b for a, b in parts]


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_a_max_game_has_its_closed_form_up_to_twelve_players(count):
    """phi_i = sum over k <= i of (x_k - x_(k-1)) / (n - k + 1), with the worths in ascending order."""
    worths = sorted(random.Random(count).sample(range(VALUE_ONE), count))
    table = [max([worth for i, worth in enumerate(worths) if index >> i & 1], default=0) for index in range(2**count)]
    expected, reached, before = [], Fraction(0), 0
    for i, worth in enumerate(worths):
        reached += Fraction(worth - before, count - i)
        before = worth
        expected.append(reached)
    assert solve(table, tuple(range(count))) == expected


def test_no_overflow_at_the_largest_game():
    table = np.full((1, 2**12), VALUE_ONE, np.int64)
    table[0, 0] = 0
    numerators, denominator = owen_values(table, tuple(range(12)))
    assert denominator == factorial(12)
    assert numerators[0].tolist() == [VALUE_ONE * factorial(11)] * 12


def test_games_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        owen_values(np.zeros((1, 4), np.int64), (0, 1, 2))
    with pytest.raises(ValueError, match="13 members"):
        owen_values(np.zeros((1, 2**13), np.int64), tuple(range(13)))


@given(st.lists(st.lists(st.floats(0, 0.03), max_size=4), max_size=6), st.integers(1, 4))
def test_the_counterfactual_game_is_the_best_sentences_of_each_coalition(worths, slots):
    table = counterfactual([np.asarray(each) for each in worths], slots)
    units = [[int(worth * VALUE_ONE) for worth in each] for each in worths]
    for coalition in range(2 ** len(worths)):
        pooled = sorted(itertools.chain(*[units[i] for i in range(len(worths)) if coalition >> i & 1]), reverse=True)
        assert table[coalition] == sum(pooled[:slots])


@pytest.mark.parametrize("worths", [[[0.6], [0.6]], [[-0.1]], [[float("nan")]], [[2.0]]])
def test_worths_that_are_no_probabilities_are_refused(worths):
    with pytest.raises(ValueError, match="worth"):
        counterfactual(worths, 2)
