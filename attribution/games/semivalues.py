"""Semivalues: the rules that pay a player for its marginal contributions, by name.

A semivalue (Dubey, Neyman and Weber 1981) weighs a marginal contribution by the size of the coalition it is made to::

    phi_i = sum over coalitions T of others: p(|T|) * (v(T + i) - v(T))

The Shapley value is the one that is efficient, and what Patronage pays by. The others are there to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import factorial
from typing import Final

import numpy as np
import numpy.typing as npt

from attribution.arithmetic import Floats
from attribution.games.values import TABLE_PLAYERS_MAX


@dataclass(frozen=True, slots=True)
class Semivalue:
    """One rule, in the two forms that solvers need."""

    name: str
    marginal: Callable[[int, int], int]
    """``p(size, players)`` times ``whole``: the weight of a marginal contribution to ``size`` of the others."""
    whole: Callable[[int], int]
    """The factor that makes the weights of a game of so many players whole numbers."""
    first: Callable[[int], float]
    """``q(hits)``: the weight of the coalitions without any of ``hits`` players, of which the player is one.

    It is ``sum over s: p(s, n) * C(n - hits, s)``, which for a semivalue does not depend on ``n``, except for
    leave-one-out, where only ``hits == 1`` counts.
    """


SHAPLEY: Final = Semivalue(
    "shapley",
    lambda size, players: factorial(size) * factorial(players - size - 1),
    factorial,
    lambda hits: 1.0 / hits,
)
BANZHAF: Final = Semivalue("banzhaf", lambda *_: 1, lambda players: 2 ** (players - 1), lambda hits: 0.5 ** (hits - 1))
LEAVE_ONE_OUT: Final = Semivalue(
    "leave-one-out", lambda size, players: int(size == players - 1), lambda _: 1, lambda hits: float(hits == 1)
)
SEMIVALUES: Final = {each.name: each for each in (SHAPLEY, BANZHAF, LEAVE_ONE_OUT)}


def from_tables(tables: npt.NDArray[np.int64], semivalue: Semivalue = SHAPLEY) -> Floats:
    """A semivalue of many games, each given by its coalition values.

    Args:
        tables: shape ``[games, 2 ** n]``, ``n <= 12``, below 2**31 in magnitude; bit ``i`` of an index stands for
            player ``i``.
        semivalue: the rule.

    Returns:
        Shape ``[games, n]``, rounded once; :func:`attribution.games.shapley.owen_values` gives money, without rounding.

    Raises:
        ValueError: the tables are not of ``2 ** n`` values, or ``n`` is too large.
    """
    players = tables.shape[-1].bit_length() - 1
    if tables.ndim != 2 or tables.shape[1] != 2**players:  # noqa: PLR2004 # games and coalitions
        raise ValueError(f"tables of shape {tables.shape} are not of 2 ** n values")
    if players > TABLE_PLAYERS_MAX:
        raise ValueError(f"{players} players; an exact table holds {TABLE_PLAYERS_MAX}")
    solved: Floats = (tables @ _matrix(semivalue, players)) / semivalue.whole(players)
    return solved


@lru_cache(maxsize=64)
def _matrix(semivalue: Semivalue, players: int) -> npt.NDArray[np.int64]:
    """The matrix from a table to values times ``whole``, shape ``[2 ** players, players]``."""
    coalitions = np.arange(2**players)
    sizes = np.bitwise_count(coalitions).astype(np.int64)
    weights = np.array([semivalue.marginal(size, players) for size in range(players)] + [0])
    matrix = np.empty((2**players, players), np.int64)
    for player in range(players):
        inside = (coalitions >> player & 1).astype(np.bool_)
        matrix[:, player] = np.where(inside, weights[sizes - 1], -weights[sizes])
    matrix.setflags(write=False)
    return matrix
