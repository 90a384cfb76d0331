"""Prices: charges round up, costs round down, and no price is below its cost."""

from __future__ import annotations

import pytest

from metering.pricing import ModelPrice, PriceBook, PriceError, Usage

PRICE = ModelPrice(
    request=1_000,
    input_per_1k=7,
    output_per_1k=11,
    passage=3,
    cost_request=10,
    cost_input_per_1k=7,
    cost_output_per_1k=1,
)


def test_a_charge_adds_request_passages_and_tokens_rounded_up():
    assert PRICE.charge(Usage(0, 0, 0)) == 1_000
    assert PRICE.charge(Usage(1, 0, 5)) == 1_000 + 15 + 1
    assert PRICE.charge(Usage(1_000, 2_000, 0)) == 1_000 + 7 + 22


def test_a_cost_rounds_down():
    assert PRICE.cost(Usage(999, 0, 5)) == 10 + 6


@pytest.mark.parametrize("tokens", [0, 1, 999, 1_000, 123_457])
def test_no_query_costs_more_than_it_is_charged(tokens):
    usage = Usage(tokens, tokens, 0)
    assert PRICE.cost(usage) <= PRICE.charge(usage)


@pytest.mark.parametrize("wrong", [{"request": -1}, {"request": 1, "cost_request": 2}, {"request": 1, "passage": -5}])
def test_prices_that_lose_money_are_refused(wrong):
    with pytest.raises(PriceError):
        ModelPrice(**wrong)


def test_a_book_survives_json_and_refuses_what_it_does_not_know():
    book = PriceBook(3, {"m": PRICE})
    assert PriceBook.from_json(book.to_json()) == book
    for broken in (
        {},
        {"version": 1},
        {"version": 1, "models": {"m": {"request": "1"}}},
        {"version": 1, "models": {}, "x": 1},
    ):
        with pytest.raises(PriceError):
            PriceBook.from_json(broken)
    with pytest.raises(PriceError, match="no price for model 'other'"):
        book.price("other")
