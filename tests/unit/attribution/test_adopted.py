"""What each adopted rule gave when it was adopted: money was paid by it, so it gives that for ever.

Where one of these fails, a rule was changed: give the new one another version, and leave the old one as it was. The
vectors were made by 679746d, but for that of ``support/1``, which that commit computed in float32: to 51 units of 10^9
the same.
"""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from attribution.agreement import drawn
from attribution.policy import Policy
from attribution.runs import adopted
from attribution.runs.adopted import NEW_RUNS, Rules, UnknownRule
from attribution.runs.inputs import Hour
from attribution.runs.outcomes import Outcome
from attribution.runs.tally import CreditKey
from attribution.value_functions.support import VECTOR_ONE, Passage
from tests.records import a_record


class Reader:
    """Reads without a model: sentences end at full stops, and a vector counts words by their length."""

    def sentences(self, text):
        spans, start = [], 0
        for part in text.split("."):
            if part.strip():
                spans.append((start + len(part) - len(part.lstrip()), min(start + len(part) + 1, len(text))))
            start += len(part) + 1
        return spans

    def stems(self, text):
        return [word.strip(".,?").lower() for word in text.split()]

    def subject(self, text):
        return sorted({word for word in self.stems(text) if len(word) > 3})

    def vectors(self, text, spans):
        rows = np.zeros((len(spans), 4))
        for row, (start, end) in zip(rows, spans, strict=True):
            for word in self.stems(text[start:end]):
                row[len(word) % 4] += 1
        lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True)).astype(np.float32)
        return np.rint((rows.astype(np.float32) / np.maximum(lengths, 1)).astype(np.float64) * VECTOR_ONE).astype(int)


class Scorer:
    """A model to which every word costs what it is long, and which is surer the more it has read."""

    name = "golden"
    opening = (0,)

    def tokenize(self, text):
        lengths = [len(word) for word in text.split(" ")]
        starts = [sum(lengths[:i]) + i for i in range(len(lengths))]
        return lengths, [(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    def score(self, prompt, coalitions=None):
        chosen = range(2 ** len(prompt.documents)) if coalitions is None else coalitions
        doubts = [-2.0 / (1 + len(prompt.coalition(members)) - len(prompt.tail)) for members in chosen]
        return np.array([[doubt - token / 16 for token in prompt.tail[-prompt.scored :]] for doubt in doubts])


def key(name):
    return CreditKey(name, f"{name}/doc", "author", 1)


def counterfactual(function):
    return function([np.array([0.5, 0.125]), np.array([0.25]), np.array([0.0625, 0.03125])], 2).tolist()


def support(function):
    passages = [
        Passage("The tower was built in 1802 by Ada Holm. It has 212 steps.", "Tower of Vellmar"),
        Passage("Ada Holm raised the mill. The mill stands near the tower.", "The mill"),
        Passage("Bees make honey in August.", "Bees"),
        Passage(" ", "Blank"),
    ]
    game = function("When was the tower built?", "It was built in 1802. Ada Holm built it.", passages, Reader())
    return [game.scores.tolist(), game.baseline.tolist()]


def log_likelihood(function):
    documents = ["It was built in 1802", "by Ada Holm"]
    return function("When was it built?", "In 1802 by Ada", documents, Scorer()).values.tolist()


def owen(function):
    numerators, denominator = function(np.array([[0, 5, 7, 12, 1, 9, 8, 10**9]], np.int64), (0, 0, 1))
    return [numerators.tolist(), denominator]


def systematic(rule):
    shares, totals, cells = np.array([0.25, 0.5, -0.125, 0.9]), np.array([1_000_003, 17]), np.array([3, 1])
    many = rule.many(totals, cells, shares, [b"golden", b"vector"], lambda row: pytest.fail(f"{row} is in doubt"))
    return [rule.one(1_000_003, [5, -2, 0, 7, 333], b"golden"), many.tolist()]


def own_money(rule):
    weights = [rule.weight(*each) for each in ((Outcome(None, 500_000), 10), (Outcome(7, None), 3))]
    rows = [(key("a"), 4_000_000, 70), (key("b"), 3_000_000, 31), (key("c"), 2_000_000, 99), (key("a"), 2_500_000, -3)]
    return [weights, {moved.contributor: units for moved, units in rule.moved(rows, b"golden").items()}]


def floor(function):
    return function({"a": 100, "b": -33, "c": 0, "d": 50})


def hours(function):
    return function([Hour(490_000, 2, bytes(range(32))), Hour(489_999, 1, bytes(32))]).root.hex()


# For each rule, what is asked of it and what it gives.
GOLDEN = {
    "counterfactual/1": (
        counterfactual,
        [0, 625_000_000, 250_000_000, 750_000_000, 93_750_000, 625_000_000, 312_500_000, 750_000_000],
    ),
    "support/1": (
        support,
        [
            [[500_000_000, 13_082_811, 1_766_099, 0], [500_000_000, 119_682_528, 1_299_171, 0]],
            [1_050_660, 1_168_275],
        ],
    ),
    "log_likelihood/1": (log_likelihood, [655_816_011, 729_984_379, 712_809_078, 753_530_253]),
    "owen/1": (owen, [[[1_000_000_010, 1_000_000_012, 1_999_999_978]], 4]),
    "systematic/1": (systematic, [[14_577, -5_830, 0, 20_408, 970_848], [250_001, 500_001, -125_000, 15]]),
    "own-money/1": (own_money, [[3_500_000, 3_400_000], {"a": 28, "b": 2, "c": -30}]),
    "floor/1": (floor, {"a": 78, "b": 0, "c": 0, "d": 39}),
    "hours/1": (hours, "9c97f397025b16e9f705c00e7f9d3ccdd31e54bd5dc1d72520cc94509bf59a2e"),
}
REGISTRIES = (
    adopted.VALUE_FUNCTIONS,
    adopted.SOLVERS,
    adopted.ROUNDINGS,
    adopted.OUTCOMES,
    adopted.PAYMENTS,
    adopted.INPUTS,
)
ADOPTED = {name: rule for registry in REGISTRIES for name, rule in registry.items()}


def test_every_adopted_rule_has_a_golden_vector():
    assert set(ADOPTED) == set(GOLDEN)


@pytest.mark.parametrize("name", ADOPTED)
def test_an_adopted_rule_gives_what_it_gave(name):
    asked, given = GOLDEN[name]
    assert asked(ADOPTED[name]) == given


def test_the_sample_of_the_audit_is_drawn_as_it_was():
    found = [number for number in range(200) if drawn(a_record(format=1, id=f"r-{number}"), 50_000)]
    assert found == [75, 83, 137, 162]


def test_new_runs_name_their_rules():
    assert NEW_RUNS.names == {
        "solver": "owen/1",
        "rounding": "systematic/1",
        "outcomes": "own-money/1",
        "payments": "floor/1",
        "input": "hours/1",
    }
    assert Rules.of(NEW_RUNS.names) == NEW_RUNS


@pytest.mark.parametrize("kind", NEW_RUNS.names)
def test_a_rule_of_a_newer_version_is_refused_by_name(kind):
    with pytest.raises(UnknownRule, match=rf"{kind} 'newer/7' is not known to this version: upgrade Patronage"):
        Rules.of({**NEW_RUNS.names, kind: "newer/7"})


def test_a_kind_of_rule_of_a_newer_version_is_refused():
    with pytest.raises(UnknownRule, match="discounts"):
        Rules.of({**NEW_RUNS.names, "discounts": "none/1"})


@pytest.mark.parametrize(
    "body",
    [
        '{"version": 1, "data_share_ppm": 500000}',
        (
            '{"version": 3, "data_share_ppm": 612345, "value_function": "support/1", "generated_value_function": '
            '"log_likelihood/1", "solver": "owen/1", "rounding": "systematic/1", "ablation_ppm": 1000000}'
        ),
    ],
    ids=["the first", "every field"],
)
def test_a_policy_that_was_adopted_divides_as_it_did(body):
    policy = Policy.from_json(msgspec.json.decode(body))
    assert (policy.solver, policy.rounding) == ("owen/1", "systematic/1")
    assert policy.divide(3_777_000, 723_100) == {1: (1_526_950, 1_526_950), 3: (1_183_860, 1_870_040)}[policy.version]
