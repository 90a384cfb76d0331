"""log p(answer | coalition): the credit of a known cause, and speed against one plain pass for each coalition."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attribution.games.shapley import owen_values
from attribution.value_functions.likelihood import log_likelihood, prepare
from tests.benchmarks.measure import Result, rates

CASES, MEMBERS, BATCH_TOKENS = 100, 6, 65_536


def run() -> Iterator[Result]:
    from serving.valuing.causal_lm import CausalLM  # noqa: PLC0415 # heavy
    from tests.language_models import babbler, cases, copier, loaded, log_probabilities  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        model = CausalLM(str(copier(Path(scratch) / "copier")), batch_tokens=BATCH_TOKENS, device="cpu")
        causes, others, equal = [], [], []
        for case in cases(CASES):
            table = log_likelihood(case.question, case.answer, case.documents, model).values
            shares = owen_values(table[None], tuple(range(len(case.documents))))[0][0].astype(np.float64)
            shares /= shares.sum()
            causes.append(float(shares[case.cause]))
            others += [abs(float(each)) for i, each in enumerate(shares) if i != case.cause]
            equal.append(1 / len(case.documents))
        reached = 100 * statistics.mean(float(cause >= 0.9) for cause in causes)
        yield Result("cases where the known cause gets ≥ 0.9", reached, "the goal", 95.0, "%")
        credit, split = (100 * statistics.mean(each) for each in (causes, equal))
        yield Result("credit of the known cause", credit, "equal split", split, "%")
        kept = 100 * (1 - statistics.mean(others))
        yield Result("credit that a null document does not get", kept, "the goal", 98.0, "%")

        folder = babbler(Path(scratch) / "babbler", "llama")
        model = CausalLM(str(folder), batch_tokens=BATCH_TOKENS, device="cpu")
        documents = ["Paris is a city. " * 6] * MEMBERS
        prompt = prepare("what?", "Paris is it.", documents, model.tokenize, model.opening)
        prompts = [prompt.coalition(members) for members in range(2**MEMBERS)]
        rival = loaded(folder)
        ours, theirs = rates(
            len(prompts),
            lambda: model.score(prompt),
            lambda: [log_probabilities(rival, tokens) for tokens in prompts],
            rounds=2,
        )
        yield Result(f"coalitions of {MEMBERS} documents", ours, "transformers, a pass each", theirs, "/s")
