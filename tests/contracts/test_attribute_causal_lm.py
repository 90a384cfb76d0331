"""Attributing cases by a language model in this process: it gives the fact of its documents, so the cause is known."""

from __future__ import annotations

import pytest

from attribution.cases.case import Case, CasePassage
from attribution.cases.methods import attribute_case

pytest.importorskip("torch")
pytest.importorskip("transformers")

from serving.valuing.causal_lm import CausalLM
from serving.valuing.text_analyzer import EmbeddingAnalyzer
from tests.language_models import copier


@pytest.mark.parametrize("count", [5, 12])
def test_the_passage_with_the_fact_is_credited(embedder, tmp_path, count):
    model = CausalLM(str(copier(tmp_path / "copier")), batch_tokens=16_384, device="cpu")
    texts = [f"filler{i % 6} filler{i // 6} filler{i % 5} filler{i % 4}" for i in range(count)]
    passages = [CasePassage(i, text) for i, text in enumerate([*texts, "the code of key1 is fact1 fact2 ."])]
    case = Case("c1", "what is the code of key1 ?", tuple(passages), "fact1 fact2")
    found = attribute_case(
        case, EmbeddingAnalyzer(embedder), value_function="log_likelihood/1", scorer=model, budget=60
    )
    assert found.estimated == (count == 12)
    assert found.value_all - found.value_none > 0.8
    assert found.shares[-1].weight > 0.9 * (found.value_all - found.value_none)
