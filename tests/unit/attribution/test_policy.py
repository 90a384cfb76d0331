"""The policy: which value functions it may name, and what it makes of an old one."""

from __future__ import annotations

import pytest

from attribution.policy import Policy, PolicyError

OLD = {
    "version": 3, "data_share_ppm": 400_000, "value_function": "counterfactual/1", "solver": "owen/1",
    "rounding": "systematic/1", "ablation_ppm": 10_000,
}  # fmt: skip


def test_a_policy_pays_extractive_answers_by_their_counterfactual_and_others_by_support():
    policy = Policy(1, 500_000)
    assert policy.values_by(generated=False) == "counterfactual/1"
    assert policy.values_by(generated=True) == "support/1"


@pytest.mark.parametrize("function", ["support/1", "log_likelihood/1"])
def test_either_function_may_be_another(function: str):
    policy = Policy(1, 500_000, value_function=function, generated_value_function=function)
    assert {policy.values_by(generated=each) for each in (False, True)} == {function}
    assert Policy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("value_function", "support/2", "choose counterfactual/1 or support/1 or log_likelihood/1"),
        ("value_function", "rerun/1", "choose counterfactual/1"),
        ("value_function", "unvalued", "choose counterfactual/1"),
        ("value_function", "", "value_function cannot be ''"),
        ("generated_value_function", "counterfactual/1", "choose support/1 or log_likelihood/1"),
        ("generated_value_function", "extractive-proxy/1", "choose support/1"),
        ("solver", "banzhaf/1", "choose owen/1"),
        ("rounding", "largest-remainder/1", "choose systematic/1"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_what_can(field: str, value: str, said: str):
    with pytest.raises(PolicyError, match=said):
        Policy(1, 500_000, **{field: value})
    with pytest.raises(PolicyError, match=said):
        Policy.from_json({**OLD, field: value})


@pytest.mark.parametrize("value", [1, None, ["support/1"]])
def test_what_is_no_name_is_refused(value):
    with pytest.raises(PolicyError):
        Policy.from_json({**OLD, "generated_value_function": value})


def test_a_policy_from_before_there_was_a_choice_pays_by_support():
    policy = Policy.from_json(OLD)
    assert policy.generated_value_function == "support/1"
    assert {**policy.to_json(), **OLD} == policy.to_json()
