"""Attributing cases by ``log_likelihood/1``: from the table, estimated, and what cannot be done."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from decimal import Decimal
from math import fsum

import numpy as np
import pytest

from attribution.cases.case import CaseError, decode_case, encode_result
from attribution.cases.methods import METHODS, attribute_case
from attribution.games.estimation import BUDGET, BUDGET_MAX, BUDGET_MIN
from attribution.value_functions.likelihood import LikelihoodError, Prompt, Unscorable, log_likelihood
from serving.valuing.scoring_server import ScoringServer
from serving.valuing.text_analyzer import EmbeddingAnalyzer
from tests.benchmarks import attacks
from tests.scorer import Scorer

ANSWER = "Ottilie Brandt built it"
# One word of the answer each, and none of two passages alike.
PARTS = {
    "first": "Records of the harbour name a woman called Ottilie.",
    "second": "Among engineers of that coast the family Brandt was known.",
    "third": "Nobody knows why anyone ever built so far from shore.",
}
FILLERS = [
    "Sourdough bread needs flour, water, salt and a day of patience.",
    "The volcano threw ash for three weeks over nine valleys.",
    "A barge goes up the locks within two hours.",
    "Foxes come in from the dunes when winter is hard.",
    "Trams ran along Market Street until 1961.",
    "Cheese from the upper farms is smoked over beech.",
    "Her second symphony was first played to an empty hall.",
    "Glass is blown here after sundown only.",
    "Seven bridges cross a river without a name.",
    "Wool prices fell, and weavers went to sea.",
    "Old maps show this island twice.",
    "Their parliament meets in a former mint.",
]


class Words:
    """A model in which a word is probable if it was read, and twice the doubt for every lie that was."""

    name = "words"
    opening: Sequence[int] = ()

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self.scored: list[int] = []
        self.refuses: Exception | None = None
        self.blind = False

    def tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, spans, at = [], [], 0
        for word in text.split():
            start = text.index(word, at)
            at = start + len(word)
            ids.append(self._ids.setdefault(word.strip(".,:?").lower(), len(self._ids)))
            spans.append((start, at))
        return ids, spans

    def score(self, prompt: Prompt, coalitions: Sequence[int] | None = None) -> np.ndarray:
        if self.refuses:
            raise self.refuses
        every = list(range(2 ** len(prompt.documents)) if coalitions is None else coalitions)
        self.scored += every
        answer = prompt.tail[-prompt.scored :]
        lie = self._ids.get("lie")
        rows = []
        for members in every:
            read = prompt.coalition(members)[: -prompt.scored]
            rows.append([(-0.1 if token in read else -2.0) - 0.5 * read.count(lie) for token in answer])
        return np.asarray(rows) - (np.inf if self.blind else 0.0)


@pytest.fixture
def analyzer(embedder):
    return EmbeddingAnalyzer(embedder)


@pytest.fixture
def words():
    return Words()


def passage(name, text, **fields):
    return {"id": name, "text": text, **fields}


def case(passages, **fields):
    whole = {"id": "c1", "question": "Who did that?", "answer": ANSWER, "passages": list(passages), **fields}
    return decode_case(json.dumps(whole).encode())


def parts(**fields):
    return [passage(name, text, **fields) for name, text in PARTS.items()]


def fillers(count):
    return [passage(f"filler{i}", text) for i, text in enumerate(FILLERS[:count])]


def by_model(found, analyzer, scorer, **chosen):
    return attribute_case(found, analyzer, value_function="log_likelihood/1", scorer=scorer, **chosen)


def weights(result):
    return {share.passage_id: share.weight for share in result.shares}


def test_a_small_case_is_exact_and_says_no_more_than_others(analyzer, words):
    result = by_model(case([*parts(), *fillers(9)]), analyzer, words)
    plain = json.loads(encode_result(result))
    assert list(plain) == [
        "id", "shares", "model_residual", "method", "estimated", "value_all", "value_none", "value_function"
    ]  # fmt: skip
    assert (plain["estimated"], plain["value_function"]) == (False, "log_likelihood/1")
    assert [list(share) for share in plain["shares"]] == [["passage_id", "contributor", "weight", "raw"]] * 12
    assert sorted(words.scored) == list(range(2**12))
    assert plain["value_none"] == pytest.approx(np.exp(-2))
    assert fsum(weights(result).values()) == pytest.approx(result.value_all - result.value_none, abs=1e-12)
    assert weights(result)["first"] == pytest.approx(weights(result)["second"], abs=1e-9)
    assert all(abs(weights(result)[f"filler{i}"]) < 1e-9 for i in range(9))


def test_no_passages_leave_the_model_what_it_has(analyzer, words):
    result = by_model(case([]), analyzer, words)
    assert (result.shares, result.model_residual) == ((), 1.0)
    assert result.value_all == result.value_none == pytest.approx(np.exp(-2), abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lies", [0, 1, 3])
def test_weights_and_residual_sum_to_one(analyzer, words, method, lies):
    """Also where passages harm the answer, and where all of them together do."""
    told = [passage(f"lie{i}", f"{FILLERS[i]} A lie of {i}.", score=1.0) for i in range(lies)]
    found = case([*parts(score=0.5), *told], charge="1.000001")
    result = by_model(found, analyzer, words, method=method)
    assert fsum(weights(result).values()) + result.model_residual == pytest.approx(1, abs=1e-12)
    amounts = [share.amount["amount"] for share in result.shares] + [result.residual_amount["amount"]]
    assert sum(map(Decimal, amounts)) == Decimal("1.000001")
    if method == "shapley" and lies:
        assert weights(result)["lie0"] < 0
        assert Decimal(amounts[3]) < 0
    assert (result.value_all < result.value_none) == (lies == 3)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in unions"])
def test_a_large_case_is_estimated_and_says_how(analyzer, words, together):
    """Those who add nothing change nobody's value, so that of a small case is what must be found."""
    fields = {"contributor": "mary"} if together else {}
    named = [*parts()[:2], *(each | fields for each in parts()[2:])]
    others = [each | fields if i == 0 else each for i, each in enumerate(fillers(12))]
    exact = weights(by_model(case([*named, *others[:5]]), analyzer, words))
    words.scored.clear()
    result = by_model(case([*named, *others]), analyzer, words)

    assert len(words.scored) == len(set(words.scored)) <= BUDGET
    assert (result.estimated, result.budget, result.confidence) == (True, BUDGET, 0.95)
    assert fsum(weights(result).values()) == pytest.approx(result.value_all - result.value_none, abs=1e-12)
    for share in result.shares:
        low, high = share.interval
        assert low <= share.weight <= high
        assert share.weight == pytest.approx(exact.get(share.passage_id, 0.0), abs=0.02)
        assert low - 0.01 <= exact.get(share.passage_id, 0.0) <= high + 0.01
    again = by_model(case([*named, *others]), analyzer, Words())
    assert encode_result(again) == encode_result(result), "whoever recomputes it gets the same bytes"
    other = by_model(case([*named, *others], id="c2"), analyzer, words)
    assert other.seed != result.seed
    assert 0 <= result.seed < 2**48
    plain = json.loads(encode_result(result))
    assert {"budget", "seed", "confidence"} < plain.keys()
    assert all(len(share["interval"]) == 2 for share in plain["shares"])


def test_the_budget_is_kept(analyzer, words):
    found = case([*parts(), *fillers(10)])
    assert by_model(found, analyzer, words, budget=BUDGET_MIN).budget == BUDGET_MIN
    assert len(words.scored) <= BUDGET_MIN


def test_a_table_holds_twelve_documents(words):
    with pytest.raises(Unscorable, match="13 documents; the coalitions of 12 can be scored"):
        log_likelihood("what?", "it", [""] * 13, words)


def test_copies_are_read_once(analyzer, words):
    dice = random.Random(1)
    text = f"{PARTS['first']} {PARTS['second']} {FILLERS[0]}"
    work = passage("work", text, contributor="mary", registered_at="2026-01-01")
    copies = [
        passage(f"copy{i}", attacks.word_edits(text, dice), contributor=f"thief{i}", registered_at="2026-02-01")
        for i in range(12)
    ]
    alone = by_model(case([work, *parts()[2:]]), analyzer, words)
    found = by_model(case([*copies, work, *parts()[2:]]), analyzer, words)
    assert not found.estimated
    assert weights(found)["work"] == pytest.approx(weights(alone)["work"], rel=1e-9)
    assert all(weights(found)[each["id"]] == 0 for each in copies)


def test_other_methods_of_a_large_case(analyzer, words):
    found = case([*parts(), *fillers(10)])
    for method in ("banzhaf", "leave-one-out"):
        with pytest.raises(CaseError, match=f"{method} of 13 passages is not estimated: 12 can be tabulated"):
            by_model(found, analyzer, words, method=method)
    words.scored.clear()
    result = by_model(found, analyzer, words, method="equal")
    assert (result.estimated, sorted(words.scored)) == (False, [0, 2**13 - 1])


def test_what_is_missing_is_named(analyzer, words):
    with pytest.raises(CaseError, match=r"log_likelihood/1 needs an answer: .* support/1 takes the question"):
        by_model(case(parts(), answer=" "), analyzer, words)
    with pytest.raises(LikelihoodError, match="needs a language model"):
        by_model(case(parts()), analyzer, None)
    for budget in (BUDGET_MIN - 1, BUDGET_MAX + 1):
        with pytest.raises(CaseError, match=f"a budget of {budget} coalitions is not between 42 and 65536"):
            by_model(case(parts()), analyzer, words, budget=budget)
    owned = [each | {"contributor": "mary" if i < 2 else f"c{i}"} for i, each in enumerate([*parts(), *fillers(11)])]
    with pytest.raises(CaseError, match=r"too small for 14 players; the least is 522"):
        by_model(case(owned), analyzer, words, budget=521)
    words.refuses = Unscorable("too long for it")
    for count in (1, 11):
        with pytest.raises(CaseError, match="too long for it"):
            by_model(case([*parts(), *fillers(count)]), analyzer, words)
    words.refuses, words.blind = None, True
    for method in ("shapley", "equal"):
        with pytest.raises(CaseError, match="words gives no probability for some tokens of the answer"):
            by_model(case([*parts(), *fillers(11)]), analyzer, words, method=method)
    words.refuses = LikelihoodError("away")
    with pytest.raises(LikelihoodError, match="away"):
        by_model(case(parts()), analyzer, words)


@pytest.mark.parametrize("count", [4, 12])
def test_a_server_that_scores(analyzer, tmp_path, count):
    with Scorer(tmp_path / "model") as served:
        url, model = served.env["PATRONAGE_LIKELIHOOD_URL"], str(served.folder)
        upstream = ScoringServer(url, model, key=None, batch_tokens=16_384)
        said = passage("said", f"{FILLERS[0]} It is told that {ANSWER}.")
        result = by_model(case([said, *fillers(count)[1:], parts()[0]]), analyzer, upstream, budget=100)
    assert max(weights(result), key=weights(result).get) == "said"
    assert weights(result)["said"] > 0.3
    assert result.estimated == (count > 11)
