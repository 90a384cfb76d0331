"""Outcomes: what a customer says an answer turned out to be worth, and what that moves.

Rule ``own-money/1``. A query's weight is ``1 + s / 3``, where ``s`` in [-1, 1] is the customer's rating, or, where a
value was reported, ``(value - charge) / (value + charge)``; a query without an outcome has the weight 1. What the
documents of one customer's queries earned in a period is divided again in proportion to units times weight, and
sums to the same. So

- a query's credits change by a factor between 1/2 and 2, for every weight is between 2/3 and 4/3;
- no outcome moves money that another customer paid, or money between documents and the residual;
- reporting nothing, or the same for every query, changes nothing.

Queries whose documents earned zero or less keep their credits: there is no sum to divide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from attribution.apportionment import apportion
from attribution.runs.tally import CreditKey
from metering.records import PPM

RULE: Final = "own-money/1"
WEIGHT_ONE: Final = 3 * PPM
"""The integer that stands for the weight 1."""


class OutcomeError(ValueError):
    """An outcome that cannot be."""


class Outcome(NamedTuple):
    """What a customer reported of one query; at least one of the two."""

    value: int | None
    """What the answer was worth, in units."""
    rating_ppm: int | None
    """From -1,000,000 to 1,000,000."""

    def checked(self) -> Outcome:
        """This outcome, if it can be.

        Raises:
            OutcomeError: nothing is reported, or it is out of range.
        """
        if self.value is None and self.rating_ppm is None:
            raise OutcomeError("an outcome needs a value or a rating")
        if self.value is not None and self.value < 0:
            raise OutcomeError("the value of an outcome must not be negative")
        if self.rating_ppm is not None and abs(self.rating_ppm) > PPM:
            raise OutcomeError("a rating must be between -1 and 1")
        return self

    def weight(self, charge: int) -> int:
        """The weight of a query that cost ``charge`` units, times ``WEIGHT_ONE``: from 2/3 to 4/3 of it."""
        if self.value is None:
            return WEIGHT_ONE + (self.rating_ppm or 0)
        both = self.value + charge
        return WEIGHT_ONE + ((self.value - charge) * PPM // both if both else 0)


def moved(cells: Iterable[tuple[CreditKey, int, int]], seed: bytes) -> dict[CreditKey, int]:
    """What the outcomes of one customer's queries move, in units; it sums to 0.

    Args:
        cells: who was credited for what, under which weight, and how many units: of all queries of the customer in the
            period whose documents earned more than nothing.
        seed: decides the roundings.
    """
    before: dict[CreditKey, int] = defaultdict(int)
    weighted: dict[CreditKey, int] = defaultdict(int)
    for key, weight, units in cells:
        before[key] += units
        weighted[key] += units * weight
    keys = sorted(before)
    after = apportion(sum(before.values()), [weighted[key] for key in keys], seed)
    return {key: units - before[key] for key, units in zip(keys, after, strict=True) if units != before[key]}


def factor(weight: int, cells: Mapping[int, int]) -> tuple[int, int]:
    """By what a query's credits are multiplied, as a fraction.

    Args:
        weight: the query's.
        cells: of all the customer's earning queries, units by weight.
    """
    return weight * sum(cells.values()), sum(each * units for each, units in cells.items())
