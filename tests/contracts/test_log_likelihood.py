"""log p(answer | coalition), locally and from a server: against the plain way, and where the cause is known."""

from __future__ import annotations

import statistics
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from attribution.games.shapley import owen_values
from attribution.value_functions.likelihood import (
    Likelihood,
    LikelihoodError,
    Prompt,
    Unscorable,
    log_likelihood,
    prepare,
)
from metering.records import VALUE_ONE
from serving.valuing.scoring_server import ScoringServer
from serving.valuing.tokenizer import ModelTokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import MambaConfig, MambaForCausalLM  # noqa: E402 # only after the check that it is there

from serving.valuing import causal_lm  # noqa: E402
from serving.valuing.causal_lm import CausalLM  # noqa: E402
from tests.language_models import babbler, cases, copier, naive, vllm_like  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BATCH_TOKENS = 16_384
DOCUMENTS = ["Paris is a city.", "Zoë lives in Rome. " * 4, "", "What is it?"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {kind: babbler(folder / kind, kind) for kind in ("gpt2", "llama")}
    return made | {"copier": copier(folder / "copier")}


def load(folder: Path, device: str = "cpu", batch_tokens: int = BATCH_TOKENS) -> CausalLM:
    return CausalLM(str(folder), batch_tokens=batch_tokens, device=device)


def a_prompt(folder: Path, documents: list[str]) -> Prompt:
    tokenizer = ModelTokenizer(str(folder))
    return prepare("what?", "Paris is it.", documents, tokenizer.tokenize, tokenizer.opening)


def plain(folder: Path, prompt: Prompt) -> np.ndarray:
    return naive(folder, [prompt.coalition(s) for s in range(2 ** len(prompt.documents))], prompt.scored)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("count", range(5))
def test_every_token_of_every_coalition_is_scored_as_in_a_prompt_of_its_own(models, kind, device, count):
    """Absolute positions and rotary ones: what a coalition lacks leaves no trace in it."""
    prompt = a_prompt(models[kind], DOCUMENTS[:count])
    expected = plain(models[kind], prompt)
    assert expected.std() > 0.1
    np.testing.assert_allclose(load(models[kind], device).score(prompt), expected, atol=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 900, 2_500, 1_000_000])
def test_the_size_of_the_batch_changes_no_more_than_rounding(models, batch_tokens):
    prompt = a_prompt(models["llama"], DOCUMENTS)
    found = load(models["llama"], batch_tokens=batch_tokens).score(prompt)
    np.testing.assert_allclose(found, load(models["llama"]).score(prompt), atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_some_coalitions_are_scored_as_among_all(models, kind):
    prompt = a_prompt(models[kind], DOCUMENTS)
    some = [15, 0, 6, 6, 9]
    expected = load(models[kind]).score(prompt)[some]
    np.testing.assert_allclose(load(models[kind]).score(prompt, some), expected, atol=1e-4)
    with vllm_like(models[kind], str(models[kind])) as url:
        served = ScoringServer(url, str(models[kind]), key=None, batch_tokens=BATCH_TOKENS)
        np.testing.assert_allclose(served.score(prompt, some), expected, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_case_gives_the_same_bits(models, device):
    prompt = a_prompt(models["gpt2"], DOCUMENTS)
    first, second = load(models["gpt2"], device), load(models["gpt2"], device)
    expected = first.score(prompt)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda model: model.score(prompt), [first, second] * 4):
            np.testing.assert_array_equal(found, expected)
    assert not torch.are_deterministic_algorithms_enabled(), "what others in the process run stays as it was"


@pytest.mark.parametrize("batch_tokens", [1_500, 4_000, 12_000])
def test_what_is_held_stays_within_the_budget(models, batch_tokens, monkeypatch):
    """Counted whenever the model is about to read: the keys and values of every batch that is alive."""
    prompt = a_prompt(models["gpt2"], ["Paris is a city. " * 2] * 6)
    peak = 0
    read, alive = CausalLM._read, weakref.WeakSet()

    def counting(self, rows, tokens, keep):
        nonlocal peak
        held = {id(each.layers[0][0]): each.seen.numel() for each in alive if each.layers}
        peak = max(peak, sum(held.values()) + len(rows.members) * len(tokens))
        return read(self, rows, tokens, keep)

    class Rows(causal_lm._Rows):
        """Without slots, so that it can be referred to weakly; and by what it is, not by what is in it."""

        __hash__, __eq__ = object.__hash__, object.__eq__

        def __init__(self, *fields):
            super().__init__(*fields)
            alive.add(self)

    monkeypatch.setattr(causal_lm, "_Rows", Rows)
    monkeypatch.setattr(CausalLM, "_read", counting)
    load(models["gpt2"], batch_tokens=batch_tokens).score(prompt)
    assert len(prompt) < peak <= batch_tokens


@pytest.mark.parametrize("device", DEVICES)
def test_the_document_with_the_fact_gets_the_credit(models, device):
    """The known cause: at least 0.9 in at least 95 of 100 cases, and what says nothing of it next to nothing."""
    model = load(models["copier"], device)
    causes, others = [], []
    for case in cases(60):
        found = log_likelihood(case.question, case.answer, case.documents, model)
        numerators, denominator = owen_values(found.values[None], tuple(range(len(case.documents))))
        credit = numerators[0] / denominator / VALUE_ONE
        assert credit.sum() == pytest.approx(found.value_all - found.value_none, abs=1e-9)
        assert found.value_all > 0.9
        assert found.value_none < 0.05
        for place, each in enumerate(credit / credit.sum()):
            (causes if place == case.cause else others).append(abs(float(each)))
    assert sum(cause >= 0.9 for cause in causes) >= 0.95 * len(causes)
    assert statistics.mean(others) <= 0.02


def test_a_document_that_misleads_has_a_negative_value(models):
    """Two documents answer differently: the wrong one takes from the right one, and the sign is kept."""
    documents = ["the code of key1 is fact1 fact2 .", "the code of key1 is fact3 fact4 ."]
    found = log_likelihood("what is the code of key1 ?", "fact1 fact2", documents, load(models["copier"]))
    numerators, denominator = owen_values(found.values[None], (0, 1))
    right, wrong = numerators[0] / denominator / VALUE_ONE
    assert found.values[1] > found.values[3] > found.values[0]
    assert right > 0.5
    assert wrong < -0.05


@pytest.mark.parametrize("batch_tokens", [1, BATCH_TOKENS])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "copier"])
def test_a_server_and_a_local_model_give_the_same_table(models, kind, batch_tokens):
    folder = models[kind]
    with vllm_like(folder, str(folder), key="secret") as url:
        served = ScoringServer(url, str(folder), key="secret", batch_tokens=batch_tokens)
        case = next(cases(1))
        there = log_likelihood(case.question, case.answer, case.documents, served)
        here = log_likelihood(case.question, case.answer, case.documents, load(folder))
    assert there.tokens == here.tokens
    np.testing.assert_allclose(there.nats, here.nats, atol=1e-4)
    np.testing.assert_allclose(there.values / VALUE_ONE, here.values / VALUE_ONE, atol=1e-4)


class TestRefusals:
    def test_a_case_that_is_longer_than_the_model_reads(self, models):
        with pytest.raises(Unscorable, match=r"have \d{4} tokens; transformers/gpt2 reads 512"):
            load(models["gpt2"]).score(a_prompt(models["gpt2"], ["Paris " * 500]))

    def test_a_model_that_is_not_there(self, tmp_path):
        with pytest.raises(LikelihoodError, match=r"no tokenizer\.json of"):
            CausalLM(str(tmp_path), batch_tokens=BATCH_TOKENS)

    def test_a_tokenizer_without_its_model(self, models, tmp_path):
        (tmp_path / "tokenizer.json").write_bytes((models["gpt2"] / "tokenizer.json").read_bytes())
        with pytest.raises(LikelihoodError, match="cannot be loaded"):
            CausalLM(str(tmp_path), batch_tokens=BATCH_TOKENS)

    def test_a_model_with_a_state_of_its_own(self, models, tmp_path):
        config = MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, state_size=4)
        MambaForCausalLM(config).save_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").write_bytes((models["gpt2"] / "tokenizer.json").read_bytes())
        with pytest.raises(LikelihoodError, match="a state of their own"):
            CausalLM(str(tmp_path), batch_tokens=BATCH_TOKENS)

    def test_a_server_that_is_not_there_does_not_know_the_model_or_wants_a_key(self, models):
        folder = models["gpt2"]
        prompt = a_prompt(folder, ["Paris"])
        with vllm_like(folder, "other", key="secret") as url:
            for key, said in ((None, "401"), ("secret", "404")):
                with pytest.raises(LikelihoodError, match=said):
                    ScoringServer(url, str(folder), key=key, batch_tokens=BATCH_TOKENS).score(prompt)
        with pytest.raises(LikelihoodError, match="cannot be reached"):
            ScoringServer(url, str(folder), key=None, batch_tokens=BATCH_TOKENS).score(prompt)

    def test_a_server_that_tells_of_other_tokens(self, models):
        folder = models["gpt2"]
        with vllm_like(folder, str(folder), tells=False) as url:
            served = ScoringServer(url, str(folder), key=None, batch_tokens=BATCH_TOKENS)
            with pytest.raises(LikelihoodError, match="does not give the log probabilities of these tokens"):
                served.score(a_prompt(folder, ["Paris"]))


def test_values_are_per_token_and_never_above_one():
    found = Likelihood(np.asarray([-4.0, -2.0, 1e-9, -np.inf]), 2)
    assert found.values.tolist() == [
        int(np.exp(-2) * VALUE_ONE),
        int(np.exp(-1) * VALUE_ONE),
        VALUE_ONE,
        0,
    ]
