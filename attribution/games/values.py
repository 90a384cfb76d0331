"""Value functions: what the answer that a subset of the documents supports is worth.

A game over ``n`` documents is the table of its ``2 ** n`` coalition values; bit ``i`` of an index stands for
document ``i``. Values are integers between 0 and ``VALUE_ONE``, which stands for an answer that surely answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from metering.records import VALUE_ONE

TABLE_PLAYERS_MAX: Final = 12
"""Games are tabulated up to here: 4,096 coalitions."""

COUNTERFACTUAL: Final = "counterfactual/1"
UNVALUED: Final = "unvalued"
"""Recorded instead of a function where that of the policy could not be computed: no document earns."""

Table = npt.NDArray[np.int64]


def counterfactual(worths: Sequence[npt.NDArray[np.float64]], slots: int) -> Table:
    """The exact worth of the extractive answer of every coalition.

    The extractive generator takes the ``slots`` sentences that most probably answer, whatever documents it is
    given; so from a coalition it takes the best of that coalition's, and its answer is worth the sum of their
    probabilities. The game is monotone and submodular, and nothing is worth 0.

    Args:
        worths: for each document, the probabilities of its sentences; all of them together sum to at most 1.
        slots: how many sentences the answer has.

    Returns:
        The table, shape ``[2 ** len(worths)]``.

    Raises:
        ValueError: too many documents, or worths that are not probabilities.
    """
    if len(worths) > TABLE_PLAYERS_MAX:
        raise ValueError(f"{len(worths)} documents; a table holds {TABLE_PLAYERS_MAX}")
    if slots <= 0:
        return np.zeros(2 ** len(worths), np.int64)
    units = np.floor(np.concatenate([np.zeros(slots), *worths]) * VALUE_ONE)
    if not (np.isfinite(units).all() and (units >= 0).all()):
        raise ValueError("a worth is not a probability")
    # The best of each document, padded with nothing; then the best of those that a coalition has.
    edges = np.cumsum([slots, *map(len, worths)])
    best = np.zeros((len(worths), slots), np.int64)
    for own, start, end in zip(best, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        top = np.sort(units[start:end])[: -slots - 1 : -1]
        own[: len(top)] = top
    had = np.arange(2 ** len(worths))[:, None] >> np.arange(len(worths)) & 1
    taken = np.sort((had[:, :, None] * best).reshape(len(had), -1), axis=1)
    table: Table = taken[:, -slots:].sum(axis=1)
    if table[-1] > VALUE_ONE:
        raise ValueError("the worths sum to more than 1")
    return table
