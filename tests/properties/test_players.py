"""Players: near-duplicates play once, who earns on them follows the evidence, and no credit is lost or made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.games.players import groups, paid


def told(matrix):
    """A relation that is given as a matrix."""
    return lambda i, j: bool(matrix[i, j])


@st.composite
def texts(draw, most=7):
    """A relation, dates of which some are equal and some unknown, and ids."""
    count = draw(st.integers(0, most))
    relation = np.asarray(draw(st.lists(st.booleans(), min_size=count**2, max_size=count**2)), np.bool_)
    registered = draw(st.lists(st.none() | st.integers(0, 3), min_size=count, max_size=count))
    return told(relation.reshape(count, count)), registered, [f"text {i}" for i in range(count)]


@given(texts())
def test_every_text_is_in_one_group_with_an_original_it_repeats(given_texts):
    relation, registered, ids = given_texts
    found = groups(*given_texts)
    assert sorted(i for group in found for i in group.members) == list(range(len(ids)))
    for group in found:
        assert group.members[0] == group.original
        assert group.original in group.earners
        assert set(group.earners) <= set(group.members)
        for i in group.members[1:]:
            tied = registered[i] == registered[group.original]
            assert relation(i, group.original) or (tied and relation(group.original, i))


@given(texts())
def test_no_original_repeats_an_earlier_one(given_texts):
    relation, registered, _ = given_texts
    originals = [group.original for group in groups(*given_texts)]
    for place, later in enumerate(originals):
        for earlier in originals[:place]:
            assert not relation(later, earlier)
            assert not (registered[later] == registered[earlier] and relation(earlier, later))


@given(texts(), st.randoms(use_true_random=False))
def test_the_order_in_which_texts_are_given_does_not_matter(given_texts, shuffler):
    relation, registered, ids = given_texts
    order = list(range(len(ids)))
    shuffler.shuffle(order)
    moved = groups(lambda i, j: relation(order[i], order[j]), [registered[i] for i in order], [ids[i] for i in order])
    named = [[ids[i] for i in group.members] for group in groups(*given_texts)]
    assert [[ids[order[i]] for i in group.members] for group in moved] == named


@given(texts())
def test_only_the_earliest_earn(given_texts):
    _, registered, _ = given_texts
    for group in groups(*given_texts):
        dates = [math.inf if registered[i] is None else registered[i] for i in group.members]
        assert [i for i, date in zip(group.members, dates, strict=True) if date == min(dates)] == list(group.earners)


@given(texts(), st.data())
def test_what_a_group_earns_is_paid_in_full(given_texts, data):
    found = groups(*given_texts)
    earned = data.draw(st.lists(st.floats(-1, 1), min_size=len(found), max_size=len(found)))
    got = paid(found, earned)
    assert math.isclose(sum(got), sum(earned), abs_tol=1e-12)
    for group, credit in zip(found, earned, strict=True):
        assert math.isclose(sum(got[i] for i in group.members), credit, abs_tol=1e-12)


def test_a_later_text_like_two_others_does_not_make_them_one():
    relation = np.asarray([[0, 0, 0], [0, 0, 0], [1, 1, 0]], np.bool_)
    assert [group.members for group in groups(told(relation), [1, 2, 3], ["a", "c", "bridge"])] == [(0, 2), (1,)]


@pytest.mark.parametrize(
    ("registered", "ids"),
    [([], ["a"]), ([1, 2], ["a"]), ([1, 2], ["a", "a"])],
)
def test_what_does_not_fit_is_refused(registered, ids):
    with pytest.raises(ValueError, match="is needed for each text"):
        groups(lambda *_: False, registered, ids)
