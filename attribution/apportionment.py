"""Integer apportionment without bias.

Rule ``systematic/1``: systematic sampling (Madow 1949). With exact shares ``q_i`` of the total, laid end to end on a
line, and one offset ``u`` in [0, 1) for the whole line, cell ``i`` receives the number of points ``k - u`` (k whole)
that fall on its stretch. Every cell receives its exact share rounded up or down, the cells sum to the total,
and, ``u`` being uniform, every cell receives its exact share in expectation: small shares and late places lose
nothing. The offset comes from a hash, so the result is the same for everyone who recomputes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

RULE: Final = "systematic/1"
_OFFSET_BITS: Final = 64


def apportion(total: int, weights: Sequence[int], seed: bytes) -> list[int]:
    """Split ``total`` into whole numbers in proportion to ``weights``.

    Args:
        total: what is split, not negative.
        weights: not negative, at least one above zero unless ``total`` is 0.
        seed: decides the roundings; the same seed gives the same split.

    Raises:
        ValueError: a negative weight or total, or nothing to give the total to.
    """
    if total < 0 or any(weight < 0 for weight in weights):
        raise ValueError("totals and weights must not be negative")
    whole = sum(weights)
    if whole == 0:
        if total:
            raise ValueError("no weight is above zero")
        return [0] * len(weights)
    digest = hashlib.sha256(RULE.encode() + b"\x00" + seed).digest()
    offset = int.from_bytes(digest[: _OFFSET_BITS // 8], "big") * whole
    scale = whole << _OFFSET_BITS
    shares, reached, before = [], 0, 0
    for weight in weights:
        reached += weight
        now = (((total * reached) << _OFFSET_BITS) + offset) // scale
        shares.append(now - before)
        before = now
    return shares
