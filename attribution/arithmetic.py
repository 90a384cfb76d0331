"""Arithmetic that decides: the same bits on every processor, and whatever is computed beside it.

IEEE 754 fixes the result of a sum, product, quotient or square root of two numbers, and so does an integer. It fixes
neither the order in which a library adds up many numbers, nor the last bit of an exponential or a logarithm: both
depend on the processor, the threads and the shape of the arrays. So what decides is computed in integers, by
:func:`math.fsum`, which is exact, or by what stands here.
"""

from __future__ import annotations

from decimal import Context, Decimal
from functools import lru_cache
from math import factorial
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_LN2_HIGH: Final = float.fromhex("0x1.62e42feep-1")
_LN2_LOW: Final = float.fromhex("0x1.a39ef35793c76p-33")
"""The two sum to ln 2; the first has so few bits that its multiples are exact."""
_SERIES: Final = tuple(1 / factorial(power) for power in range(13, -1, -1))
_RANGE: Final = (-746.0, 710.0)
"""Below it is nothing and above it infinity."""
_EXACT: Final = Context(prec=34)


def total(terms: Floats) -> Floats:
    """The sum over the first axis, one term after the other; zeros where there are none."""
    summed: Floats = np.add.accumulate(np.concatenate([np.zeros((1, *terms.shape[1:])), terms]))[-1]
    return summed


def exponential(exponents: npt.ArrayLike) -> Floats:
    """``e ** x``, right to about 2 units in the last place.

    ``x = n ln 2 + r`` by the reduction of Cody and Waite (1980), and ``e ** r`` by its Taylor series.
    """
    exponents = np.clip(np.asarray(exponents, np.float64), *_RANGE)
    doublings = np.rint(exponents / (_LN2_HIGH + _LN2_LOW))
    rest = (exponents - doublings * _LN2_HIGH) - doublings * _LN2_LOW
    series = np.zeros_like(rest)
    for coefficient in _SERIES:
        series = series * rest + coefficient
    raised: Floats = np.ldexp(series, doublings.astype(np.int64))
    return raised


@lru_cache(4_096)
def logarithm(numerator: int, denominator: int) -> float:
    """``ln(numerator / denominator)``, computed to 34 digits in decimals."""
    return float(_EXACT.ln(_EXACT.divide(Decimal(numerator), Decimal(denominator))))
