"""Whom ``patronage attribute`` credits on annotated cases; skipped where the annotations are not at hand."""

from __future__ import annotations

import pytest

from tests.benchmarks import attribute as bench

pytestmark = pytest.mark.skipif(not bench.DATA.is_dir(), reason=f"the annotated cases are not in {bench.DATA}")


def test_people_agree_on_questions_that_take_two_passages(embedder):
    found = bench.hotpotqa(bench.DATA / bench.HOTPOTQA, embedder)
    assert found["jaccard_shapley"] >= 0.85
    assert found["second_marked_passage"] >= 0.2


def test_the_paragraph_that_was_asked_of_is_credited(embedder):
    """A quarter of the paragraphs, from all topics: to embed the others takes most of the time, and changes little."""
    found = bench.squad(bench.DATA / bench.SQUAD, embedder, 80, 1, every=4)
    assert found["gold_shapley"] >= 0.75
    assert found["gold_shapley"] > found["gold_score-proportional"] > found["gold_equal"]
