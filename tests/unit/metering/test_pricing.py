"""Prices: charges round up, costs round down, and no price is below its cost."""

from __future__ import annotations

import pytest

from metering.pricing import ModelPrice, PriceBook, PriceError, Usage, in_force

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


def test_the_book_in_force_is_the_one_that_took_effect_last():
    books = [PriceBook(1, {"m": PRICE}), PriceBook(2, {"m": PRICE}, 200), PriceBook(3, {"m": PRICE}, 100)]
    found = [in_force(books, at_ms).version for at_ms in (0, 99, 100, 199, 200, 10**15)]
    assert found == [1, 1, 3, 3, 2, 2]
    assert in_force([*books, PriceBook(4, {"m": PRICE}, 200)], 200).version == 4
    with pytest.raises(PriceError, match="no price book is in effect"):
        in_force(books[1:], 99)


@pytest.mark.parametrize("wrong", [{"models": {}}, {"models": {"m": PRICE}, "free_per_month": -1}])
def test_books_that_sell_nothing_or_take_money_for_free_are_refused(wrong):
    with pytest.raises(PriceError):
        PriceBook(1, **wrong)
