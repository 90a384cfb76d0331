"""The tokens that are scored are the answer's, whatever the tokenizer merges, and the same in every coalition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from attribution.value_functions.likelihood import Prompt, Unscorable, prepare
from serving.valuing.tokenizer import ModelTokenizer
from tests.tokenizers import merging, tokenize, words

TOKENIZERS = {"merging": merging(), "words": words()}
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
ANSWERS = st.one_of(
    TEXTS, st.sampled_from(["Paris", ": Paris", "Zoë \U0001f469\u200d\U0001f467", "e\u0301", "?", "\n\nParis"])
)


def scored_text(tokenizer: Tokenizer, question: str, answer: str, prompt: Prompt) -> tuple[str, int]:
    """The text that the scored tokens cover, and how much of it is not the answer."""
    asked = f"Question: {question.strip()}\nAnswer: "
    text = asked + answer.strip()
    spans = tokenizer.encode(text, add_special_tokens=False).offsets
    start = spans[len(spans) - prompt.scored][0]
    assert all(end <= len(asked) for _, end in spans[: -prompt.scored])
    return text[start:], len(asked) - start


@pytest.mark.parametrize("name", TOKENIZERS)
@given(question=TEXTS, answer=ANSWERS, documents=st.lists(TEXTS, max_size=4))
def test_every_token_with_a_character_of_the_answer_is_scored_and_no_other(name, question, answer, documents):
    tokenizer = TOKENIZERS[name]
    try:
        prompt = prepare(question, answer, documents, tokenize(tokenizer), [0])
    except Unscorable:
        assert not answer.strip()
        return
    covered, more = scored_text(tokenizer, question, answer, prompt)
    assert covered.endswith(answer.strip())
    assert len(covered) == len(answer.strip()) + max(more, 0)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(question=TEXTS, documents=st.lists(TEXTS, max_size=4))
def test_a_coalition_is_the_head_its_documents_in_order_and_the_same_tail(name, question, documents):
    prompt = prepare(question, "Paris is it.", documents, tokenize(TOKENIZERS[name]), [0])
    for members in range(2 ** len(documents)):
        tokens = prompt.coalition(members)
        kept = [part for i, part in enumerate(prompt.documents) if members >> i & 1]
        assert tokens == [*prompt.head, *(token for part in kept for token in part), *prompt.tail]
        alone = prepare(question, "Paris is it.", [], tokenize(TOKENIZERS[name]), [0])
        assert (alone.tail, alone.scored, alone.head) == (prompt.tail, prompt.scored, prompt.head)
    assert len(prompt) == len(prompt.coalition(2 ** len(documents) - 1))


def test_a_token_that_is_merged_across_where_the_answer_begins_is_scored():
    tokenizer = TOKENIZERS["merging"]
    prompt = prepare("what?", "Paris is it.", [], tokenize(tokenizer))
    covered, more = scored_text(tokenizer, "what?", "Paris is it.", prompt)
    assert more > 0, "this tokenizer merges the answer with what stands before it"
    assert covered == "Question: what?\nAnswer: Paris is it."[-len(covered) :]


def test_bytes_of_one_character_are_scored_together():
    prompt = prepare("what?", "\U0001f469", [], tokenize(TOKENIZERS["merging"]))
    assert prompt.scored >= 4


def test_a_blank_answer_is_refused():
    with pytest.raises(Unscorable, match="blank"):
        prepare("what?", " \n", [], tokenize(TOKENIZERS["merging"]))


def test_a_tokenizer_that_loses_the_order_of_the_text_is_refused():
    def backwards(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        spans = [(i, i + 1) for i in range(len(text))][::-1]
        return [0] * len(spans), spans

    with pytest.raises(Unscorable, match="order"):
        prepare("what?", "it", [], backwards)


@pytest.mark.parametrize(("name", "opening"), [("merging", []), ("words", ["<s>"])])
def test_a_prompt_begins_as_the_model_is_used_to(name, opening, tmp_path):
    TOKENIZERS[name].save(str(tmp_path / "tokenizer.json"))
    found = ModelTokenizer(str(tmp_path))
    assert [TOKENIZERS[name].id_to_token(token) for token in found.opening] == opening
    assert found.tokenize("Paris is it.") == tokenize(TOKENIZERS[name])("Paris is it.")
    assert found.model == tmp_path.name, "where it lies is nobody's business"
