"""Integer apportionment without bias.

Rule ``systematic/1``: systematic sampling (Madow 1949). With exact shares ``q_i`` of the total, laid end to end on a
line, and one offset ``u`` in [0, 1) for the whole line, cell ``i`` receives the number of points ``k - u`` (k whole)
that fall on its stretch. Every cell receives its exact share rounded up or down, the cells sum to the total,
and, ``u`` being uniform, every cell receives its exact share in expectation: small shares and late places lose
nothing. The offset comes from a hash, so the result is the same for everyone who recomputes it.

A negative share is a stretch back along the line, and takes the points that fall on it away again: the same holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from attribution.arithmetic import Floats

RULE: Final = "systematic/1"
OFFSET_BITS: Final = 64

Ints = npt.NDArray[np.int64]


_PREFIX: Final = RULE.encode() + b"\x00"


def offset(seed: bytes) -> int:
    """The offset that a seed decides, in units of ``2 ** -64``."""
    return int.from_bytes(hashlib.sha256(_PREFIX + seed).digest()[: OFFSET_BITS // 8], "big")


def apportion(total: int, weights: Sequence[int], seed: bytes) -> list[int]:
    """Split ``total`` into whole numbers in proportion to ``weights``.

    Args:
        total: what is split, not negative.
        weights: they may be negative; their sum must be above zero unless ``total`` is 0 and they are all 0.
        seed: decides the roundings; the same seed gives the same split.

    Raises:
        ValueError: a negative total, or nothing to give the total to.
    """
    if total < 0:
        raise ValueError("a total must not be negative")
    whole = sum(weights)
    if whole <= 0:
        if total or any(weights):
            raise ValueError("the weights do not sum to more than zero")
        return [0] * len(weights)
    shift = offset(seed) * whole
    scale = whole << OFFSET_BITS
    shares, reached, before = [], 0, 0
    for weight in weights:
        reached += weight
        now = (((total * reached) << OFFSET_BITS) + shift) // scale
        shares.append(now - before)
        before = now
    return shares


def apportion_all(
    totals: Ints, cells: Ints, shares: Floats, seeds: Sequence[bytes], exactly: Callable[[int], Sequence[int]]
) -> Ints:
    """Split many totals at once, each as :func:`apportion` does, to the unit.

    Floating point proposes and integers decide: where the end of a stretch is so near to a point that rounding could
    have moved it past, which is about once in a million cells, the total is split again by ``exactly``.

    Args:
        totals: what is split, shape ``[n]``.
        cells: how many cells each total has, shape ``[n]``.
        shares: the cells' parts of their totals, one total's after the other's, right to a relative ``2 ** -50``,
            shape ``[sum(cells)]``. What they leave of 1 is one more cell at the end, which is not returned.
        seeds: of each total, length ``n``.
        exactly: the units of the cells of total ``i``, by :func:`apportion`.

    Returns:
        Units, shape ``[sum(cells)]``.
    """
    starts = np.cumsum(cells) - cells
    rows = np.repeat(np.arange(len(cells)), cells)
    digests = b"".join([hashlib.sha256(_PREFIX + seed).digest() for seed in seeds])
    offsets = np.frombuffer(digests, ">u8")[::4] * 2.0**-OFFSET_BITS
    length = np.bincount(rows, np.abs(shares), len(cells)) + 1.0
    # Each step of the arithmetic errs by 2**-53 of a stretch no longer than the whole line.
    tolerance = totals * length * (cells + 8) * 2.0**-50 + 2.0**-50
    units = np.zeros(len(shares), np.int64)
    reached, before = np.zeros(len(cells)), np.zeros(len(cells), np.int64)
    doubtful = np.zeros(len(cells), np.bool_)
    longest_first = np.argsort(-cells, kind="stable")
    still = np.searchsorted(-cells[longest_first], -np.arange(int(cells.max(initial=0))))
    for place, count in enumerate(still.tolist()):
        active = longest_first[:count]
        at = starts[active] + place
        reached[active] += shares[at]
        end = totals[active] * reached[active] + offsets[active]
        now = np.floor(end)
        doubtful[active] |= np.minimum(end - now, now + 1 - end) < tolerance[active]
        whole = now.astype(np.int64)
        units[at] = whole - before[active]
        before[active] = whole
    for row in np.flatnonzero(doubtful).tolist():
        units[starts[row] : starts[row] + cells[row]] = exactly(row)
    return units
