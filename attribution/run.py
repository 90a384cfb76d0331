"""The attribution run: from usage records to credits, deterministic whatever the order and partition of its input.

Each record is credited by itself (:func:`divide`), what it gives is added up (:class:`Tally`, whose sums commute), and
whatever depends on an order is sorted by record id first. A run is therefore a map over segments and a merge.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import lcm
from typing import Any

import numpy as np

from attribution.apportionment import apportion
from attribution.players import earners, unions
from attribution.policy import earned_of
from attribution.shapley import Unions, owen_values
from metering import merkle
from metering.records import VALUE_ONE, UsageRecord


class RunError(ValueError):
    """A record that cannot be attributed; the message names it."""


@dataclass(frozen=True, slots=True)
class Credit:
    """What one document's use in one query gives to one contributor, in units."""

    record: str
    document: str
    contributor: str
    role: str
    units: int


@dataclass(frozen=True, slots=True)
class Divided:
    """One query divided: ``earned + residual == royalty``, and the shares sum to what was earned."""

    record: UsageRecord
    earned: int
    """The part of the royalty pool that documents earned, in units."""
    shares: tuple[Credit, ...]

    @property
    def residual(self) -> int:
        """The part of the royalty pool that no document earned, in units."""
        return self.record.royalty - self.earned


def divide(records: Sequence[UsageRecord]) -> list[Divided]:
    """Divide the royalty of each record among its documents, exactly.

    Records whose games have the same structure are solved together.

    Raises:
        RunError: a record's game is not a table over its documents, or gives a document less than nothing.
    """
    grouped: dict[Unions, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        grouped[_unions(record)].append(i)
    result: list[Divided | None] = [None] * len(records)
    for structure, indexes in grouped.items():
        tables = np.asarray([records[i].values for i in indexes], np.int64)
        numerators, _ = owen_values(tables, structure)
        for i, weights in zip(indexes, numerators.tolist(), strict=True):
            result[i] = _divide_one(records[i], weights)
    return [each for each in result if each is not None]


def shares(record: UsageRecord) -> tuple[list[float], float]:
    """Each document's share of the query's value and the model residual; together they sum to 1."""
    numerators, denominator = owen_values(np.asarray([record.values], np.int64), _unions(record))
    found = [value / (denominator * VALUE_ONE) for value in numerators[0].tolist()]
    found += [0.0] * (len(record.uses) - len(found))
    return found, 1.0 - (record.values[-1] - record.values[0]) / VALUE_ONE


def _unions(record: UsageRecord) -> Unions:
    players = len(record.values).bit_length() - 1
    if len(record.values) != 2**players or players > len(record.uses):
        raise RunError(f"record {record.id}: {len(record.values)} values do not fit {len(record.uses)} documents")
    return unions(record.uses[:players])


def _divide_one(record: UsageRecord, weights: Sequence[int]) -> Divided:
    if any(weight < 0 for weight in weights):
        raise RunError(f"record {record.id}: a document has a negative value under {record.value_function}")
    earned = earned_of(record.royalty, record.values[-1], record.values[0])
    paid = [(earners(use), weight) for use, weight in zip(record.uses, weights, strict=False)]
    parts = lcm(*(len(equals) for equals, _ in paid))
    cells = [
        (each.document, split.contributor, split.role, weight * split.ppm * (parts // len(equals)))
        for equals, weight in paid
        for each in equals
        for split in each.splits
    ]
    units = apportion(earned, [weight for *_, weight in cells], record.leaf())
    return Divided(
        record,
        earned,
        tuple(
            Credit(record.id, document, contributor, role, amount)
            for (document, contributor, role, _), amount in zip(cells, units, strict=True)
        ),
    )


@dataclass(slots=True)
class Totals:
    """Sums over records, in units. ``charged == cost + platform + credited + residual``."""

    records: int = 0
    charged: int = 0
    cost: int = 0
    platform: int = 0
    credited: int = 0
    residual: int = 0

    def add(self, divided: Divided) -> None:
        """Count one record."""
        record = divided.record
        self.records += 1
        self.charged += record.charge
        self.cost += record.cost
        self.platform += record.platform
        self.credited += divided.earned
        self.residual += divided.residual

    def to_json(self) -> dict[str, int]:
        """The sums by name."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Line:
    """What one document did in a period, under one policy version.

    ``pool`` (royalties), ``residual`` and ``platform`` sum over the queries in which the document was retrieved.
    """

    retrieved: int = 0
    cited: int = 0
    pool: int = 0
    residual: int = 0
    platform: int = 0


LineKey = tuple[str, int]
"""Document and policy version."""
CreditKey = tuple[str, str, str, int]
"""Contributor, document, role and policy version."""


@dataclass(slots=True)
class Tally:
    """Everything a run adds up. Adding records in any order gives the same tally."""

    totals: Totals = field(default_factory=Totals)
    lines: dict[LineKey, Line] = field(default_factory=dict)
    credited: dict[CreditKey, int] = field(default_factory=dict)
    policy_version: int = 0
    """The newest policy under which a record was made."""

    def add(self, divided: Divided) -> None:
        """Count one record."""
        record = divided.record
        version = record.policy_version
        self.policy_version = max(self.policy_version, version)
        self.totals.add(divided)
        for use in record.uses:
            for earner in earners(use):
                line = self.lines.setdefault((earner.document, version), Line())
                line.retrieved += 1
                line.cited += use.cited
                line.pool += record.royalty
                line.residual += divided.residual
                line.platform += record.platform
                for split in earner.splits:
                    self.credited.setdefault((split.contributor, earner.document, split.role, version), 0)
        for each in divided.shares:
            self.credited[each.contributor, each.document, each.role, version] += each.units

    def credited_to(self) -> dict[str, int]:
        """What every contributor earned, in units, by contributor."""
        sums: dict[str, int] = defaultdict(int)
        for (contributor, _, _, _), units in self.credited.items():
            sums[contributor] += units
        return dict(sums)


class InputRoot:
    """The Merkle root over the records of a run, in the order of their ids: what the run pins before it starts."""

    def __init__(self) -> None:
        self._leaves: list[tuple[str, bytes]] = []

    def add(self, ids: Iterable[str], leaves: Iterable[bytes]) -> None:
        """Take in some records, in any order."""
        self._leaves += zip(ids, leaves, strict=True)

    def root(self) -> str:
        """The root, in hex.

        Raises:
            RunError: a record is there twice.
        """
        self._leaves.sort()
        for (first, _), (second, _) in zip(self._leaves, self._leaves[1:], strict=False):
            if first == second:
                raise RunError(f"record {first} is in the log twice")
        return merkle.Tree([leaf for _, leaf in self._leaves]).root.hex()


def run_id(manifest: dict[str, Any], canonical: bytes) -> str:
    """The run's id: a hash of everything it was computed from and gave, so equal runs have equal ids."""
    return f"run-{manifest['period']}-{hashlib.sha256(canonical).hexdigest()[:32]}"
