"""Solvers against shapiq and against plain Python loops over the definitions, on the same games in the same run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from math import factorial

import numpy as np

from attribution.games.estimation import estimate
from attribution.games.max_games import airport
from attribution.games.shapley import owen_values
from tests.benchmarks.measure import Result, rates

GAMES, PLAYERS = 20_000, 6
LOOPED = 100
LARGE_PLAYERS, BUDGET, LARGE_GAMES = 30, 1024, 10


def plain(table: list[int]) -> list[float]:
    """Shapley's formula as one would write it."""
    values = []
    for player in range(PLAYERS):
        total = 0.0
        for coalition in range(2**PLAYERS):
            if not coalition >> player & 1:
                size = coalition.bit_count()
                weight = factorial(size) * factorial(PLAYERS - size - 1) / factorial(PLAYERS)
                total += weight * (table[coalition | 1 << player] - table[coalition])
        values.append(total)
    return values


def plain_airport(heights: list[float]) -> list[float]:
    """The closed form as one would write it."""
    values, reached, before = [0.0] * PLAYERS, 0.0, 0.0
    for rank, player in enumerate(sorted(range(PLAYERS), key=heights.__getitem__)):
        reached += (heights[player] - before) / (PLAYERS - rank)
        before = heights[player]
        values[player] = reached
    return values


def by_shapiq(table: np.ndarray) -> np.ndarray:
    from shapiq import ExactComputer  # noqa: PLC0415 # the rival, heavy

    bits = 1 << np.arange(PLAYERS)
    solved = ExactComputer(lambda coalitions: table[coalitions @ bits], n_players=PLAYERS)("SV")
    return np.array([solved[(player,)] for player in range(PLAYERS)])


def tabulated(heights: np.ndarray) -> np.ndarray:
    """The max games of the heights as tables of coalition values."""
    table = np.zeros((len(heights), 1))
    for player in range(heights.shape[1]):
        table = np.concatenate([table, np.maximum(table, heights[:, player, None])], axis=1)
    return table


def run() -> Iterator[Result]:
    warnings.simplefilter("ignore")  # the rival's
    random = np.random.default_rng(1)
    yield from _tables(random.integers(0, 10**9, (GAMES, 2**PLAYERS)))
    yield from _closed_form(random.random((10 * GAMES, PLAYERS)))
    yield _estimator()


def _tables(tables: np.ndarray) -> Iterator[Result]:
    unions = tuple(range(PLAYERS))
    few = tables[:LOOPED].tolist()
    numerators, denominator = owen_values(tables[:LOOPED], unions)
    assert np.allclose(numerators / denominator, [plain(table) for table in few])
    assert np.allclose(numerators / denominator, [by_shapiq(table) for table in tables[:LOOPED]])
    ours, loop, shapiq = _solver_rates(
        lambda: owen_values(tables, unions),
        len(tables),
        lambda: [plain(table) for table in few],
        lambda: [by_shapiq(table) for table in tables[:LOOPED]],
    )
    yield Result("exact values from tables, n = 6", ours, "a plain Python loop", loop, "records/s")
    yield Result("exact values from tables, n = 6", ours, "shapiq's ExactComputer", shapiq, "records/s")


def _closed_form(heights: np.ndarray) -> Iterator[Result]:
    few = heights[:LOOPED].tolist()
    tables = tabulated(heights[:LOOPED])
    assert np.allclose(airport(heights[:LOOPED]), [plain_airport(each) for each in few])
    assert np.allclose(airport(heights[:LOOPED]), [by_shapiq(table) for table in tables])
    ours, loop, shapiq = _solver_rates(
        lambda: airport(heights),
        len(heights),
        lambda: [plain_airport(each) for each in few],
        lambda: [by_shapiq(table) for table in tables],
    )
    yield Result("closed form of max games, n = 6", ours, "a plain Python loop", loop, "records/s")
    yield Result("closed form of max games, n = 6", ours, "shapiq's ExactComputer", shapiq, "records/s")


def _solver_rates(
    ours: Callable[[], object], count: int, loop: Callable[[], object], shapiq: Callable[[], object]
) -> tuple[float, float, float]:
    (first,) = rates(count, ours)
    second, third = rates(LOOPED, loop, shapiq)
    return first, second, third


def _estimator() -> Result:
    """The error of an estimate from the same number of coalitions, on max games whose values are known."""
    from shapiq import KernelSHAP  # noqa: PLC0415 # the rival, heavy

    errors: list[list[float]] = [[], []]
    for seed in range(LARGE_GAMES):
        heights = np.random.default_rng(seed).random((4, LARGE_PLAYERS)) ** 2
        exact = airport(heights).sum(axis=0)

        def game(coalitions: np.ndarray, heights: np.ndarray = heights) -> np.ndarray:
            return np.where(coalitions[:, None, :], heights, 0.0).max(axis=2).sum(axis=1)

        ours = estimate(game, LARGE_PLAYERS, budget=BUDGET, seed=seed).values
        found = KernelSHAP(n=LARGE_PLAYERS, pairing_trick=True, random_state=seed).approximate(BUDGET, game)
        theirs = np.array([found[(player,)] for player in range(LARGE_PLAYERS)])
        for place, values in enumerate((ours, theirs)):
            errors[place].append(float(np.sqrt(((values - exact) ** 2).mean())) / float(exact.mean()) * 100)
    ours, theirs = (float(np.mean(each)) for each in errors)
    what = f"error of an estimate, n = {LARGE_PLAYERS}, {BUDGET} coalitions"
    return Result(what, ours, "shapiq's KernelSHAP", theirs, "% of the mean value", more_is_better=False)
