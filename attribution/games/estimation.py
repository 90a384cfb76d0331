"""Shapley values of large games, estimated: paired coalitions, adjusted by regression, with confidence intervals.

With the empty and the full coalition known, the Shapley value is an expectation over random coalitions ``S`` of sizes
``s`` from 1 to n - 1, whose size is drawn with probability ``P(s)``::

    phi_i = (v(all) - v(none)) / n + E[c_i(S) * v(S)],    c_i(S) = 1 / (s P(s)) if i in S, else -1 / ((n - s) P(s))

Three things make the sample mean of this sharp. ``P(s)`` is proportional to ``sqrt(1/s + 1/(n-s))``, which gives the
least variance where all values have the same size. Coalitions come in pairs with their complements (Covert and Lee
2021), which cancels every even-order interaction. And a linear game, fitted to the differences of pairs, is subtracted
first: its Shapley value is known, and only what it does not explain is sampled (Witter, Liu and Musco 2025,
"Regression-adjusted Monte Carlo estimators for Shapley values and probabilistic values"). Each pair is adjusted by a
fit to other pairs than its own, so the estimate is unbiased and its error is that of a mean of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from attribution.arithmetic import Floats, total
from attribution.games.shapley import Unions

Coalitions = npt.NDArray[np.bool_]
"""Shape ``[coalitions, players]``."""

_FOLDS: Final = 5
_FIT: Final = 1e-14
"""So much of what a fit does not explain may be left: it is sampled like the rest."""
_QUANTILE_DECIMALS: Final = 12
PAIRS_MIN: Final = 4 * _FOLDS
BUDGET_MIN: Final = 2 * PAIRS_MIN + 2
"""Coalitions that an estimate takes at least, of which two are the empty and the full one."""
BUDGET_MAX: Final = 65_536
BUDGET: Final = 2_048
"""The default budget in coalitions: half of what the largest table has."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated Shapley or Owen values, and everything it takes to repeat them."""

    values: Floats
    """Shape ``[players]``; they sum to v(all) - v(none)."""
    low: Floats
    high: Floats
    """The confidence interval of each value."""
    confidence: float
    budget: int
    seed: int
    evaluations: int
    """How many coalitions were valued; at most ``budget``."""


def estimate(
    value: Callable[[Coalitions], npt.ArrayLike], players: int, *, budget: int, seed: int, confidence: float = 0.95
) -> Estimate:
    """Estimate the Shapley values of any game; the same arguments give the same estimate.

    Args:
        value: gives the worth of each of the coalitions it is asked for, shape ``[coalitions]``.
        players: how many there are, at least 2.
        budget: the most coalitions that may be valued, the empty and the full one included.
        seed: of the random coalitions.
        confidence: how often each interval holds its value.

    Raises:
        ValueError: too few players, or a budget that is too small for an interval.
    """
    pairs = (budget - 2) // 2
    if players < 2:  # noqa: PLR2004 # one player has all of it
        raise ValueError("an estimate takes at least 2 players")
    if pairs < PAIRS_MIN:
        raise ValueError(f"a budget of {budget} coalitions is too small; the least is {BUDGET_MIN}")
    inside, probability = _coalitions(players, pairs, np.random.default_rng(seed))
    ends = np.stack([np.zeros(players, np.bool_), np.ones(players, np.bool_)])
    worths = np.asarray(value(np.concatenate([ends, inside, ~inside])), np.float64)
    whole = worths[1] - worths[0]
    differences = worths[2 : 2 + pairs] - worths[2 + pairs :]
    sizes = inside.sum(axis=1)
    own, other = 1 / (sizes * probability), 1 / ((players - sizes) * probability)
    # Both of a pair have the same coefficient with opposite signs, so their mean is half of it times their difference.
    coefficients = np.where(inside, own[:, None], -other[:, None]) / 2
    signs = np.where(inside, 1, -1)
    samples = np.empty((pairs, players))
    for fold in range(_FOLDS):
        held = np.arange(pairs) % _FOLDS == fold
        linear = _fitted(signs[~held], differences[~held])
        rest = differences[held] - total((signs[held] * linear).T)
        # Of a linear game the values are its weights; of the rest, what its full coalition is worth is shared equally.
        samples[held] = linear + (whole - total(linear)) / players + coefficients[held] * rest[:, None]
    values, margin = _mean(samples, confidence)
    values += (whole - total(values)) / players
    return Estimate(values, values - margin, values + margin, confidence, budget, seed, 2 * pairs + 2)


def estimate_owen(
    value: Callable[[Coalitions], npt.ArrayLike], unions: Unions, *, budget: int, seed: int, confidence: float = 0.95
) -> Estimate:
    """Estimate the Owen values of any game whose players are in unions; the same arguments give the same estimate.

    Unions come in random order and so do the members of each, as in the definition; what each player adds to those
    before it is a sample. Orders come in pairs with their reverses, which cancels every interaction of two.

    Args:
        value: as for :func:`estimate`.
        unions: the union of each player, numbered from 0, length ``players``, at least 2.
        budget: as for :func:`estimate`; a pair of orders takes ``2 * (players - 1)`` coalitions.
        seed: of the random orders.
        confidence: how often each interval holds its value.

    Raises:
        ValueError: too few players, or a budget that is too small for an interval.
    """
    players = len(unions)
    if players < 2:  # noqa: PLR2004 # one player has all of it
        raise ValueError("an estimate takes at least 2 players")
    pairs = (budget - 2) // (2 * (players - 1))
    if pairs < PAIRS_MIN:
        least = 2 * PAIRS_MIN * (players - 1) + 2
        raise ValueError(f"a budget of {budget} coalitions is too small for {players} players; the least is {least}")
    random = np.random.default_rng(seed)
    first = random.random((pairs, max(unions) + 1))[:, np.asarray(unions)]
    ranks = np.lexsort((random.random((pairs, players)), first), axis=-1).argsort(axis=-1)
    before = ranks[:, None, :] < np.arange(players + 1)[:, None]
    ends, inside = before[0, [0, -1]], before[:, 1:-1].reshape(-1, players)
    worths = np.asarray(value(np.concatenate([ends, inside, ~inside])), np.float64)
    none, every = np.full((pairs, 1), worths[0]), np.full((pairs, 1), worths[1])
    forth, back = worths[2:].reshape(2, pairs, players - 1)
    added = np.diff(np.concatenate([none, forth, every], axis=1))
    added_back = -np.diff(np.concatenate([every, back, none], axis=1))
    samples = np.take_along_axis((added + added_back) / 2, ranks, axis=1)
    values, margin = _mean(samples, confidence)
    return Estimate(values, values - margin, values + margin, confidence, budget, seed, 2 * pairs * (players - 1) + 2)


def _mean(samples: Floats, confidence: float) -> tuple[Floats, Floats]:
    """The mean of each column, and half the width of its interval."""
    count = len(samples)
    mean = total(samples) / count
    deviation = np.sqrt(total((samples - mean) ** 2) / (count - 1))
    quantile = round(NormalDist().inv_cdf(0.5 + confidence / 2), _QUANTILE_DECIMALS)
    return mean, quantile * deviation / np.sqrt(count)


def _fitted(signs: npt.NDArray[np.int64], differences: Floats) -> Floats:
    """The weights of the linear game nearest to the differences of pairs, shape ``[players]``: least squares.

    The normal equations are solved by conjugate gradients (Hestenes and Stiefel 1952), which from 0 find the shortest
    solution where there are many, in as many steps as there are players. A library of linear algebra would add up in
    an order of its own.
    """
    normal = signs.T @ signs
    weights = np.zeros(signs.shape[1])
    rest = total(signs * differences[:, None])
    direction, size = rest, float(total(rest * rest))
    enough = size * _FIT**2
    for _ in range(2 * len(weights)):
        if size <= enough:
            break
        image = total((normal * direction).T)
        step = size / total(direction * image)
        weights = weights + step * direction
        rest = rest - step * image
        before, size = size, float(total(rest * rest))
        direction = rest + size / before * direction
    return weights


def _coalitions(players: int, count: int, random: np.random.Generator) -> tuple[Coalitions, Floats]:
    """Random coalitions, neither empty nor full, and the probability of each one's size."""
    sizes = np.arange(1, players)
    weights = np.sqrt(1 / sizes + 1 / (players - sizes))
    weights /= total(weights)
    drawn = random.choice(sizes, count, p=weights)
    ranks = random.random((count, players)).argsort(axis=1, kind="stable").argsort(axis=1)
    return ranks < drawn[:, None], weights[drawn - 1]
