"""Exact Shapley and Owen values from a table of coalition values, in integers.

The Owen value (Owen 1977, "Values of games with a priori unions") is the Shapley value of a game whose players come
in unions: unions are ordered at random, and so are the members inside each. With every member in a union of its
own it is the Shapley value (Shapley 1953)::

    phi_i = sum over sets R of other unions, sets T of i's fellows:
            |R|! (m - |R| - 1)! / m!  *  |T|! (b - |T| - 1)! / b!  *  (v(R + T + i) - v(R + T))

for ``m`` unions and ``b`` members in i's union. Multiplied by a common denominator every weight is an integer, so
the result is exact, and the same on every machine.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from itertools import combinations
from math import factorial

import numpy as np
import numpy.typing as npt

from attribution.games.values import TABLE_PLAYERS_MAX

Unions = tuple[int, ...]
"""For each member of the game, the number of its union; numbers count up from 0 in the order of appearance."""


def unions_of(owners: Sequence[Hashable]) -> Unions:
    """The union structure in which members of the same owner are together."""
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(owner, len(numbers)) for owner in owners)


def owen_values(tables: npt.NDArray[np.int64], unions: Unions) -> tuple[npt.NDArray[np.int64], int]:
    """Owen values of many games with the same union structure.

    Args:
        tables: coalition values, shape ``[games, 2 ** n]``, below 2**31 in magnitude.
        unions: the structure, length ``n <= 12``.

    Returns:
        Numerators of shape ``[games, n]`` and their common denominator. The numerators of a game sum to
        ``denominator * (v(all) - v(none))`` exactly.

    Raises:
        ValueError: the shapes do not fit, or there are too many members.
    """
    if len(unions) > TABLE_PLAYERS_MAX:
        raise ValueError(f"{len(unions)} members; an exact table holds {TABLE_PLAYERS_MAX}")
    if tables.shape[1:] != (2 ** len(unions),):
        raise ValueError(f"tables of shape {tables.shape} do not fit {len(unions)} members")
    weights, denominator = _weights(unions)
    # Sums of |weights| per row are at most 2 * 12!, so the products stay below 2**61: no overflow in int64.
    return tables @ weights, denominator


@lru_cache(maxsize=512)
def _weights(unions: Unions) -> tuple[npt.NDArray[np.int64], int]:
    """The matrix that maps a table to numerators, shape ``[2 ** n, n]``, and the denominator."""
    members: dict[int, list[int]] = {}
    for member, union in enumerate(unions):
        members.setdefault(union, []).append(member)
    count = len(members)
    largest = max((len(group) for group in members.values()), default=0)
    matrix = np.zeros((2 ** len(unions), len(unions)), np.int64)
    for union, group in members.items():
        others = [_mask(fellows) for number, fellows in members.items() if number != union]
        scale = factorial(largest) // factorial(len(group))
        for member in group:
            fellows = [1 << other for other in group if other != member]
            for outer, outer_weight in _orders(others, count):
                for inner, inner_weight in _orders(fellows, len(group)):
                    weight = outer_weight * inner_weight * scale
                    coalition = outer | inner
                    matrix[coalition | 1 << member, member] += weight
                    matrix[coalition, member] -= weight
    matrix.setflags(write=False)
    return matrix, factorial(count) * factorial(largest)


def _orders(masks: Sequence[int], places: int) -> list[tuple[int, int]]:
    """Every union of ``masks`` that can come before one more of ``places``, and in how many orders it does."""
    found = []
    for size in range(len(masks) + 1):
        weight = factorial(size) * factorial(places - size - 1)
        found += [(sum(chosen), weight) for chosen in combinations(masks, size)]
    return found


def _mask(members: Sequence[int]) -> int:
    return sum(1 << member for member in members)
