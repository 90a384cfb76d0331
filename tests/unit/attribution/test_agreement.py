"""The audit's measures against their definitions and scipy's; its draw; what statements show of it."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from attribution.agreement import (
    LISTED_MAX,
    Ablation,
    Agreement,
    agreement,
    drawn,
    kendall_tau,
    linear_datamodeling_score,
)
from attribution.games.values import counterfactual
from attribution.runs.run import owen_shares
from metering.records import PPM, VALUE_ONE, Split
from tests.records import a_record, a_use


def additive(worths: list[int]) -> np.ndarray:
    return np.asarray([sum(w for i, w in enumerate(worths) if s >> i & 1) for s in range(2 ** len(worths))], np.int64)


def an_agreement(record: str, lds: float | None, *contributors: str) -> Agreement:
    return Agreement(
        record=record, contributors=contributors, value_function="rerun/1", kendall_tau=0.5, lds=lds, masks=4
    )


def plain_tau(first: list[int], second: list[int]) -> float:
    """Tau-b as Kendall defines it."""
    signs = [
        (np.sign(first[i] - first[j]), np.sign(second[i] - second[j])) for i, j in combinations(range(len(first)), 2)
    ]
    tied = [sum(1 for pair in signs if pair[side]) for side in (0, 1)]
    return float(sum(a * b for a, b in signs)) / (tied[0] * tied[1]) ** 0.5


def test_the_same_order_agrees_and_the_opposite_disagrees():
    assert kendall_tau([1, 2, 3], [10, 20, 21]) == pytest.approx(1)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_what_tells_nothing_apart_has_no_order():
    assert kendall_tau([1, 1], [2, 2]) is None
    assert kendall_tau([1], [2]) is None
    assert kendall_tau([1, 1], [1, 2]) == 0
    assert linear_datamodeling_score([0, 0], np.zeros(4, np.int64)) is None
    assert linear_datamodeling_score([0, 0], additive([0, 5])) == 0


def test_tau_is_kendalls_with_ties():
    dice = random.Random(1)
    for _ in range(200):
        first, second = ([dice.randrange(4) for _ in range(6)] for _ in range(2))
        if len(set(first)) > 1 and len(set(second)) > 1:
            assert kendall_tau(first, second) == pytest.approx(plain_tau(first, second), abs=1e-12)


def test_tau_and_the_score_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    dice = random.Random(2)
    for _ in range(200):
        paid = [dice.randrange(5) for _ in range(5)]
        table = np.asarray([0, *(dice.randrange(6) for _ in range(31))], np.int64)
        other = [dice.randrange(4) for _ in paid]
        if len(set(paid)) > 1 and len(set(other)) > 1 and len(set(table.tolist())) > 1:
            assert kendall_tau(paid, other) == pytest.approx(stats.kendalltau(paid, other).statistic, abs=1e-12)
            sums = [sum(p for i, p in enumerate(paid) if s >> i & 1) for s in range(32)]
            expected = stats.spearmanr(sums, table).statistic
            assert linear_datamodeling_score(paid, table) == pytest.approx(expected, abs=1e-12)


def test_shares_that_add_up_to_the_game_have_score_one():
    worths = [1, 2, 4, 8]
    assert linear_datamodeling_score(worths, additive(worths)) == pytest.approx(1)
    assert linear_datamodeling_score(worths[::-1], additive(worths)) < 0.5


def test_a_game_agrees_with_itself():
    table = counterfactual([[0.5, 0.1], [0.2], [0.05]], 2)
    uses = tuple(a_use(name, name) for name in "abc")
    record = a_record(uses=uses, values=tuple(table.tolist()))
    found = agreement(record, owen_shares(record)[0], table, "rerun/1", "")
    assert found.kendall_tau == pytest.approx(1)
    assert found.lds is not None
    assert found.lds > 0.9
    assert (found.masks, found.low) == (8, False)
    assert found.record == record.leaf().hex()


def test_the_dearer_game_is_solved_with_the_players_of_the_record():
    """Two documents of one contributor are one player, so a third that is worth as much gets half, not a third."""
    uses = (a_use("a1", "ada"), a_use("a2", "ada"), a_use("b", "ben", splits=(Split("tom", "author", PPM),)))
    table = np.asarray([0, *[VALUE_ONE] * 7], np.int64)
    record = a_record(uses=uses, values=tuple(table.tolist()))
    found = agreement(record, [1, 1, 2], table, "rerun/1", "")
    assert found.kendall_tau == pytest.approx(1)
    assert found.contributors == ("ada", "ben", "tom")


def test_documents_that_were_not_read_do_not_count():
    record = a_record()
    found = agreement(record, [2, 1, 0], np.asarray([0, 4, 1, 5], np.int64), "rerun/1", "")
    assert found.kendall_tau == pytest.approx(1)


def test_disagreement_is_flagged():
    record = a_record()
    assert agreement(record, [1, 5], np.asarray([0, 5, 1, 6], np.int64), "rerun/1", "").low


def test_the_draw_takes_its_part_and_only_of_what_earned():
    records = [a_record(id=f"r{i}") for i in range(4_000)]
    taken = [record for record in records if drawn(record, 100_000)]
    assert 330 < len(taken) < 470, "a tenth, within four standard deviations"
    assert all(drawn(record, 200_000) for record in taken), "a larger sample has the smaller one in it"
    assert [drawn(record, PPM) for record in records[:9]] == [True] * 9
    assert [drawn(record, 0) for record in records[:9]] == [False] * 9
    assert not drawn(a_record(values=(0, 0, 0, 0)), PPM)


def test_a_summary_counts_what_is_defined_and_does_not_depend_on_order():
    many = [an_agreement(f"{i:02}", 0.1 * i, "ada") for i in range(10)] + [an_agreement("x", None, "ben")]
    summary = Ablation(20, tuple(many)).summary()
    assert summary == {
        "sampled": 20,
        "recomputed": 11,
        "value_functions": {"rerun/1": 11},
        "kendall_tau": 0.5,
        "lds": 0.45,
        "masks": 44,
        "low": 5,
    }
    assert Ablation(20, tuple(many[::-1])).summary() == summary
    assert Ablation().summary()["lds"] is None


def test_a_statement_lists_ones_own_queries_those_that_agree_least_first():
    many = [an_agreement(f"{i:03}", i / 200, "ada", "ben") for i in range(150)] + [an_agreement("x", 0.9, "ben")]
    own = Ablation(151, tuple(many)).of("ada")
    assert (own["recomputed"], own["low"], len(own["queries"])) == (150, 100, LISTED_MAX)
    assert [each["record"] for each in own["queries"]] == [f"{i:03}" for i in range(100)]
    assert "ben" not in str(own), "who else was used is nobody else's business"
    assert Ablation(151, tuple(many)).of("zoe") == {"recomputed": 0, "low": 0, "queries": []}
