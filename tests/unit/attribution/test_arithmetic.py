"""The arithmetic that decides: right to the last places, and the bits that every processor must give."""

from __future__ import annotations

import math
from decimal import Context, Decimal

import numpy as np
import pytest

from attribution.arithmetic import exponential, logarithm, total

PLACES = Context(prec=60)
EXPONENTIALS = {
    0.0: "0x1.0000000000000p+0",
    1.0: "0x1.5bf0a8b14576ap+1",
    -1.0: "0x1.78b56362cef38p-2",
    -0.5: "0x1.368b2fc6f960ap-1",
    -3.0: "0x1.97db0ccceb0afp-5",
    -20.25: "0x1.b93de1e27ca3bp-30",
    300.125: "0x1.fc0ed35ef0037p+432",
    -700.0: "0x1.14f2b0fb9307fp-1010",
}
LOGARITHMS = {
    (2, 1): "0x1.62e42fefa39efp-1",
    (22, 3): "0x1.fe0fe73ce8884p+0",
    (1_294, 7): "0x1.4e0da738fc33fp+2",
    (2_000_002, 2_000_001): "0x1.0c6f6cd9ac642p-21",
}


def test_an_exponential_is_right_to_two_units_in_the_last_place():
    exponents = np.random.default_rng(1).uniform(-700, 700, 5_000)
    for exponent, raised in zip(exponents.tolist(), exponential(exponents).tolist(), strict=True):
        true = PLACES.exp(Decimal(exponent))
        assert abs(Decimal(raised) - true) <= 2 * Decimal(math.ulp(raised))


@pytest.mark.parametrize(("exponent", "bits"), EXPONENTIALS.items())
def test_an_exponential_has_these_bits(exponent: float, bits: str):
    assert float(exponential(exponent)).hex() == bits


def test_exponentials_end_in_nothing_and_in_infinity():
    assert exponential([-math.inf, -1e9, -746.0, 0.0]).tolist() == [0.0, 0.0, 0.0, 1.0]
    with np.errstate(over="ignore"):
        assert exponential([710.0, math.inf]).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize(("fraction", "bits"), LOGARITHMS.items())
def test_a_logarithm_has_these_bits_and_is_right(fraction: tuple[int, int], bits: str):
    assert logarithm(*fraction).hex() == bits
    numerator, denominator = map(Decimal, fraction)
    assert logarithm(*fraction) == float(PLACES.ln(PLACES.divide(numerator, denominator)))


def test_terms_are_added_one_after_the_other():
    """Pairwise, as numpy adds up an array, the two halves would have met with their ones."""
    terms = np.asarray([2.0**53, *[1.0] * 255])
    assert total(terms) == 2.0**53
    assert total(terms[::-1]) == 2.0**53 + 255 + 1
    assert total(np.zeros((0, 3))).tolist() == [0.0, 0.0, 0.0]
