"""The agreement of what was paid with a costlier value function, query by query: the audit by ablation.

A sample of the records, drawn by their hashes, is recomputed with a value function that costs more. Two measures say
whether the shares that were paid agree with it:

- Kendall's tau-b (Kendall 1945): are the documents in the same order?
- The linear datamodeling score (Park et al. 2023, "TRAK"): over coalitions, the rank correlation (Spearman) of what
  the costlier function says the coalition is worth and the sum of what its members were paid. The coalitions are the
  masks; here they are all that there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import fsum, sqrt
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from attribution.games.shapley import owen_values, unions_of
from attribution.games.values import Table
from metering.records import PPM, UsageRecord

DRAW: Final = "ablation/1"
TAU_LOW: Final = 0.0
LDS_LOW: Final = 0.5
"""Agreement below either is flagged as low."""
LISTED_MAX: Final = 100
"""The recomputed queries that a statement lists, those that agree least."""

_HASH_BITS: Final = 64
_DECIMALS: Final = 4

Ints = npt.NDArray[np.int64]


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """What the costlier value function says of one query."""

    record: str
    """The record's leaf hash, in hex: it names the record only to those who have it."""
    contributors: tuple[str, ...]
    """Whose documents were used."""
    value_function: str
    model: str = ""
    """The language model, where the function has one."""
    kendall_tau: float | None
    """None where neither tells any two documents apart."""
    lds: float | None
    """The linear datamodeling score; None where no coalition differs from another in either."""
    masks: int

    @property
    def low(self) -> bool:
        """Whether it is flagged."""
        tau, lds = self.kendall_tau, self.lds
        return (tau is not None and tau < TAU_LOW) or (lds is not None and lds < LDS_LOW)

    def to_json(self) -> dict[str, Any]:
        """The agreement as a statement shows it: without whose other documents were used."""
        return {
            "record": self.record,
            "value_function": self.value_function,
            "model": self.model,
            "kendall_tau": _rounded(self.kendall_tau),
            "lds": _rounded(self.lds),
            "masks": self.masks,
            "low": self.low,
        }


class Ablation(msgspec.Struct, frozen=True):
    """The audit of a period so far."""

    sampled: int = 0
    """Records that were drawn."""
    agreements: tuple[Agreement, ...] = ()
    """Those that were recomputed, in any order."""

    def summary(self) -> dict[str, Any]:
        """The audit as a manifest has it; means are over the queries where the measure is defined."""
        functions: dict[str, int] = {}
        for name in sorted(each.value_function for each in self.agreements):
            functions[name] = functions.get(name, 0) + 1
        return {
            "sampled": self.sampled,
            "recomputed": len(self.agreements),
            "value_functions": functions,
            "kendall_tau": _mean([each.kendall_tau for each in self.agreements]),
            "lds": _mean([each.lds for each in self.agreements]),
            "masks": sum(each.masks for each in self.agreements),
            "low": sum(each.low for each in self.agreements),
        }

    def of(self, contributor: str) -> dict[str, Any]:
        """The recomputed queries that used a contributor's documents; listed are those that agree least."""
        own = [each for each in self.agreements if contributor in each.contributors]
        own.sort(key=lambda each: (not each.low, 1.0 if each.lds is None else each.lds, each.record))
        return {
            "recomputed": len(own),
            "low": sum(each.low for each in own),
            "queries": [each.to_json() for each in own[:LISTED_MAX]],
        }


def drawn(record: UsageRecord, sample_ppm: int) -> bool:
    """Whether a record is in the sample: ``sample_ppm`` in a million of the records in which documents earned.

    The hash of the record decides, so everyone who has the record can check the draw, and nobody can influence it.
    """
    if record.values[-1] <= record.values[0]:
        return False
    digest = hashlib.sha256(DRAW.encode() + b"\x00" + record.leaf()).digest()
    return int.from_bytes(digest[: _HASH_BITS // 8], "big") * PPM < sample_ppm << _HASH_BITS


def agreement(record: UsageRecord, paid: Sequence[int], table: Table, value_function: str, model: str) -> Agreement:
    """Compare what was paid for a record with a costlier game over its first documents.

    Args:
        record: the query.
        paid: the share of each of its documents, in the order of its uses, in any unit.
        table: the costlier function's value of every coalition of the first ``n``, shape ``[2 ** n]``.
        value_function: the costlier function, by name and version.
        model: its language model, if it has one.
    """
    players = len(table).bit_length() - 1
    shares = paid[:players]
    owners = [use.contributor for use in record.uses]
    numerators, _ = owen_values(table[None], unions_of(owners[:players]))
    names = {*owners, *(split.contributor for use in record.uses for split in use.splits)}
    return Agreement(
        record=record.leaf().hex(),
        contributors=tuple(sorted(names)),
        value_function=value_function,
        model=model,
        kendall_tau=kendall_tau(shares, numerators[0].tolist()),
        lds=linear_datamodeling_score(shares, table),
        masks=len(table),
    )


def kendall_tau(first: Sequence[int], second: Sequence[int]) -> float | None:
    """Kendall's tau-b of two lists of the same length; 0 where only one of them is constant, None where both are."""
    rows = [np.sign(np.subtract.outer(each, each)) for each in map(_ints, (first, second))]
    return _cosine(*(each[np.triu_indices(len(each), 1)] for each in rows))


def linear_datamodeling_score(shares: Sequence[int], table: Table) -> float | None:
    """Spearman's correlation, over every coalition, of its value and the sum of its members' shares."""
    member = np.arange(len(table))[:, None] >> np.arange(len(shares)) & 1
    return _cosine(_ranks(member @ _ints(shares)), _ranks(table))


def _ints(values: Sequence[int]) -> Ints:
    return np.asarray(values, np.int64)


def _ranks(values: Ints) -> Ints:
    """Twice the ranks, ties sharing their mean, less what makes them sum to 0."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Ints = (2 * last - counts - len(values))[place]
    return ranks


def _cosine(first: Ints, second: Ints) -> float | None:
    lengths = [int(each @ each) for each in (first, second)]
    if not all(lengths):
        return 0.0 if any(lengths) else None
    return int(first @ second) / sqrt(lengths[0] * lengths[1])


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is defined; exact sums, so that their order does not matter."""
    known = [value for value in values if value is not None]
    return _rounded(fsum(known) / len(known)) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)
