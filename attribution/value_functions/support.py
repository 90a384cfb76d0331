"""The value function ``support/1``: how well the passages of a coalition support an answer.

It reads any answer, whoever wrote it, and takes no language model: what counts is the similarity of embeddings and the
words that passages share with the question and the answer. Each sentence of the answer is a key point (the question is,
if the answer says nothing), a coalition has for a key point what its best passage has, and so the game is a max game
(:mod:`attribution.games.max_games`). ``docs/concepts.md`` gives the formulas.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import fsum, sqrt
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from attribution.arithmetic import Floats, exponential, logarithm
from attribution.games.max_games import MaxGame
from metering.records import VALUE_ONE

SUPPORT: Final = "support/1"

POINTS_MAX: Final = 64
"""Sentences of an answer that are key points; what comes after them is not read."""
READ_CHARS: Final = 600
"""About how many characters of a case's passages are embedded: it bounds the time that a case takes."""

# What a passage can have for a key point, and its weight. The sum is divided by the weights of what applies.
_SIMILARITY: Final = 1.0
_COVERAGE: Final = 1.0
_NAMED: Final = 0.5
_ANSWERS: Final = 0.75
_BRIDGE: Final = 0.4

_BACKGROUND: Final = 0.2
"""The evidence that any passage of a search has, which therefore earns nothing."""
_MARGIN: Final = 0.15
_SOFTNESS: Final = 0.05
"""Evidence this far behind the best is worth half of it, and how fast it falls there."""

_SAYS_NOTHING: Final = frozenset({"yes", "no", "true", "false"})
_PARENTHESES: Final = re.compile(r"\(.*?\)")

VECTOR_ONE: Final = 1 << 24
"""The length of an embedding. They are in integers, so that the order in which products are added up is none."""

Span = tuple[int, int]
Vectors = npt.NDArray[np.int64]


class TextAnalyzer(Protocol):
    """Sentences, words and vectors of a text. Spans are code points, end exclusive."""

    def sentences(self, text: str) -> Sequence[Span]:
        """The sentences of a text, in order."""
        ...

    def stems(self, text: str) -> Sequence[str]:
        """The stems of the words of a text, in order."""
        ...

    def subject(self, text: str) -> Sequence[str]:
        """The distinct stems of a text that say what it is about."""
        ...

    def vectors(self, text: str, spans: Sequence[Span]) -> Vectors:
        """An embedding for each span of a text, in the context of the text; ``[spans, dimension]``.

        They are of length ``VECTOR_ONE``, as near as integers can be.
        """
        ...


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage as it was retrieved."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class _Point:
    """A key point: a sentence of the answer, in the light of the question."""

    vector: Vectors
    """Of any length; ``[dimension]``."""
    stems: frozenset[str]
    """What the sentence says; empty where the question alone is the key point."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A passage that was read."""

    sentences: tuple[str, ...]
    stems: tuple[tuple[str, ...], ...]
    """Of each sentence."""
    title: tuple[str, ...]
    """Stems of the title, without what it has in parentheses."""
    words: frozenset[str]
    """All stems of the passage and its title."""


def support(question: str, answer: str, passages: Sequence[Passage], analyzer: TextAnalyzer) -> MaxGame:
    """The game of one case: its players are the passages.

    Args:
        question: what was asked.
        answer: what was answered; where it is empty, the question says what is worth something.
        passages: what was retrieved, in any order. A blank one has nothing, whatever its title.
        analyzer: how texts are read; the values depend on nothing else.

    Returns:
        The game, with a row of scores for each key point. Its values are between 0 and ``VALUE_ONE``.
    """
    playing = [i for i, passage in enumerate(passages) if passage.text.strip()]
    if not playing:
        return MaxGame(np.zeros((0, len(passages)), np.int64), np.zeros(0, np.int64))
    game = _contrast(_evidence(question, answer, [passages[i] for i in playing], analyzer))
    scores = np.zeros((len(game.baseline), len(passages)), np.int64)
    scores[:, playing] = game.scores
    return MaxGame(scores, game.baseline)


def _evidence(question: str, answer: str, passages: Sequence[Passage], analyzer: TextAnalyzer) -> Floats:
    """What each passage has for each key point, shape ``[points, passages]``."""
    read = [_read(passage, analyzer) for passage in passages]
    points = _points(question, answer, analyzer)
    frequency = Counter(word for each in read for word in each.words)
    asked = _weighted(analyzer.subject(question), frequency, len(read))
    wanted = asked | _weighted(sorted({stem for point in points for stem in point.stems}), frequency, len(read))
    vectors = [_vectors(each, wanted, READ_CHARS // len(read), analyzer) for each in read]
    common = _common_evidence(analyzer.stems(question), asked, read)
    links = _links(read)
    scores = np.empty((len(points), len(read)))
    for row, point in zip(scores, points, strict=True):
        total, most = _point_evidence(point, read, vectors)
        evidence = (common[0] + total) / (common[1] + most)
        row[:] = evidence + _BRIDGE * (links * evidence).max(axis=1)
    return scores


def _contrast(evidence: Floats) -> MaxGame:
    """The game of the evidence, shape ``[points, passages]``: what is as good as the best is worth as much as it is.

    The background takes part as a passage that nobody brought.
    """
    best = np.maximum(evidence.max(axis=1, keepdims=True), _BACKGROUND)
    whole = VALUE_ONE // len(evidence)

    def worth(having: Floats) -> npt.NDArray[np.int64]:
        behind = exponential((best - having - _MARGIN) / _SOFTNESS)
        units = np.floor(whole * (1 + exponential(-_MARGIN / _SOFTNESS)) / (1 + behind))
        return units.astype(np.int64)

    return MaxGame(worth(evidence), worth(np.full_like(best, _BACKGROUND))[:, 0])


def _read(passage: Passage, analyzer: TextAnalyzer) -> _Read:
    sentences = tuple(passage.text[start:end] for start, end in analyzer.sentences(passage.text))
    stems = tuple(tuple(analyzer.stems(sentence)) for sentence in sentences)
    name = html.unescape(passage.title).replace("_", " ")
    title = tuple(analyzer.stems(_PARENTHESES.sub("", name)))
    words = frozenset([*analyzer.stems(name), *(word for each in stems for word in each)])
    return _Read(sentences, stems, title, words)


def _points(question: str, answer: str, analyzer: TextAnalyzer) -> list[_Point]:
    text = f"{question} {answer}"
    offset = len(question) + 1
    said = []
    for start, end in analyzer.sentences(answer)[:POINTS_MAX]:
        stems = frozenset(analyzer.subject(answer[start:end]))
        if stems and not stems <= _SAYS_NOTHING:
            said.append(((offset + start, offset + end), stems))
    asked, *vectors = analyzer.vectors(text, [(0, len(question)), *(span for span, _ in said)])
    if not said:
        return [_Point(asked, frozenset())]
    return [_Point(asked + vector, stems) for vector, (_, stems) in zip(vectors, said, strict=True)]


def _weighted(words: Iterable[str], frequency: Counter[str], passages: int) -> dict[str, float]:
    """Inverse document frequency within the case, as in BM25."""
    return {word: logarithm(2 * passages + 2, 2 * frequency[word] + 1) for word in words}


def _vectors(read: _Read, wanted: dict[str, float], chars: int, analyzer: TextAnalyzer) -> Vectors:
    """Embeds the sentences that share most with what is wanted, about ``chars`` of them and at least one."""
    shared = [fsum(weight for word, weight in wanted.items() if word in stems) for stems in map(set, read.stems)]
    chosen: list[int] = []
    for i in sorted(range(len(shared)), key=lambda i: -shared[i]):
        length = len(read.sentences[i])
        if not chosen or length <= chars:
            chosen.append(i)
            chars -= length
    text, spans = "", []
    for i in sorted(chosen):
        spans.append((len(text), len(text) + len(read.sentences[i])))
        text += f"{read.sentences[i]} "
    return analyzer.vectors(text, spans)


def _common_evidence(question: Sequence[str], asked: dict[str, float], read: Sequence[_Read]) -> tuple[Floats, float]:
    """What each passage has for the question, whatever the answer, and the most that it can have."""
    whole = fsum(asked.values()) or 1.0
    evidence = np.array(
        [_COVERAGE * fsum(weight for word, weight in asked.items() if word in each.words) / whole for each in read]
    )
    if not any(each.title for each in read):
        return evidence, _COVERAGE
    named = _named(question, [each.title for each in read])
    evidence[sorted(named)] += _NAMED
    return evidence, _COVERAGE + _NAMED


def _point_evidence(point: _Point, read: Sequence[_Read], vectors: Sequence[Vectors]) -> tuple[Floats, float]:
    """What each passage has for a key point, and the most that it can have."""
    nearest = np.array([int((rows @ point.vector).max(initial=0)) for rows in vectors])
    evidence = _SIMILARITY * nearest / (VECTOR_ONE * sqrt(point.vector @ point.vector) or 1.0)
    most = _SIMILARITY
    if point.stems:
        most += _ANSWERS
        for i, each in enumerate(read):
            shared = max((len(point.stems.intersection(stems)) for stems in each.stems), default=0)
            evidence[i] += _ANSWERS * shared / len(point.stems)
    return evidence, most


def _links(read: Sequence[_Read]) -> Floats:
    """1 where the text of either of two passages names the title of the other, shape ``[passages, passages]``."""
    titles = [each.title for each in read]
    links = np.zeros((len(read), len(read)))
    for i, each in enumerate(read):
        for j in _named([word for stems in each.stems for word in stems], titles):
            if titles[i] != titles[j]:
                links[i, j] = links[j, i] = 1.0
    return links


def _named(words: Sequence[str], titles: Sequence[tuple[str, ...]]) -> set[int]:
    """The titles that stand in a text, except where they are only a part of a longer one that stands there."""
    line = _spaced(words)
    standing: set[tuple[str, ...]] = set()
    for _, equally_long in groupby(sorted({*titles} - {()}, key=lambda title: (-len(title), title)), key=len):
        found = [title for title in equally_long if _spaced(title) in line]
        for title in found:
            line = line.replace(_spaced(title), "|")
        standing.update(found)
    return {i for i, title in enumerate(titles) if title in standing}


def _spaced(words: Sequence[str]) -> str:
    return "".join(f" {word} " for word in words)
