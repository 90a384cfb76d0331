from __future__ import annotations

import unicodedata
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from retrieval.analysis import stems, subject_stems, term_ids
from tests.unit.retrieval.library import TEXTS


def test_stems_keep_order_and_repeats():
    assert stems("Bees dance; the dancing bee danced.") == ["bee", "danc", "the", "danc", "bee", "danc"]


@pytest.mark.parametrize(
    ("one", "other"), [("WALKING", "walks"), ("connection", "connected"), ("Öl", "öl"), ("ISTANBUL", "istanbul")]
)
def test_forms_of_a_word_share_a_stem(one: str, other: str):
    assert stems(one) == stems(other)


@pytest.mark.parametrize("text", ["", " ", "?!", "\u2014 ...", "\U0001f469"])
def test_a_text_without_words_has_no_stems(text: str):
    assert stems(text) == []
    assert subject_stems(text) == []


def test_digits_underscores_and_other_scripts_are_words():
    assert stems("In 1870: os_path, \u65e5\u672c \u041c\u043e\u0441\u043a\u0432\u0430") == [
        "in",
        "1870",
        "os_path",
        "\u65e5\u672c",
        "\u043c\u043e\u0441\u043a\u0432\u0430",
    ]


def test_a_word_without_end_is_cut_so_that_no_term_is_huge():
    assert stems("a" * 1_000_000) == ["a" * 40]


def test_a_letter_and_its_accent_are_one_word_however_they_are_encoded():
    """Text from PDFs and from macOS often has accents as characters of their own."""
    text = "caf\u00e9 na\u00efve"
    assert stems(unicodedata.normalize("NFD", text)) == stems(unicodedata.normalize("NFC", text))


def test_the_subject_of_a_question_has_no_question_words_and_no_repeats():
    assert subject_stems("Who built the lighthouse, and when was the Lighthouse built?") == ["built", "lighthous"]


def test_a_question_of_nothing_but_question_words_keeps_them():
    """The Who, and It, are subjects too."""
    assert subject_stems("What is it?") == ["what", "is", "it"]


def test_term_ids_are_the_crc32_of_the_stems():
    """They are stored: another function would make every catalogue unreadable."""
    ids = term_ids(["bee", "caf\u00e9"])
    assert ids.dtype == np.uint32
    assert ids.tolist() == [zlib.crc32(b"bee"), zlib.crc32("caf\u00e9".encode())] == [2_436_942_953, 2_561_491_637]
    assert term_ids([]).shape == (0,)


def test_threads_do_not_disturb_each_other():
    """A Snowball stemmer has state, so each thread must have its own."""
    texts = list(TEXTS.values()) * 50
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(stems, texts)) == [stems(text) for text in texts]
