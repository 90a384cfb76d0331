"""Games of any kind: solved from their table where that is small enough, estimated where it is not.

What is known of max-type games, which need neither, is in :mod:`attribution.games.max_games`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from attribution.arithmetic import Floats
from attribution.games.estimation import Coalitions, Estimate, estimate, estimate_owen
from attribution.games.max_games import MaxGame
from attribution.games.semivalues import SHAPLEY, Semivalue, from_tables
from attribution.games.shapley import Unions, owen_values
from attribution.games.values import Table


@dataclass(frozen=True, slots=True)
class TableGame:
    """A game of up to 12 players, given by what each coalition is worth."""

    table: Table
    """Shape ``[2 ** players]``; bit ``i`` of an index stands for player ``i``."""

    @property
    def value_none(self) -> int:
        """The worth of no player at all."""
        return int(self.table[0])

    @property
    def value_all(self) -> int:
        """The worth of all players."""
        return int(self.table[-1])

    def solve(self, semivalue: Semivalue = SHAPLEY) -> Floats:
        """A semivalue of the game, shape ``[players]``."""
        values: Floats = from_tables(self.table[None], semivalue)[0]
        return values

    def owen(self, unions: Unions) -> Floats:
        """The Owen value of the game with its players in unions, shape ``[players]``."""
        numerators, denominator = owen_values(self.table[None], unions)
        values: Floats = numerators[0] / denominator
        return values


@dataclass(frozen=True)
class LargeGame:
    """A game of more players than a table holds: only some of its coalitions are valued."""

    value: Callable[[Coalitions], npt.NDArray[np.int64]]
    """Gives the worth of each coalition that it is asked for, shape ``[coalitions]``."""
    players: int
    budget: int
    """The most coalitions that are valued."""
    seed: int

    @cached_property
    def _ends(self) -> tuple[int, int]:
        none, every = self.value(np.stack([np.zeros(self.players, np.bool_), np.ones(self.players, np.bool_)]))
        return int(none), int(every)

    @property
    def value_none(self) -> int:
        """The worth of no player at all."""
        return self._ends[0]

    @property
    def value_all(self) -> int:
        """The worth of all players."""
        return self._ends[1]

    def owen(self, unions: Unions) -> Estimate:
        """The Owen value of the game with its players in unions, estimated.

        Raises:
            ValueError: the budget is too small for an interval.
        """
        if len(set(unions)) in (1, self.players):  # then it is the Shapley value, which takes fewer coalitions
            return estimate(self.value, self.players, budget=self.budget, seed=self.seed)
        return estimate_owen(self.value, unions, budget=self.budget, seed=self.seed)


Game = MaxGame | TableGame | LargeGame
