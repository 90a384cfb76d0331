"""Copies in retrieval: they take no place and change no ranking; owners are named where no one was first."""

from __future__ import annotations

import random

import pytest

from retrieval.catalogue import Catalogue
from retrieval.documents import Terms
from retrieval.embedding import MiniLMEmbedder
from retrieval.retriever import Retrieval, RetrievedDocument, Retriever
from serving.generators import extractive
from tests.benchmarks import attacks
from tests.unit.retrieval.library import TEXTS, bring, document

BEES = "How do honey bees tell each other where flowers are?"


@pytest.fixture
def retriever(library: Catalogue, embedder: MiniLMEmbedder) -> Retriever:
    return Retriever(library, embedder)


def asked(retriever: Retriever, question: str = BEES, *, top_k: int = 5, price: int = 0) -> Retrieval:
    return retriever.retrieve(question, top_k=top_k, purpose="answer", price=price)


def ranking(retrieval: Retrieval) -> list[tuple[str, float]]:
    return [(each.document.id, each.score) for each in retrieval.documents]


def own_sentences(found: RetrievedDocument) -> list[str]:
    return [
        passage.text[start:end]
        for passage in found.passages
        for (start, end), own in zip(passage.sentences.tolist(), passage.own, strict=True)
        if own
    ]


@pytest.mark.parametrize("kind", attacks.COPIES)
def test_copies_change_neither_what_is_found_nor_its_scores(
    retriever: Retriever, library: Catalogue, embedder: MiniLMEmbedder, kind: str
):
    before = [ranking(asked(retriever, question)) for question in (BEES, *TEXTS)]
    for i in range(8):
        made = attacks.COPIES[kind](TEXTS["bees"], random.Random(i))
        bring(library, embedder, document(f"thief/{i}", made, contributor=f"thief-{i % 4}"))
    assert [ranking(asked(retriever, question)) for question in (BEES, *TEXTS)] == before


def test_a_copy_is_found_once_its_original_is_withdrawn(
    retriever: Retriever, library: Catalogue, embedder: MiniLMEmbedder
):
    bring(library, embedder, document("copy", TEXTS["bees"], contributor="bo"))
    assert "copy" not in dict(ranking(asked(retriever, top_k=50)))
    library.withdraw(["bees"])
    assert ranking(asked(retriever))[0][0] == "copy"


def test_a_copy_is_bound_by_the_terms_of_its_original(
    retriever: Retriever, library: Catalogue, embedder: MiniLMEmbedder
):
    """Else copying a text would be a way round its floor."""
    bring(library, embedder, document("copy", TEXTS["bees"], contributor="bo"))
    library.put([(document("bees", terms=Terms(None, 10)), None)], embedder.name)
    assert not {"bees", "copy"} & set(dict(ranking(asked(retriever, top_k=50, price=9))))
    assert ranking(asked(retriever, price=10))[0][0] == "bees"


def test_a_page_that_only_looks_like_a_copy_is_found_by_what_it_alone_names(
    retriever: Retriever, library: Catalogue, embedder: MiniLMEmbedder
):
    """Manuals say nearly the same of many things."""
    manual = (
        "The {0} command may only be given inside a section of the plan. It ends the section at once, and no other "
        "line of that section is carried out. If the section has a closing part, that is carried out first. When "
        "several sections lie inside each other, {0} concerns the innermost one. It takes no arguments."
    )
    for word in ("halt", "skip"):
        bring(library, embedder, document(word, manual.format(word), contributor=word))
    assert library.copies([library.get(["skip"])["skip"].number]), "else this shows nothing"
    for word in ("halt", "skip"):
        found = asked(retriever, f"Which section does the {word} command concern?")
        assert found.documents[0].document.id == word
        assert word in extractive.answer(found).text
    assert "skip" not in dict(ranking(asked(retriever, "Which command ends the section of a plan at once?", top_k=50)))


class TestSentences:
    def test_a_sentence_plays_for_who_registered_it_first(
        self, retriever: Retriever, library: Catalogue, embedder: MiniLMEmbedder
    ):
        dance = TEXTS["bees"].split(". ", maxsplit=1)[0] + "."
        more = f"{TEXTS['glacier']} {TEXTS['violin']} Gardeners know it. {dance}"
        bring(library, embedder, document("later", more, contributor="bo"))
        found = asked(retriever, "honey bees, flowers and the strings of a violin", top_k=50)
        by_id = {each.document.id: each for each in found.documents}
        assert dance in own_sentences(by_id["bees"])
        if "later" in by_id:
            assert dance not in own_sentences(by_id["later"])

    def test_a_passage_that_is_found_for_anothers_sentence_takes_no_place(
        self, retriever: Retriever, library: Catalogue, embedder: MiniLMEmbedder
    ):
        dance = TEXTS["bees"].split(". ", maxsplit=1)[0] + "."
        padding = ["Our index lists what else there is.", "Nobody has complained about it so far."]
        for i in range(8):
            filler = f"Number {i} of the series was printed in small letters on yellow paper for the members."
            text = " ".join([filler, dance, *padding, TEXTS["comet"] if i % 2 else TEXTS["chess"]])
            bring(library, embedder, document(f"padded/{i}", text, contributor=f"thief-{i}"))
        assert "bees" in dict(ranking(asked(retriever)))
        assert not [name for name, _ in ranking(asked(retriever)) if name.startswith("padded")]
        everything = ranking(asked(retriever, top_k=50))
        assert any(name.startswith("padded") for name, _ in everything), "where there is room it is found"
        assert sorted(everything, key=lambda each: -each[1]) == everything

    def test_pages_that_say_the_same_of_different_things_are_all_found(
        self, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        """They differ in one word, and it is the one that is asked for."""
        villages = {"Aldbury": "chess", "Brentor": "comet", "Cotwall": "paper", "Dunster": "glacier"}
        for name, more in villages.items():
            text = f"{name} is a village on the road from the coast to the market town, with a church and an inn."
            bring(catalogue, embedder, document(name.lower(), f"{text} {TEXTS[more]}"))
        retriever = Retriever(catalogue, embedder)
        for name in villages:
            found = asked(retriever, f"What kind of place is {name}?")
            assert len(found.documents) == len(villages)
            assert name in extractive.answer(found).text

    def test_a_question_is_not_answered_with_itself(
        self, retriever: Retriever, library: Catalogue, embedder: MiniLMEmbedder
    ):
        echo = attacks.echo(BEES, "by telephone")
        bring(library, embedder, document("echo", echo, contributor="liar"))
        found = asked(retriever)
        assert BEES in echo
        said = [text for each in found.documents for text in own_sentences(each)]
        assert BEES not in said
        assert not [text for text in said if "answer to the question" in text]

    def test_words_of_a_text_find_it_as_before(self, retriever: Retriever):
        """To ask with a sentence of the text is no echo: nothing in it asks."""
        sentence = TEXTS["volcano"].split(". ", maxsplit=1)[0] + "."
        found = asked(retriever, sentence)
        assert found.documents[0].document.id == "volcano"
        assert sentence in own_sentences(found.documents[0])
