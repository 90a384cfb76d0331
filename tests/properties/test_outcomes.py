"""Outcomes: they move a customer's own money, within bounds, and make or lose none."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.runs.outcomes import WEIGHT_ONE, Outcome, OutcomeError, factor, moved
from attribution.runs.tally import CreditKey
from metering.records import PPM

MONEY = settings(max_examples=3 * settings().max_examples)
CHARGES = st.integers(0, 2**50)
OUTCOMES = st.one_of(
    st.builds(Outcome, st.none(), st.integers(-PPM, PPM)),
    st.builds(Outcome, st.integers(0, 2**53), st.one_of(st.none(), st.integers(-PPM, PPM))),
)


def key(document: str) -> CreditKey:
    return CreditKey(f"owner of {document}", document, "author", 1)


queries = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcde"), st.integers(-(2**30), 2**40), min_size=1),
        st.integers(2 * PPM, 4 * PPM),
    ).filter(lambda query: sum(query[0].values()) > 0),
    min_size=1,
    max_size=10,
)


def cells(found):
    return [(key(document), weight, units) for credits_, weight in found for document, units in credits_.items()]


@given(CHARGES, OUTCOMES)
def test_a_weight_is_between_two_thirds_and_four_thirds(charge, outcome):
    assert 2 * WEIGHT_ONE <= 3 * outcome.checked().weight(charge) <= 4 * WEIGHT_ONE


@given(CHARGES, st.integers(0, 2**53), st.integers(0, 2**53))
def test_worth_more_never_weighs_less(charge, value, more):
    low, high = sorted((value, more))
    assert Outcome(low, None).weight(charge) <= Outcome(high, None).weight(charge)


def test_an_answer_that_was_worth_its_price_weighs_as_one_without_an_outcome():
    assert Outcome(5, None).weight(5) == Outcome(None, 0).weight(5) == WEIGHT_ONE
    assert Outcome(0, None).weight(5) == Outcome(None, -PPM).weight(5)
    assert Outcome(0, None).weight(0) == WEIGHT_ONE


@pytest.mark.parametrize(
    "outcome", [Outcome(None, None), Outcome(-1, None), Outcome(None, PPM + 1), Outcome(1, -PPM - 1)]
)
def test_what_cannot_be_is_refused(outcome):
    with pytest.raises(OutcomeError):
        outcome.checked()


@MONEY
@given(queries, st.binary(max_size=8))
def test_outcomes_conserve_what_the_customer_paid(found, seed):
    assert sum(moved(cells(found), seed).values()) == 0


@MONEY
@given(queries, st.binary(max_size=8))
def test_each_querys_credits_change_by_its_factor_which_is_bounded(found, seed):
    by_weight: dict[int, int] = defaultdict(int)
    for credits_, weight in found:
        by_weight[weight] += sum(credits_.values())
    exact: dict[CreditKey, Fraction] = defaultdict(Fraction)
    before: dict[CreditKey, int] = defaultdict(int)
    for credits_, weight in found:
        times = Fraction(*factor(weight, by_weight))
        assert Fraction(1, 2) <= times <= 2
        for document, units in credits_.items():
            exact[key(document)] += units * times
            before[key(document)] += units
    changed = moved(cells(found), seed)
    for each, units in before.items():
        assert abs(units + changed.get(each, 0) - exact[each]) < 1


@given(queries, st.integers(2 * PPM, 4 * PPM), st.binary(max_size=8))
def test_the_same_outcome_for_every_query_moves_nothing(found, weight, seed):
    assert moved(cells([(credits_, weight) for credits_, _ in found]), seed) == {}


@given(queries, st.binary(max_size=8), st.randoms(use_true_random=False))
def test_order_and_partition_do_not_matter(found, seed, dice):
    rows = cells(found)
    assert moved(dice.sample(rows, len(rows)), seed) == moved(rows, seed)


@given(queries, st.binary(max_size=8))
def test_no_one_gains_more_than_the_customer_paid_them_already(found, seed):
    """A contributor who is the customer too, and rates as suits best, at most doubles what its own money gave it."""
    found = [({key: abs(units) for key, units in credits_.items()}, weight) for credits_, weight in found]
    before: dict[CreditKey, int] = defaultdict(int)
    for each, _, units in cells(found):
        before[each] += units
    for each, units in moved(cells(found), seed).items():
        assert units <= before[each] + 1
