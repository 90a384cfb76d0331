"""Attributing one case: players, copies, methods, amounts, and what is refused."""

from __future__ import annotations

import itertools
import json
import random
from decimal import Decimal

import pytest

from attribution.cases.case import CaseError, decode_case, encode_result
from attribution.cases.methods import METHODS, attribute_case
from serving.valuing.text_analyzer import EmbeddingAnalyzer
from tests.benchmarks import attacks

LIGHTHOUSE = "The Vellmar lighthouse was built in 1847 by the engineer Ottilie Brandt."
TOWER = "In 1847 the engineer Ottilie Brandt built the lighthouse of Vellmar, a tower of red brick."
BREAD = "Sourdough bread needs flour, water, salt and a day of patience."
QUESTION = "When was the Vellmar lighthouse built?"


@pytest.fixture
def analyzer(embedder):
    return EmbeddingAnalyzer(embedder)


def passage(name, text, **fields):
    return {"id": name, "text": text, **fields}


def case(*passages, **fields):
    whole = {"id": "c1", "question": QUESTION, "answer": "It was built in 1847.", "passages": passages, **fields}
    return decode_case(json.dumps(whole).encode())


def weights(result):
    return {share.passage_id: share.weight for share in result.shares}


def test_the_result_is_what_the_contract_says(analyzer):
    found = case(passage("a", LIGHTHOUSE, contributor="mary"), passage("b", BREAD))
    result = json.loads(encode_result(attribute_case(found, analyzer)))
    assert list(result) == [
        "id", "shares", "model_residual", "method", "estimated", "value_all", "value_none", "value_function"
    ]  # fmt: skip
    assert [list(share) for share in result["shares"]] == [["passage_id", "contributor", "weight", "raw"]] * 2
    assert [share["contributor"] for share in result["shares"]] == ["mary", None]
    assert (result["id"], result["method"], result["estimated"]) == ("c1", "shapley", False)
    assert result["value_function"] == "support/1"
    assert result["model_residual"] == pytest.approx(1 - result["value_all"] + result["value_none"], abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("answer", ["It was built in 1847.", "", "In 1847 [2], it seems [1] [2].", "Nobody knows."])
def test_weights_and_residual_sum_to_one(analyzer, method, answer):
    found = case(
        passage("a", LIGHTHOUSE, score=-0.5, contributor="mary"),
        passage("b", TOWER, score=1.5, contributor="bo"),
        passage("c", BREAD, score=0.0, contributor="mary"),
        answer=answer,
    )
    result = attribute_case(found, analyzer, method=method)
    assert sum(share.weight for share in result.shares) + result.model_residual == pytest.approx(1, abs=1e-12)
    assert all(share.weight >= 0 for share in result.shares)
    assert result.model_residual >= 0


def test_no_passages_leave_it_all_to_the_model(analyzer):
    for method in METHODS:
        result = attribute_case(case(), analyzer, method=method)
        assert (result.shares, result.model_residual) == ((), 1.0)


def test_the_methods_divide_as_their_names_say(analyzer):
    found = case(
        passage("a", "one two three four. Four [1] words.", score=1),
        passage("b", "one two", score=3),
        answer="Said [2], said [2], said [1], said [9].",
    )
    raw = {
        method: [share.raw for share in attribute_case(found, analyzer, method=method).shares]
        for method in ("token-count", "score-proportional", "citation-count", "equal")
    }
    assert raw == {
        "token-count": [7, 2],
        "score-proportional": [1, 3],
        "citation-count": [1, 2],
        "equal": [1, 1],
    }
    result = attribute_case(case(passage("a", LIGHTHOUSE), passage("b", BREAD)), analyzer, method="equal")
    assert weights(result)["a"] == weights(result)["b"] == (1 - result.model_residual) / 2


def test_quotes_are_citations_where_there_are_no_markers(analyzer):
    found = case(passage("a", BREAD), passage("b", f"{LIGHTHOUSE} It is red."), answer=f"{LIGHTHOUSE}\nIt is red.")
    assert [share.raw for share in attribute_case(found, analyzer, method="citation-count").shares] == [0, 2]


def test_leaving_one_out_finds_that_neither_of_two_equals_is_needed(analyzer):
    found = case(
        passage("a", LIGHTHOUSE),
        passage("b", "The Vellmar lighthouse is of 1847; Ottilie Brandt, an engineer, built it."),
    )
    result = attribute_case(found, analyzer, method="leave-one-out")
    assert sum(weights(result).values()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("names", ["one account", "many accounts"])
def test_exact_copies_do_not_pay(analyzer, count, names):
    """The owner of the copies earns what the original earned alone, and so do the others."""
    others = [passage("b", TOWER, contributor="bo"), passage("c", BREAD, contributor="cy")]
    alone = attribute_case(case(passage("a", LIGHTHOUSE, contributor="mary"), *others), analyzer)
    copies = [
        passage(
            f"a{i}", f"  {LIGHTHOUSE} \n" if i % 2 else LIGHTHOUSE, contributor="mary" if names[0] == "o" else f"m{i}"
        )
        for i in range(count)
    ]
    result = attribute_case(case(*copies, *others), analyzer)
    owned = sum(weight for name, weight in weights(result).items() if name.startswith("a"))
    assert owned == pytest.approx(weights(alone)["a"], rel=1e-9)
    assert weights(result)["b"] == pytest.approx(weights(alone)["b"], rel=1e-9)


WORK = (
    f"{LIGHTHOUSE} Its lamp burned whale oil until the harbour company laid a gas pipe along the mole. "
    "Storms took the gallery twice, and each time the keepers rebuilt it with timber from wrecks on the bar. "
    "Since the last keeper left, a club of sailors has painted the tower every spring."
)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("many", [False, True], ids=["one account", "many accounts"])
@pytest.mark.parametrize("dated", [False, True], ids=["undated", "dated"])
@pytest.mark.parametrize("kind", ["exact", "word edits", "sentence order"])
def test_near_copies_do_not_pay(analyzer, kind, dated, many, count):
    """Whoever made them, for the original's contributor and for everybody else it is as if they were not there."""
    dice = random.Random(count)
    others = [
        passage("b", TOWER, contributor="bo", registered_at="2020-01-01"),
        passage("c", BREAD, contributor="cy"),
        passage("d", "The Vellmar bakery makes bread of rye.", contributor="mary"),
    ]
    work = passage("a", WORK, contributor="mary", registered_at="2026-03-01T00:00:00Z" if dated else None)
    copies = [
        passage(
            f"copy{i}",
            attacks.COPIES[kind](WORK, dice),
            contributor=f"thief{i}" if many else "mary",
            registered_at=f"2026-03-0{i + 1}T00:00:00Z" if dated else None,
        )
        for i in range(1, count)
    ]
    alone = weights(attribute_case(case(work, *others), analyzer))
    found = weights(attribute_case(case(*copies, *others, work), analyzer))
    assert alone["a"] > 0.3
    for name in "bcd":
        assert found[name] == pytest.approx(alone[name], rel=0.02, abs=1e-6)
    earned = [found["a"], *(found[each["id"]] for each in copies)]
    assert sum(earned) == pytest.approx(alone["a"], rel=0.02)
    assert earned[1:] == ([0.0] * len(copies) if dated else [earned[0]] * len(copies))


@pytest.mark.parametrize(("kind", "most"), [("boiler-plate padding", 0.001), ("buried", 0.1)])
def test_a_copy_that_is_hidden_among_other_sentences_does_not_pay(analyzer, kind, most):
    """It is no copy as a whole; what an earlier one says is not read in it again. Words piled up have some evidence."""
    work = passage("a", WORK, contributor="mary", registered_at="2026-01-01")
    alone = weights(attribute_case(case(work, passage("b", BREAD, contributor="bo")), analyzer))
    text = attacks.HIDDEN[kind](WORK, random.Random(1))
    for date in ("2026-02-01", None):
        hidden = passage("hidden", text, contributor="thief", registered_at=date)
        found = weights(attribute_case(case(hidden, passage("b", BREAD, contributor="bo"), work), analyzer))
        assert found["hidden"] == pytest.approx(0, abs=most)
        assert found["a"] == pytest.approx(alone["a"], abs=most)
    undated = weights(attribute_case(case({**work, "registered_at": None}, passage("hidden", text)), analyzer))
    assert undated["hidden"] > 0.1


def test_a_passage_of_which_nothing_is_left_earns_nothing(analyzer):
    """Whatever its title: all that it says was said before, by two others."""
    first, second = WORK.split(". ", maxsplit=1)
    said = [
        passage("first", f"{first}.", contributor="mary", registered_at="2026-01-01"),
        passage("second", second, contributor="bo", registered_at="2026-01-02"),
    ]
    both = passage("both", WORK, title="Vellmar lighthouse", contributor="thief", registered_at="2026-01-03")
    found = weights(attribute_case(case(*said, both), analyzer))
    assert found["both"] == 0 < found["first"]


def test_a_part_of_a_text_is_its_copy_and_a_form_filled_anew_is_not(analyzer):
    part = passage("part", LIGHTHOUSE, contributor="thief", registered_at="2026-02-01")
    whole = passage("whole", WORK, contributor="mary", registered_at="2026-01-01")
    found = weights(attribute_case(case(part, whole), analyzer))
    assert found["part"] == 0 < found["whole"]
    form = "{} is a lighthouse of the northern coast, built in {}, with a lamp of {} candles and a keeper's house."
    forms = [
        passage(name, form.format(name, year, lamp), contributor=name, registered_at=f"{year}-01-01")
        for name, year, lamp in (("Osk", 1847, 300), ("Vellmar", 1902, 415))
    ]
    found = weights(attribute_case(case(*forms), analyzer))
    assert found["Vellmar"] > 0


def test_of_copies_the_first_registered_earns(analyzer):
    times = ["2026-03-01T00:00:00Z", "2026-01-31T23:30:00-01:00", None, "2026-02-01T00:29:59Z"]
    copies = [passage(str(i), LIGHTHOUSE, contributor=f"m{i}", registered_at=time) for i, time in enumerate(times)]
    for order in itertools.permutations(copies):
        found = weights(attribute_case(case(*order), analyzer))
        assert [name for name, weight in found.items() if weight] == ["3"]


def test_copies_of_unknown_age_share_equally(analyzer):
    found = weights(
        attribute_case(case(*[passage(str(i), LIGHTHOUSE, contributor=f"m{i}") for i in range(4)]), analyzer)
    )
    assert len(set(found.values())) == 1


def test_a_contributor_gains_nothing_by_cutting_a_work(analyzer):
    """The passages of one contributor are one player; under different names they would be several."""
    split = [passage("a1", LIGHTHOUSE), passage("a2", TOWER)]
    rival = passage("b", "Ottilie Brandt built the lighthouse at Vellmar in 1847, of granite.", contributor="bo")
    together = weights(attribute_case(case(*[each | {"contributor": "mary"} for each in split], rival), analyzer))
    apart = weights(attribute_case(case(*[each | {"contributor": each["id"]} for each in split], rival), analyzer))
    assert together["a1"] + together["a2"] < apart["a1"] + apart["a2"]
    assert together["b"] > apart["b"]


def test_the_order_of_passages_makes_no_difference(analyzer):
    passages = [
        passage("a", LIGHTHOUSE, contributor="mary", title="Vellmar lighthouse"),
        passage("b", TOWER, contributor="bo"),
        passage("c", BREAD, contributor="mary"),
        passage("d", LIGHTHOUSE, contributor="cy", title="A copy"),
    ]
    expected = weights(attribute_case(case(*passages), analyzer))
    for order in itertools.permutations(passages):
        assert weights(attribute_case(case(*order), analyzer)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("charge", "currency"),
    [("0.001000007", "USD"), ({"amount": "12.5", "currency": "EUR"}, "EUR"), (0.1, "USD"), ("0", "USD"), (3, "USD")],
)
def test_amounts_sum_to_the_charge(analyzer, charge, currency):
    found = case(passage("a", LIGHTHOUSE), passage("b", TOWER), passage("c", BREAD), charge=charge)
    result = attribute_case(found, analyzer)
    amounts = [share.amount for share in result.shares] + [result.residual_amount]
    assert {each["currency"] for each in amounts} == {currency}
    whole = Decimal(str(charge["amount"] if isinstance(charge, dict) else charge))
    assert sum(Decimal(each["amount"]) for each in amounts) == whole
    for share in result.shares:
        assert float(share.amount["amount"]) == pytest.approx(share.weight * float(whole), abs=2e-8)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "not valid JSON"),
        ('{"id": "1"', "not valid JSON"),
        ('{"deep": ' + "[" * 100_000, "JSON"),
        ("[]", "Expected `object`"),
        ('{"question": "q", "passages": []}', "missing required field `id`"),
        ('{"id": "1", "passages": []}', "missing required field `question`"),
        ('{"id": "1", "question": "q"}', "missing required field `passages`"),
        ('{"id": "1", "question": " ", "answer": " ", "passages": []}', "both blank"),
        ('{"id": "1", "question": "q", "passages": [{"id": "p"}]}', "missing required field `text`"),
        ('{"id": "1", "question": "q", "passages": [{"id": "p", "text": 5}]}', r"Expected `str`.*passages\[0\].text"),
        (
            '{"id": "1", "question": "q", "passages": [{"id": "p", "text": "t", "registered_at": "spring"}]}',
            "registered_at 'spring' is not a time",
        ),
        (json.dumps({"id": 1, "question": "q", "passages": [passage("p", "t")] * 1_001}), "1001 passages; the limit"),
    ],
)
def test_what_is_no_case_is_refused_with_the_reason(line, reason):
    with pytest.raises(CaseError, match=reason):
        decode_case(line.encode())
    with pytest.raises(CaseError, match="not UTF-8: byte 0xff at offset 0"):
        decode_case(b"\xff" + line.encode())


@pytest.mark.parametrize(
    ("charge", "reason"),
    [
        ("-1", "negative"),
        ("NaN", "not a decimal"),
        ("0.0000000001", "finer"),
        ({"amount": "1", "currency": "x"}, "ISO"),
    ],
)
def test_a_charge_that_is_no_amount_is_refused(analyzer, charge, reason):
    with pytest.raises(CaseError, match=f"charge: .*{reason}"):
        attribute_case(case(passage("a", BREAD), charge=charge), analyzer)


def test_what_the_method_lacks_is_named(analyzer):
    with pytest.raises(CaseError, match="score of every passage"):
        attribute_case(case(passage("a", BREAD, score=1), passage("b", TOWER)), analyzer, method="score-proportional")
    with pytest.raises(CaseError, match="no method 'shapely'; there are shapley"):
        attribute_case(case(), analyzer, method="shapely")
    with pytest.raises(CaseError, match="no value function 'support/0'; there is support/1"):
        attribute_case(case(), analyzer, value_function="support/0")
