"""Evidence: what each sentence of a passage has for a question.

Three measures a sentence, computed the same way for ranking, for answering and for attribution:

- ``similarity``: cosine of the question and the sentence in its passage's context;
- ``coverage``: which part of the question's subject it names, weighted by inverse document frequency;
- ``lexical``: BM25 of the sentence (Robertson and Zaragoza 2009), with a fixed mean length.

What a sentence has depends neither on what is weighed beside it nor on the processor: sums are taken in integers, of
which ``_ONE`` stands for 1, and cosines as :mod:`retrieval.similarity` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from retrieval.analysis import interrogative_stems, stems, term_ids
from retrieval.embedding import Vector
from retrieval.near_duplicates import RUN, runs
from retrieval.passage_table import PreparedPassage
from retrieval.similarity import Floats, cosines

_K1: Final = 1.2
_B: Final = 0.75
_MEAN_WORDS: Final = 22.0
_ONE: Final = 1 << 32
_ECHO: Final = 0.6
"""A sentence with this part of the question's wording says the question again."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question as retrieval understands it."""

    text: str
    vector: Vector
    terms: npt.NDArray[np.uint32]
    """Ids of the distinct stems of its subject."""
    idf: Floats
    """Inverse document frequency of each of ``terms``."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The measures of the sentences of one passage, each of shape ``[sentences]``."""

    similarity: Floats
    coverage: Floats
    lexical: Floats


def weigh(question: Question, passages: Sequence[PreparedPassage]) -> list[Evidence]:
    """The evidence of every sentence of every passage, computed in one sweep."""
    if not passages:
        return []
    lengths = np.concatenate([passage.sentence_terms for passage in passages])
    owner = np.repeat(np.arange(len(lengths)), lengths)
    terms = np.concatenate([passage.terms for passage in passages])
    counts = np.zeros((len(question.terms), len(lengths)))
    for i, term in enumerate(question.terms):
        counts[i] = np.bincount(owner[terms == term], minlength=len(lengths))
    weights = _units(question.idf)[:, None]
    coverage = (weights * (counts > 0)).sum(axis=0) / (int(weights.sum()) or 1)
    damping = _K1 * (1 - _B + _B * lengths / _MEAN_WORDS)
    lexical = _units(question.idf[:, None] * (counts * (_K1 + 1) / (counts + damping))).sum(axis=0) / _ONE
    similarity = cosines(np.concatenate([passage.sentence_vectors for passage in passages]), question.vector)
    edges = np.cumsum([len(passage.sentence_terms) for passage in passages])[:-1]
    return [
        Evidence(*parts)
        for parts in zip(np.split(similarity, edges), np.split(coverage, edges), np.split(lexical, edges), strict=True)
    ]


def _units(values: Floats) -> npt.NDArray[np.int64]:
    units: npt.NDArray[np.int64] = np.rint(values * _ONE).astype(np.int64)
    return units


def echoes(question: str, passages: Sequence[PreparedPassage]) -> list[npt.NDArray[np.bool_]]:
    """For each passage, which sentences say the question again, asking words included.

    Such a sentence is like the question in every measure, whatever it says of the answer, and is easily planted.
    """
    stemmed = stems(question)
    asking = np.asarray([stem in interrogative_stems() for stem in stemmed], np.bool_)
    counts = [len(passage.sentence_terms) for passage in passages]
    edges = np.cumsum([0, *counts])
    if not asking.any() or not passages:
        return np.split(np.zeros(edges[-1], np.bool_), edges[1:-1])
    asked, _ = runs(term_ids(stemmed), np.asarray([len(stemmed)], np.int32))
    with_asking = asked[[bool(asking[i : i + RUN].any()) for i in range(len(asked))]]
    hashes = np.concatenate([passage.shingled[0] for passage in passages])
    owner = np.concatenate([passage.shingled[1] + edge for passage, edge in zip(passages, edges[:-1], strict=True)])
    said = np.flatnonzero(np.isin(hashes, asked))
    part = np.bincount(owner[said], minlength=edges[-1]) / len(np.unique(asked))
    asks = np.bincount(owner[said][np.isin(hashes[said], with_asking)], minlength=edges[-1])
    return np.split((part >= _ECHO) & (asks > 0), edges[1:-1])
