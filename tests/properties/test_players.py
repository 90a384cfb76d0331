"""Players: near-duplicates play once, who earns on them follows the evidence, and no credit is lost or made."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.players import groups, paid, unions
from attribution.run import Tally, divide, shares
from attribution.values import counterfactual
from metering.records import PPM, VALUE_ONE, Peer, Split, Use
from tests.records import a_record, a_use


@st.composite
def texts(draw, most=7):
    """A relation, dates of which some are equal and some unknown, and ids."""
    count = draw(st.integers(0, most))
    relation = np.asarray(draw(st.lists(st.booleans(), min_size=count**2, max_size=count**2)), np.bool_)
    registered = draw(st.lists(st.none() | st.integers(0, 3), min_size=count, max_size=count))
    return relation.reshape(count, count), registered, [f"text {i}" for i in range(count)]


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
            assert relation[i, group.original] or (tied and relation[group.original, i])


@given(texts())
def test_no_original_repeats_an_earlier_one(given_texts):
    relation, registered, _ = given_texts
    originals = [group.original for group in groups(*given_texts)]
    for place, later in enumerate(originals):
        for earlier in originals[:place]:
            assert not relation[later, earlier]
            assert not (registered[later] == registered[earlier] and relation[earlier, later])


@given(texts(), st.randoms(use_true_random=False))
def test_the_order_in_which_texts_are_given_does_not_matter(given_texts, shuffler):
    relation, registered, ids = given_texts
    order = list(range(len(ids)))
    shuffler.shuffle(order)
    moved = groups(relation[np.ix_(order, order)], [registered[i] for i in order], [ids[i] for i in order])
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
    assert [group.members for group in groups(relation, [1, 2, 3], ["a", "c", "bridge"])] == [(0, 2), (1,)]


@pytest.mark.parametrize(
    ("relation", "registered", "ids"),
    [(np.zeros((1, 2), np.bool_), [1], ["a"]), (np.zeros((1, 1), np.bool_), [], ["a"]),
     (np.zeros((2, 2), np.bool_), [1, 2], ["a", "a"])],
)  # fmt: skip
def test_what_does_not_fit_is_refused(relation, registered, ids):
    with pytest.raises(ValueError, match="is needed for each text"):
        groups(relation, registered, ids)


def with_peers(use: Use, *peers: Peer) -> Use:
    return Use(use.document, use.version, use.contributor, use.splits, use.score, use.cited, 7, peers)


def a_peer(document: str, contributor: str, *splits: Split) -> Peer:
    return Peer(document, "1" * 64, contributor, splits or (Split(contributor, "author", PPM),))


class TestPeersOfARecord:
    """A record's document stands for those that were registered with the same text at the same moment."""

    def divided(self, *uses: Use, **given):
        (found,) = divide([a_record(uses=uses, **given)])
        return found, {each.document: each.units for each in found.shares}

    def test_they_earn_the_same_and_together_what_one_would(self):
        alone, units = self.divided(a_use("a", "ada"), a_use("b", "ben"))
        joint, parts = self.divided(
            with_peers(a_use("a", "ada"), a_peer("c", "cy"), a_peer("d", "di")), a_use("b", "ben")
        )
        assert joint.earned == alone.earned == sum(parts.values())
        assert abs(parts["b"] - units["b"]) <= 1
        assert abs(parts["a"] + parts["c"] + parts["d"] - units["a"]) <= 1
        assert max(parts[name] for name in "acd") - min(parts[name] for name in "acd") <= 1

    def test_splits_come_last(self):
        translated = a_peer("c", "cy", Split("cy", "author", 600_000), Split("tom", "translator", 400_000))
        joint, _ = self.divided(with_peers(a_use("a", "ada"), translated), values=(0, VALUE_ONE), charge=2_000_000)
        by_person = {(each.document, each.contributor): each.units for each in joint.shares}
        assert abs(by_person["a", "ada"] - joint.earned / 2) <= 1
        assert abs(by_person["c", "cy"] - joint.earned * 0.3) <= 1
        assert abs(by_person["c", "tom"] - joint.earned * 0.2) <= 1
        assert sum(by_person.values()) == joint.earned

    def test_all_of_them_have_their_lines(self):
        tally = Tally()
        found, parts = self.divided(with_peers(a_use("a", "ada"), a_peer("c", "cy")), a_use("b", "ben"))
        tally.add(found)
        assert {document: line.retrieved for (document, _), line in tally.lines.items()} == {"a": 1, "b": 1, "c": 1}
        assert tally.credited_to() == {"ada": parts["a"], "ben": parts["b"], "cy": parts["c"]}

    def test_a_joint_player_is_neither_of_its_owners(self):
        joint = with_peers(a_use("a", "ada"), a_peer("c", "cy"))
        assert unions([joint, a_use("b", "ada"), a_use("d", "cy"), a_use("e", "ada")]) == (0, 1, 2, 1)
        same = with_peers(a_use("a", "ada"), a_peer("c", "ada"))
        assert unions([same, a_use("b", "ada")]) == (0, 0)


@given(st.lists(st.integers(0, 200_000_000), min_size=2, max_size=5), st.integers(1, 3), st.randoms())
def test_a_copy_that_is_merged_changes_nobodys_share(worths, slots, generator: random.Random):
    """The record of k copies, of which one stands for all, is that of one."""
    games = [[worth / VALUE_ONE] for worth in worths]
    table = tuple(counterfactual(games, slots).tolist())
    uses = [a_use(f"d{i}", f"c{i}") for i in range(len(worths))]
    copied = list(uses)
    place = generator.randrange(len(uses))
    copied[place] = with_peers(uses[place], *(a_peer(f"copy {i}", f"c{place}") for i in range(7)))
    assert shares(a_record(uses=tuple(copied), values=table)) == shares(a_record(uses=tuple(uses), values=table))
