from __future__ import annotations

import time

import pytest

from retrieval.chunking import PASSAGE_CHARS_MAX, SENTENCE_CHARS_MAX, passages, sentences
from tests.unit.retrieval.library import TEXTS

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"  # one emoji of five code points
DECOMPOSED = "Cafe\u0301 society met daily."


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def paragraph(sentence_count: int, words: int = 12) -> str:
    return " ".join(" ".join(["Word", *["word"] * (words - 1)]) + "." for _ in range(sentence_count))


@pytest.mark.parametrize("text", ["", " ", "\n\n", " \t\r\n \u2003\u00a0"])
def test_nothing_but_white_space_has_no_sentences_and_no_passages(text: str):
    assert sentences(text) == []
    assert passages(text) == []


def test_spans_count_code_points_and_not_bytes_or_glyphs():
    text = f"{FAMILY} waved. {DECOMPOSED} \U00010400 is one code point."
    assert sentences(text) == [(0, 12), (13, 37), (38, 58)]
    assert cut(text) == [f"{FAMILY} waved.", DECOMPOSED, "\U00010400 is one code point."]


def test_surrounding_white_space_belongs_to_no_sentence():
    assert cut("  \u00a0First one.\u2003 \n Second one.\t\n") == ["First one.", "Second one."]


def test_the_same_sentence_twice_has_two_spans():
    assert sentences("No. It is not. No. It is not.")[-1][1] == 29
    assert len(set(sentences("Say it. Say it. Say it."))) == 3


@pytest.mark.parametrize(
    "sentence",
    [
        "Dr. Smith met Mr. Jones at 5 p.m. on Friday.",
        "It costs $3.50, e.g. at the corner shop.",
        "Version 2.0.1 was released by J. R. Hartley.",
        "See Fig. 3 for details.",
        "Is this one sentence?",
        'He said "Stop!" and left.',
    ],
)
def test_abbreviations_numbers_and_quotes_do_not_end_a_sentence(sentence: str):
    assert cut(f"Before it. {sentence} After it.") == ["Before it.", sentence, "After it."]


@pytest.mark.parametrize("gap", ["\n\n", "\n \t\n", "\n\n\n\n", " \n\n "])
def test_no_sentence_crosses_a_blank_line(gap: str):
    assert cut(f"A heading without a full stop{gap}The text goes on here") == [
        "A heading without a full stop",
        "The text goes on here",
    ]


def test_a_single_line_end_does_not_cut_a_sentence():
    assert cut("This sentence was\nwrapped by an editor. The next one was not.")[0] == (
        "This sentence was\nwrapped by an editor."
    )


def test_a_long_run_without_a_sentence_end_is_cut_at_white_space():
    words = [f"cell{i}" for i in range(1_000)]
    pieces = cut(" ".join(words))
    assert " ".join(pieces).split() == words
    assert all(SENTENCE_CHARS_MAX - 10 < len(piece) <= SENTENCE_CHARS_MAX for piece in pieces[:-1])


def test_a_long_run_without_white_space_is_cut_at_the_limit():
    text = "\u4e00" * (2 * SENTENCE_CHARS_MAX + 1)
    assert sentences(text) == [(0, 600), (600, 1200), (1200, 1201)]


@pytest.mark.parametrize("length", [SENTENCE_CHARS_MAX - 1, SENTENCE_CHARS_MAX])
def test_a_sentence_up_to_the_limit_is_whole(length: int):
    assert sentences("x" * length) == [(0, length)]


def test_a_sentence_that_is_followed_by_much_white_space_is_not_cut():
    assert cut("Alone." + " " * 5_000 + "Far away.") == ["Alone.", "Far away."]


@pytest.mark.parametrize("text", [". . . .", "...", "\n.\n", "!?!?", "\u200b", "-\n\n-\n\n-", "\ufeff"])
def test_punctuation_alone_gives_no_empty_sentence(text: str):
    spans = sentences(text)
    assert spans
    assert all(text[start:end].strip() == text[start:end] != "" for start, end in spans)


def test_a_short_text_is_one_passage_with_all_of_its_sentences():
    for text in TEXTS.values():
        (passage,) = passages(text)
        assert (passage.start, passage.end) == (0, len(text))
        assert list(passage.sentences) == sentences(text)


def test_passages_hold_every_sentence_once_and_in_order():
    text = "\n\n".join(paragraph(count) for count in (1, 9, 30, 2, 2, 2, 50))
    parts = passages(text)
    assert [span for part in parts for span in part.sentences] == sentences(text)
    assert all((part.start, part.end) == (part.sentences[0][0], part.sentences[-1][1]) for part in parts)
    assert all(part.end - part.start <= PASSAGE_CHARS_MAX for part in parts)


@pytest.mark.parametrize("count", range(17, 40))
def test_a_text_that_must_be_cut_has_no_lonely_last_sentence(count: int):
    lengths = [part.end - part.start for part in passages(paragraph(count))]
    assert len(lengths) > 1
    assert min(lengths) >= PASSAGE_CHARS_MAX // 4


def test_a_passage_ends_rather_at_a_blank_line_than_in_a_paragraph():
    text = f"{paragraph(10)}\n\n{paragraph(10)}"
    assert [text[part.start : part.end] for part in passages(text)] == [paragraph(10), paragraph(10)]


def test_a_text_at_the_limit_of_a_passage_is_not_cut():
    text = paragraph(17)[: PASSAGE_CHARS_MAX - 1] + "."
    assert len(text) == PASSAGE_CHARS_MAX
    assert len(passages(text)) == 1
    assert len(passages(text[:-1] + "s.")) == 2


def test_a_paragraph_that_is_cut_in_parts_has_the_sentences_that_it_has_as_a_whole():
    expected = [f"Sentence {number} of a paragraph {'that is long ' * (number % 9)}says this." for number in range(900)]
    assert cut(" ".join(expected)) == expected
    assert cut("A \u201cquote that nobody closes. " + " ".join(expected))[-800:] == expected[-800:]


# What opens a quote or a bracket is looked for its end.
OPENING = ["\u201c", "\u2018", "\u00ab", "\u300c", "(", "[", "{", "<", "`", "``", "'", '"', "\"'"]


@pytest.mark.parametrize(
    "text",
    [
        "word " * 100_000,
        "Word. " * 50_000,
        "\n" * 200_000 + "x",
        "x" * 500_000,
        "\n\nA." * 30_000,
        *(each * (200_000 // len(each)) for each in OPENING),
        *(f"{each}A. " * 30_000 for each in OPENING),
        *(f"A. {each}{' ' * 5_000}" * 60 + "x" for each in OPENING),
    ],
)
def test_a_long_text_is_cut_in_time_proportional_to_its_length(text: str):
    began = time.process_time()
    assert passages(text)[-1].end > len(text) - 2
    assert time.process_time() - began < 5


def test_a_text_is_cut_in_the_same_places_for_ever():
    """Records name passages by their place in the text."""
    parts = [" ".join(f"Sentence {i} of part {n} says this." for i in range(n * 9)) for n in (1, 2, 5)]
    found = passages("\n\n".join(parts))
    assert [(each.start, each.end, len(each.sentences)) for each in found] == [
        (0, 806, 25),
        (807, 1589, 24),
        (1590, 2348, 23),
    ]
