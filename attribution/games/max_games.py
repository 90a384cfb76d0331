"""Max-type games: a coalition is worth, for each key point, the best that a member of it has.

::

    v(S) = sum over key points k: max(baseline_k, max over i in S: score_ki)

Take one key point, cut its scores at the baseline and put them in ascending order, ``x_1 <= ... <= x_n``. The game is a
sum of steps: step ``k`` is worth ``x_k - x_(k-1)`` and is had by every coalition with one of the ``n - k + 1`` players
who reach it. Whoever is the first of those to come has the step, so the Shapley value shares it equally among them, the
airport game of Littlechild and Owen (1973)::

    phi_i = sum over k <= rank(i): (x_k - x_(k-1)) / (n - k + 1)

Every other semivalue replaces ``1 / h`` by its weight of coming first among ``h`` (:attr:`Semivalue.first`). With
players in unions the unions play the airport game over their best members, and ``G(x)``, what that game gives up to the
height ``x``, is what the members of a union have to share: the Owen value is the airport game over ``G(x_i)`` in each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.arithmetic import Floats, total
from attribution.games.semivalues import SHAPLEY, Semivalue
from attribution.games.shapley import Unions
from attribution.games.values import TABLE_PLAYERS_MAX, Table


@dataclass(frozen=True, slots=True)
class MaxGame:
    """One max-type game, in integers, so that whoever recomputes it has the same one."""

    scores: npt.NDArray[np.int64]
    """What each player offers to each key point, shape ``[points, players]``, not negative."""
    baseline: npt.NDArray[np.int64]
    """The value of each key point without any player, shape ``[points]``, not negative."""

    @property
    def value_none(self) -> int:
        """The worth of no player at all."""
        return int(self.baseline.sum())

    @property
    def value_all(self) -> int:
        """The worth of all players."""
        return int(np.maximum(self.scores.max(axis=1, initial=0), self.baseline).sum())

    @property
    def heights(self) -> npt.NDArray[np.int64]:
        """What each player offers above the baseline, shape ``[points, players]``."""
        above: npt.NDArray[np.int64] = np.maximum(self.scores - self.baseline[:, None], 0)
        return above

    def solve(self, semivalue: Semivalue = SHAPLEY) -> Floats:
        """A semivalue of the game, shape ``[players]``; for the Shapley value they sum to what all add."""
        return total(airport(self.heights.astype(np.float64), semivalue))

    def owen(self, unions: Unions) -> Floats:
        """The Owen value of the game with its players in unions, shape ``[players]``."""
        return total(owen(self.heights.astype(np.float64), unions))

    def table(self) -> Table:
        """The coalition values, shape ``[2 ** players]``: the form in which usage records keep a game.

        Raises:
            ValueError: too many players.
        """
        players = self.scores.shape[1]
        if players > TABLE_PLAYERS_MAX:
            raise ValueError(f"{players} players; a table holds {TABLE_PLAYERS_MAX}")
        best = self.baseline[:, None]
        for player in range(players):
            best = np.concatenate([best, np.maximum(best, self.scores[:, player, None])], axis=1)
        table: Table = best.sum(axis=0)
        return table


def airport(heights: Floats, semivalue: Semivalue = SHAPLEY) -> Floats:
    """A semivalue of many max games of one key point each.

    Args:
        heights: what each player has above the baseline, shape ``[..., n]``, not negative; any ``n``.
        semivalue: the rule.

    Returns:
        Shape ``[..., n]``. Players of equal height get equal values, and their order makes no difference, to the bit.
    """
    players = heights.shape[-1]
    order = np.argsort(heights, axis=-1, kind="stable")
    ascending = np.take_along_axis(heights, order, axis=-1)
    steps = np.diff(ascending, axis=-1, prepend=0.0)
    steps *= np.array([semivalue.first(hits) for hits in range(players, 0, -1)])
    values = np.empty_like(heights)
    np.put_along_axis(values, order, np.add.accumulate(steps, axis=-1), axis=-1)
    return values


def owen(heights: Floats, unions: Unions) -> Floats:
    """The Owen values of many max games of one key point each, whose players are in the same unions.

    Args:
        heights: as for :func:`airport`, shape ``[..., n]``.
        unions: the union of each player, numbered from 0, length ``n``.

    Returns:
        Shape ``[..., n]``.
    """
    if len(set(unions)) == len(unions):
        return airport(heights)
    members = [np.flatnonzero(np.asarray(unions) == union) for union in range(max(unions) + 1)]
    best = np.sort(np.stack([heights[..., group].max(axis=-1) for group in members], axis=-1), axis=-1)
    lower = np.concatenate([np.zeros_like(best[..., :1]), best[..., :-1]], axis=-1)
    values = np.empty_like(heights)
    for group in members:
        own = heights[..., group, None]
        reached = np.clip(own, lower[..., None, :], best[..., None, :]) - lower[..., None, :]
        shared = total(np.moveaxis(reached / np.arange(len(members), 0, -1), -1, 0))
        values[..., group] = airport(shared)
    return values
