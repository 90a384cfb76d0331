"""Exact Owen values from tables against a plain Python loop over the definition."""

from __future__ import annotations

from collections.abc import Iterator
from math import factorial

import numpy as np

from attribution.shapley import owen_values
from tests.benchmarks.measure import Result, rates

GAMES, PLAYERS = 20_000, 6
LOOPED = 100


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


def run() -> Iterator[Result]:
    tables = np.random.default_rng(1).integers(0, 10**9, (GAMES, 2**PLAYERS))
    unions = tuple(range(PLAYERS))
    few = tables[:LOOPED].tolist()
    numerators, denominator = owen_values(tables[:LOOPED], unions)
    assert np.allclose(numerators / denominator, [plain(table) for table in few])
    (ours,) = rates(GAMES, lambda: owen_values(tables, unions))
    (theirs,) = rates(LOOPED, lambda: [plain(table) for table in few])
    yield Result("exact values from tables, n = 6", ours, "a plain Python loop", theirs, "records/s")
