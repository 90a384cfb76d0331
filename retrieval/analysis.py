"""Text analysis, one for indexing, searching and scoring: lower case, words, English stems."""

from __future__ import annotations

import re
import threading
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import Stemmer

_WORD = re.compile(r"\w+")
_WORD_CHARS_MAX: Final = 40
_STEMMERS = threading.local()  # a Snowball stemmer is not thread-safe; each thread has its own

_ASKING_WORDS = "what who whom whose which when where why how"
# Words that carry the form of a question and not its subject.
_QUESTION_WORDS = (
    f"{_ASKING_WORDS} is are was were do does did the a an of in to for on at by with "
    "from and or be been has have had that this it its as"
)


def stems(text: str) -> list[str]:
    """The stems of the words of ``text``, in order, repeats kept."""
    stemmer: Stemmer.Stemmer | None = getattr(_STEMMERS, "english", None)
    if stemmer is None:
        stemmer = _STEMMERS.english = Stemmer.Stemmer("english")
    composed = unicodedata.normalize("NFC", text)  # an accent may come as a character of its own
    words = [word[:_WORD_CHARS_MAX] for word in _WORD.findall(composed.lower())]
    found: list[str] = stemmer.stemWords(words)
    return found


@lru_cache(maxsize=1)
def _question_stems() -> frozenset[str]:
    return frozenset(stems(_QUESTION_WORDS))


@lru_cache(maxsize=1)
def interrogative_stems() -> frozenset[str]:
    """The stems of the words that ask."""
    return frozenset(stems(_ASKING_WORDS))


def subject_stems(question: str) -> list[str]:
    """The distinct stems that say what a question is about; all of them if nothing else is left."""
    every = list(dict.fromkeys(stems(question)))
    return [stem for stem in every if stem not in _question_stems()] or every


def term_ids(stemmed: Sequence[str]) -> npt.NDArray[np.uint32]:
    """A 32-bit id of each stem, shape ``[len(stemmed)]``: what passages store instead of the words."""
    return np.fromiter((zlib.crc32(stem.encode()) for stem in stemmed), np.uint32, len(stemmed))
