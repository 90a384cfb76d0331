"""The run: exact, conserving, signed values too, and the same whatever the partition."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.apportionment import apportion
from attribution.runs.run import Batch, divide, owen_shares
from attribution.runs.tally import floored
from metering.records import PPM, VALUE_ONE, Split
from serving.closing.crediting import Sums, divided
from tests.records import a_record, a_table, a_use

NAMES = ("ada", "ben", "cleo", "dan")
MONEY = settings(max_examples=3 * settings().max_examples)


@st.composite
def uses(draw):
    first = draw(st.integers(0, PPM))
    splits = (Split(draw(st.sampled_from(NAMES)), "author", first), Split("tom", "translator", PPM - first))
    return a_use(
        f"doc-{draw(st.integers(0, 5))}",
        draw(st.sampled_from(NAMES)),
        splits=splits if draw(st.booleans()) else None,
        cited=draw(st.booleans()),
    )


@st.composite
def records(draw, lowest: int = -VALUE_ONE):
    """Records of any game whose whole is between -1 and 1, with documents beyond it."""
    retrieved = tuple(draw(st.lists(uses(), max_size=5)))
    players = draw(st.integers(0, len(retrieved)))
    values = draw(st.lists(st.integers(lowest, VALUE_ONE), min_size=2**players, max_size=2**players))
    values[0] = min(max(values[0], values[-1] - VALUE_ONE), values[-1] + VALUE_ONE)
    return a_record(
        id=draw(st.uuids()).hex,
        account=draw(st.sampled_from(("x", "y", "z"))),
        charge=draw(st.integers(0, 2**50)),
        uses=retrieved,
        values=tuple(values),
    )


batches = st.lists(records(), max_size=12, unique_by=lambda record: record.id)


def one_by_one(record):
    """The rule, in integers and fractions alone."""
    numerators, denominator = owen_shares(record)
    weights = [n * split.ppm for use, n in zip(record.uses, numerators, strict=False) for split in use.splits]
    return apportion(record.royalty, [*weights, denominator * PPM - sum(weights)], record.leaf())[:-1]


@MONEY
@given(batches)
def test_records_in_columns_are_divided_as_one_by_one(found):
    units = iter(divide(Batch.of(found)).units.tolist())
    for record in found:
        expected = one_by_one(record)
        splits = sum(len(use.splits) for use in record.uses)
        given_ = [next(units) for _ in range(splits)]
        assert given_ == expected + [0] * (splits - len(expected))


@given(batches)
def test_every_unit_of_the_royalty_is_earned_or_residual(found):
    division = divide(Batch.of(found))
    assert sum(division.units.tolist()) == sum(division.earned.tolist())
    for record, earned in zip(found, division.earned.tolist(), strict=True):
        exact = Fraction(record.royalty * (record.values[-1] - record.values[0]), VALUE_ONE)
        assert abs(earned - exact) < 1


@given(batches, st.randoms(use_true_random=False))
def test_the_sums_do_not_depend_on_order_or_partition(found, dice):
    def tally(parts):
        sums = Sums()
        for part in parts:
            sums.add(divided(a_table(part)))
        return sums.tally()

    whole = tally([found])
    shuffled = dice.sample(found, len(found))
    cut = dice.randint(0, len(found))
    assert tally([shuffled[:cut], shuffled[cut:]]) == whole
    assert tally([[record] for record in shuffled]) == whole
    totals = whole.totals
    assert totals.charged == totals.cost + totals.platform + totals.credited + totals.residual
    assert sum(whole.credited_to().values()) == totals.credited
    assert min([0, *whole.credited_to().values()]) == 0


earned = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-(2**50), 2**50))


@MONEY
@given(earned)
def test_payments_are_not_negative_and_conserve_the_period(sums):
    paid = floored(sums)
    assert paid.keys() == sums.keys()
    assert min(paid.values(), default=0) >= 0
    assert sum(paid.values()) == max(sum(sums.values()), 0)
    for name, units in sums.items():
        assert paid[name] <= max(units, 0)
    if min(sums.values(), default=0) >= 0:
        assert paid == sums


@given(earned)
def test_what_is_short_is_borne_in_proportion(sums):
    positive = sum(units for units in sums.values() if units > 0)
    payable = max(sum(sums.values()), 0)
    for name, units in floored(sums).items():
        assert abs(units - Fraction(payable * max(sums[name], 0), positive or 1)) < 1


def test_who_is_paid_does_not_depend_on_the_order_of_names():
    sums = {"a": 7, "b": -3, "c": 5, "d": 1}
    for order in permutations(sums):
        assert floored({name: sums[name] for name in order}) == floored(sums)
