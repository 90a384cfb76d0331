"""What a period adds up to: sums over records, what customers' outcomes move, and what is paid in the end.

Adding parts in any order gives the same tally, so a run is a map over parts of its records and a merge.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, NamedTuple

from attribution.apportionment import apportion

FLOOR_RULE: Final = "floor/1"


@dataclass(slots=True)
class Totals:
    """Sums over records, in units. ``charged == cost + platform + credited + residual``."""

    records: int = 0
    charged: int = 0
    cost: int = 0
    platform: int = 0
    credited: int = 0
    residual: int = 0

    def add(self, other: Totals) -> None:
        """Count the other's records too."""
        for name, amount in asdict(other).items():
            setattr(self, name, getattr(self, name) + amount)


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


class LineKey(NamedTuple):
    """Whose line."""

    document: str
    policy_version: int


class CreditKey(NamedTuple):
    """Who is credited for what."""

    contributor: str
    document: str
    role: str
    policy_version: int


@dataclass(slots=True)
class Tally:
    """Everything a run adds up."""

    sums: Totals = field(default_factory=Totals)
    """As the records say, one by one: credits may be negative."""
    lines: dict[LineKey, Line] = field(default_factory=dict)
    credited: dict[CreditKey, int] = field(default_factory=dict)
    """What each record's price and values gave, added up."""
    outcomes: dict[CreditKey, int] = field(default_factory=dict)
    """What customers' outcomes moved; they sum to 0 for every customer."""
    policy_version: int = 0
    """The newest policy under which a record was made."""
    value_functions: dict[str, int] = field(default_factory=dict)
    """How many records were valued by each."""
    payments: Callable[[Mapping[str, int]], dict[str, int]] = field(default_factory=lambda: floored)
    """The rule that makes payments of what was earned."""

    def add_lines(self, rows: Iterable[tuple[LineKey, Line]]) -> None:
        """Count what documents did."""
        for key, other in rows:
            line = self.lines.setdefault(key, Line())
            line.retrieved += other.retrieved
            line.cited += other.cited
            line.pool += other.pool
            line.residual += other.residual
            line.platform += other.platform

    def add_credits(self, rows: Iterable[tuple[CreditKey, int]]) -> None:
        """Count what records credited."""
        for key, units in rows:
            self.credited[key] = self.credited.get(key, 0) + units

    def move(self, moved: Mapping[CreditKey, int]) -> None:
        """Count what one customer's outcomes moved."""
        for key, units in moved.items():
            self.outcomes[key] = self.outcomes.get(key, 0) + units

    def earned_by(self) -> dict[str, int]:
        """What every contributor earned over the period, outcomes included; a sum may be negative."""
        earned: dict[str, int] = defaultdict(int)
        for part in (self.credited, self.outcomes):
            for key, units in part.items():
                earned[key.contributor] += units
        return dict(earned)

    def credited_to(self) -> dict[str, int]:
        """What every contributor is paid, in units: the one rule that makes payments non-negative."""
        return self.payments(self.earned_by())

    @property
    def totals(self) -> Totals:
        """The sums with what is paid as credited; never below zero."""
        credited = max(self.sums.credited, 0)
        pool = self.sums.credited + self.sums.residual
        found = asdict(self.sums) | {"credited": credited, "residual": pool - credited}
        return Totals(**found)


def floored(earned: Mapping[str, int]) -> dict[str, int]:
    """Payments from sums that may be negative, conserving the sum of all (``floor/1``).

    A negative sum over the whole period is paid as zero. The shortfall is borne by all others in proportion to what
    they earned, in whole units by ``systematic/1``. Without a negative sum, payments equal what was earned.

    Args:
        earned: units by name.
    """
    if min(earned.values(), default=0) >= 0:
        return dict(earned)
    names = sorted(earned)
    seed = hashlib.sha256(f"{FLOOR_RULE}\n{json.dumps(sorted(earned.items()))}".encode()).digest()
    payable = max(sum(earned.values()), 0)
    paid = apportion(payable, [max(earned[name], 0) for name in names], seed) if payable else [0] * len(names)
    return dict(zip(names, paid, strict=True))
