"""Money: exact at the edge, refused where it would not be."""

from __future__ import annotations

import pytest

from metering.money import MAX_UNITS, Currency, MoneyError

USD = Currency.of("USD")


@pytest.mark.parametrize(
    ("text", "units"),
    [("0", 0), ("0.002", 2_000_000), ("12.50", 12_500_000_000), ("-1", -1_000_000_000), (" 3 ", 3_000_000_000),
     ("0.000000001", 1), ("1.0000000000000", 1_000_000_000), ("007", 7_000_000_000)],
)  # fmt: skip
def test_decimals_become_units_exactly(text, units):
    assert USD.parse(text) == units


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "abc",
        "1e3",
        "1,5",
        "NaN",
        "inf",
        "+1",
        "--1",
        "1.",
        ".5",
        "0.0000000001",
        "9" * 30,
        "1_000",
        "٣",
        "1\n2",
    ],
)
def test_what_is_not_money_is_refused(text):
    with pytest.raises(MoneyError):
        USD.parse(text)


@pytest.mark.parametrize("text", ["0", "-1", "0.000000000"])
def test_payments_are_above_zero(text):
    with pytest.raises(MoneyError, match="above zero"):
        USD.parse_positive(text)


def test_the_limit_is_what_lua_counts_exactly():
    assert USD.parse(USD.format(MAX_UNITS)) == MAX_UNITS
    with pytest.raises(MoneyError, match="above the limit"):
        USD.parse(USD.format(MAX_UNITS + 1))


def test_amounts_have_at_least_six_places_and_lose_none():
    assert USD.format(2_000_000) == "0.002000"
    assert USD.format(1) == "0.000000001"
    assert USD.format(-1_500_000_000) == "-1.500000"
    assert USD.amount(0) == {"amount": "0.000000", "currency": "USD"}


def test_currencies_of_large_nominal_amounts_have_a_coarser_unit():
    assert Currency.of("VND").parse("50000000000") <= MAX_UNITS
    assert Currency.of("JPY").format(1) == "0.0000001"


@pytest.mark.parametrize("code", ["usd", "US", "DOLLAR", "", "U$D"])
def test_a_currency_is_three_capital_letters(code):
    with pytest.raises(MoneyError):
        Currency.of(code)
