"""Estimated Shapley values: unbiased, with honest intervals, within the budget, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.games.estimation import BUDGET_MIN, PAIRS_MIN, estimate, estimate_owen
from attribution.games.max_games import airport, owen
from attribution.games.shapley import unions_of


def max_game(players, seed):
    """A game with known values: three key points."""
    heights = np.random.default_rng(seed).random((3, players)) ** 2
    return (lambda coalitions: np.where(coalitions[:, None, :], heights, 0).max(axis=2).sum(axis=1)), airport(
        heights
    ).sum(axis=0)


@given(st.integers(2, 40), st.integers(0, 2**32), st.floats(-5, 5))
def test_a_game_without_interactions_is_exact(players, seed, none):
    weights = np.random.default_rng(seed).normal(size=players)
    found = estimate(lambda each: each @ weights + none, players, budget=200, seed=seed)
    assert np.allclose(found.values, weights, atol=1e-9)
    assert np.allclose(found.high - found.low, 0, atol=1e-9)


@given(st.integers(2, 30), st.integers(0, 2**32), st.integers(BUDGET_MIN, 300))
def test_efficiency_and_budget(players, seed, budget):
    game, exact = max_game(players, seed)
    asked = []

    def counted(coalitions):
        asked.append(len(coalitions))
        return game(coalitions)

    found = estimate(counted, players, budget=budget, seed=seed)
    assert sum(asked) == found.evaluations <= budget
    assert np.isclose(found.values.sum(), exact.sum(), atol=1e-9)
    assert (found.budget, found.seed) == (budget, seed)


def test_the_same_seed_gives_the_same_estimate_and_another_another():
    game, _ = max_game(15, 1)
    first, again, other = (estimate(game, 15, budget=300, seed=seed) for seed in (5, 5, 6))
    assert first.values.tolist() == again.values.tolist()
    assert first.values[:3].tolist() == pytest.approx([0.0140220105108, 0.1908234265535, 0.0138974057914], abs=1e-12)
    assert first.values.tolist() != other.values.tolist()


@pytest.mark.parametrize(("players", "budget"), [(14, 512), (30, 1_024)])
def test_intervals_hold_the_value_as_often_as_they_say(players, budget):
    held, errors = [], []
    for seed in range(60):
        game, exact = max_game(players, seed)
        found = estimate(game, players, budget=budget, seed=seed)
        held.append(((found.low <= exact) & (exact <= found.high)).mean())
        errors.append(found.values - exact)
    assert 0.9 <= np.mean(held) <= 0.99
    spread = np.std(errors) / np.sqrt(np.size(errors))
    assert abs(np.mean([each[0] for each in errors])) < 5 * np.std([each[0] for each in errors]) / np.sqrt(60) + spread


def test_a_larger_budget_has_a_smaller_error():
    def error(budget):
        found = [
            (estimate(game, 20, budget=budget, seed=seed).values - exact) ** 2
            for seed in range(20)
            for game, exact in [max_game(20, seed)]
        ]
        return np.sqrt(np.mean(found))

    assert error(4_096) < error(256) / 2.5


def in_unions(players, seed):
    """The game of :func:`max_game` with its players in a third as many unions, and its Owen values."""
    dice = np.random.default_rng(seed)
    heights = dice.random((3, players)) ** 2
    unions = unions_of(dice.integers(0, max(players // 3, 1), players).tolist())
    return max_game(players, seed)[0], unions, owen(heights, unions).sum(axis=0)


@given(st.integers(2, 20), st.integers(0, 2**32), st.integers(0, 200))
def test_an_estimate_in_unions_is_efficient_and_keeps_its_budget(players, seed, more):
    heights_game, unions, _ = in_unions(players, seed)
    asked = []

    def counted(coalitions):
        asked.append(len(coalitions))
        return heights_game(coalitions)

    budget = 2 * PAIRS_MIN * (players - 1) + 2 + more
    found = estimate_owen(counted, unions, budget=budget, seed=seed)
    assert sum(asked) == found.evaluations <= budget
    every, none = heights_game(np.ones((1, players), np.bool_))[0], heights_game(np.zeros((1, players), np.bool_))[0]
    assert np.isclose(found.values.sum(), every - none, atol=1e-9)
    again = estimate_owen(heights_game, unions, budget=budget, seed=seed)
    assert again.values.tolist() == found.values.tolist()


@given(st.integers(2, 12), st.integers(0, 2**32))
def test_interactions_of_two_are_exact_where_each_stands_alone(players, seed):
    """Pairs with their reverses cancel them; in unions, an order and its reverse see the same fellows before them."""
    dice = np.random.default_rng(seed)
    weights, pairs = dice.normal(size=players), np.triu(dice.normal(size=(players, players)), 1)
    found = estimate_owen(
        lambda each: each @ weights + np.einsum("ci,ij,cj->c", each, pairs, each),
        tuple(range(players)),
        budget=2 * PAIRS_MIN * (players - 1) + 2,
        seed=seed,
    )
    assert np.allclose(found.values, weights + (pairs + pairs.T).sum(axis=1) / 2, atol=1e-9)


def test_intervals_in_unions_hold_the_value_as_often_as_they_say():
    held, errors = [], []
    for seed in range(80):
        game, unions, exact = in_unions(14, seed)
        found = estimate_owen(game, unions, budget=1_042, seed=seed)
        held.append(((found.low <= exact) & (exact <= found.high)).mean())
        errors.append((found.values - exact)[0])
    assert 0.9 <= np.mean(held) <= 0.99
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors))


def test_what_cannot_be_estimated_is_refused():
    game, _ = max_game(5, 1)
    with pytest.raises(ValueError, match="at least 2"):
        estimate(game, 1, budget=1_000, seed=1)
    with pytest.raises(ValueError, match="too small; the least is 42"):
        estimate(game, 5, budget=41, seed=1)
    with pytest.raises(ValueError, match="at least 2"):
        estimate_owen(game, (0,), budget=1_000, seed=1)
    with pytest.raises(ValueError, match="too small for 5 players; the least is 162"):
        estimate_owen(game, (0, 0, 1, 1, 2), budget=161, seed=1)
