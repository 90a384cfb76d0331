"""Max games and semivalues against their definitions, and the axioms, on random games."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.games.max_games import MaxGame, airport, owen
from attribution.games.semivalues import BANZHAF, SEMIVALUES, SHAPLEY, from_tables
from attribution.games.shapley import owen_values, unions_of
from metering.records import VALUE_ONE

TOLERANCE = 1e-12
"""Of a game whose values are between 0 and 1."""


def by_marginals(table, semivalue):
    """The definition: every marginal contribution, with its weight."""
    players = len(table).bit_length() - 1
    values = []
    for player in range(players):
        others = [other for other in range(players) if other != player]
        total = 0
        for size in range(players):
            for chosen in itertools.combinations(others, size):
                coalition = sum(1 << other for other in chosen)
                total += semivalue.marginal(size, players) * (table[coalition | 1 << player] - table[coalition])
        values.append(float(Fraction(total, semivalue.whole(players))))
    return values


def worth(game, members):
    """The definition of the game."""
    return sum(
        max([int(baseline), *(int(row[i]) for i in members)])
        for row, baseline in zip(game.scores, game.baseline, strict=True)
    )


@st.composite
def max_games(draw, players=6, points=3):
    count, rows = draw(st.integers(1, players)), draw(st.integers(1, points))
    units = st.integers(0, VALUE_ONE // rows)
    scores = draw(st.lists(st.lists(units, min_size=count, max_size=count), min_size=rows, max_size=rows))
    baseline = draw(st.lists(units, min_size=rows, max_size=rows))
    return MaxGame(np.array(scores, np.int64), np.array(baseline, np.int64))


def close(found, expected):
    return np.allclose(np.asarray(found) / VALUE_ONE, np.asarray(expected, np.float64) / VALUE_ONE, 0, TOLERANCE)


@given(max_games())
def test_the_table_of_a_max_game_is_its_definition(game):
    players = game.scores.shape[1]
    table = game.table()
    for coalition in range(2**players):
        assert table[coalition] == worth(game, [i for i in range(players) if coalition >> i & 1])
    assert (table[0], table[-1]) == (game.value_none, game.value_all)


@pytest.mark.parametrize("name", SEMIVALUES)
@given(game=max_games())
def test_the_closed_form_and_the_table_give_what_the_definition_gives(name, game):
    semivalue = SEMIVALUES[name]
    expected = by_marginals(game.table().tolist(), semivalue)
    assert close(game.solve(semivalue), expected)
    assert from_tables(game.table()[None], semivalue)[0].tolist() == expected


@pytest.mark.parametrize("name", SEMIVALUES)
@pytest.mark.parametrize("count", range(1, 13))
def test_every_solver_agrees_up_to_twelve_players(name, count):
    random_ = np.random.default_rng(count)
    game = MaxGame(random_.integers(0, VALUE_ONE // 3, (3, count)), random_.integers(0, VALUE_ONE // 9, 3))
    table = game.table()
    expected = from_tables(table[None], SEMIVALUES[name])[0]
    assert close(game.solve(SEMIVALUES[name]), expected)
    if SEMIVALUES[name] is SHAPLEY:
        numerators, denominator = owen_values(table[None], tuple(range(count)))
        exact = [float(Fraction(each, denominator)) for each in numerators[0].tolist()]
        assert expected.tolist() == exact


@given(st.lists(st.integers(-VALUE_ONE, VALUE_ONE), min_size=32, max_size=32), st.sampled_from(list(SEMIVALUES)))
def test_tables_of_any_game_are_solved_by_the_definition(table, name):
    expected = by_marginals(table, SEMIVALUES[name])
    assert from_tables(np.array([table]), SEMIVALUES[name])[0].tolist() == expected


@given(max_games(8), st.data())
def test_the_owen_value_is_that_of_the_table(game, data):
    players = game.scores.shape[1]
    unions = unions_of(data.draw(st.lists(st.sampled_from("abcd"), min_size=players, max_size=players)))
    numerators, denominator = owen_values(game.table()[None], unions)
    assert close(game.owen(unions), [float(Fraction(each, denominator)) for each in numerators[0].tolist()])


@given(max_games(20))
def test_efficiency(game):
    added = game.value_all - game.value_none
    assert close([game.solve().sum()], [added])
    assert close([game.owen(tuple(i // 2 for i in range(game.scores.shape[1]))).sum()], [added])


@given(max_games(20), st.sampled_from(list(SEMIVALUES)), st.data())
def test_a_null_player_earns_nothing_and_changes_nothing(game, name, data):
    players = game.scores.shape[1]
    place = data.draw(st.integers(0, players))
    nothing = data.draw(st.integers(0, int(game.baseline.min())))
    wider = MaxGame(np.insert(game.scores, place, nothing, axis=1), game.baseline)
    values = wider.solve(SEMIVALUES[name])
    assert values[place] == 0
    assert close(np.delete(values, place), game.solve(SEMIVALUES[name]))


@given(max_games(20), st.sampled_from(list(SEMIVALUES)), st.randoms(use_true_random=False))
def test_the_order_of_players_makes_no_difference_to_the_bit(game, name, shuffler):
    order = list(range(game.scores.shape[1]))
    shuffler.shuffle(order)
    permuted = MaxGame(game.scores[:, order], game.baseline)
    assert permuted.solve(SEMIVALUES[name]).tolist() == game.solve(SEMIVALUES[name])[order].tolist()
    unions = tuple(place // 2 for place in range(len(order)))
    renumbered = unions_of([str(unions[old]) for old in order])
    assert close(permuted.owen(renumbered), game.owen(unions)[order])


@given(max_games(20), st.sampled_from(list(SEMIVALUES)), st.data())
def test_symmetric_players_earn_the_same_to_the_bit(game, name, data):
    player = data.draw(st.integers(0, game.scores.shape[1] - 1))
    twins = MaxGame(np.concatenate([game.scores, game.scores[:, [player]]], axis=1), game.baseline)
    values = twins.solve(SEMIVALUES[name])
    assert values[player] == values[-1]


@given(max_games(12), st.sampled_from(list(SEMIVALUES)), st.data())
def test_additivity(game, name, data):
    players = game.scores.shape[1]
    row = data.draw(st.lists(st.integers(0, VALUE_ONE), min_size=players, max_size=players))
    other = MaxGame(np.array([row], np.int64), np.zeros(1, np.int64))
    joined = MaxGame(np.concatenate([game.scores, other.scores]), np.concatenate([game.baseline, other.baseline]))
    parts = game.solve(SEMIVALUES[name]) + other.solve(SEMIVALUES[name])
    assert close(joined.solve(SEMIVALUES[name]), parts)


def test_many_games_are_solved_like_one_at_a_time():
    heights = np.random.default_rng(3).random((50, 4, 9))
    unions = (0, 1, 1, 2, 0, 3, 3, 3, 2)
    for rule in (airport, lambda each: owen(each, unions)):
        alone = [[rule(row) for row in rows] for rows in heights]
        assert np.allclose(rule(heights), alone, rtol=0, atol=TOLERANCE)


def test_a_thousand_players_take_no_table():
    worths = random.Random(7).sample(range(VALUE_ONE), 1_000)
    game = MaxGame(np.array([worths]), np.zeros(1, np.int64))
    assert close([game.solve().sum()], [max(worths)])
    assert game.solve(BANZHAF).argmax() == worths.index(max(worths))
    with pytest.raises(ValueError, match="1000 players"):
        game.table()


@pytest.mark.parametrize(("shape", "message"), [((1, 2**13), "13 players"), ((1, 6), "not of"), ((8,), "not of")])
def test_tables_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        from_tables(np.zeros(shape, np.int64))
