"""Whatever the text: spans are exact, and nothing that can be read is lost. Citations and credit are built on it."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from retrieval.chunking import PASSAGE_CHARS_MAX, SENTENCE_CHARS_MAX, passages, sentences

CHARACTERS = st.characters(exclude_categories=["Cs"])
# What makes cutting hard: ends, breaks of every kind, abbreviations, long runs, glyphs of several code points.
PIECES = st.sampled_from(
    [
        *(
            " ",
            "  ",
            "\n",
            "\r\n",
            "\r",
            "\n\n",
            "\n \t\n",
            "\t",
            "\u00a0",
            "\u2028",
            "\u2029",
            "\u200b",
            "\ufeff",
            "\x1c",
        ),
        *(".", ". ", "? ", "! ", "...", "\u2026", "\u3002", "\u061f ", "\u0964 ", '."', ".) ", ".[1] ", "\u201d "),
        *("Dr. ", "e.g. ", "U.S. ", "p. 5", "No. ", "1. ", "* ", "(", "[", "\u201c", "\u00ab"),
        *(
            "word ",
            "Word ",
            "e\u0301 ",
            "\U0001f469\u200d\U0001f467 ",
            "\U00010400",
            "\u65e5\u672c",
            "\u0939\u093f\u0928 ",
        ),
        *("word " * 150, "x" * (SENTENCE_CHARS_MAX + 1), "One more sentence of the usual length. " * 12, " " * 700),
    ]
)
TEXTS = st.one_of(st.text(CHARACTERS), st.lists(st.one_of(PIECES, st.text(CHARACTERS, max_size=8))).map("".join))


@given(TEXTS)
@example("")
@example(" \n\n ")
@example("x" * (2 * SENTENCE_CHARS_MAX))
@example("word " * 5_000)
@example("A.\n\n" * 2_000)
def test_sentences_are_exact_ordered_and_lose_nothing(text: str):
    position = 0
    for start, end in sentences(text):
        assert position <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        assert end - start <= SENTENCE_CHARS_MAX
        assert not text[position:start].strip(), "readable text between two sentences"
        position = end
    assert not text[position:].strip(), "readable text after the last sentence"


@given(TEXTS)
@example("")
@example("Word. " * 2_000)
@example(("x" * SENTENCE_CHARS_MAX + ". ") * 5)
def test_passages_hold_every_sentence_once_and_keep_to_their_size(text: str):
    parts = passages(text)
    assert [span for part in parts for span in part.sentences] == sentences(text)
    for part in parts:
        assert part.sentences
        assert (part.start, part.end) == (part.sentences[0][0], part.sentences[-1][1])
        assert part.end - part.start <= PASSAGE_CHARS_MAX or len(part.sentences) == 1
