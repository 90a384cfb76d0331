"""The extractive generator: the sentences that most probably answer, verbatim and cited.

It needs no language model and never invents. Each sentence of the retrieved passages gets a probability that it
answers the question, and so does "none of them": a softmax over a linear score of the sentence's evidence. The
answer is the fewest sentences that together reach ``CONFIDENCE``, at most ``SENTENCES_MAX``; if none of them
is likely enough, it says that the documents do not answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import fsum
from typing import Final

import numpy as np
import numpy.typing as npt

from attribution.arithmetic import exponential
from retrieval.chunking import SENTENCE_CHARS_MAX
from retrieval.retriever import Retrieval, RetrievedDocument
from serving.generators.generator import Citation, Delivered
from serving.generators.grounded_answer import DOCUMENTS_READ, GroundedAnswer
from serving.generators.query import Query

NO_ANSWER: Final = "The documents do not answer this question."
SENTENCES_MAX: Final = 3
ANSWER_TOKENS_MAX: Final = SENTENCES_MAX * SENTENCE_CHARS_MAX
"""The tokens that are held for an answer, and the most that is billed for one: a token a character."""
CONFIDENCE: Final = 0.89
NO_ANSWER_ABOVE: Final = 0.8

# Weights of a sentence's evidence in its log-odds, fitted by logistic regression (listwise) on half of the articles of
# data/squad-dev, checked on the other half, and rounded.
_SIMILARITY: Final = 6.5
_COVERAGE: Final = 4.5
_LEXICAL: Final = 0.15
_RANK: Final = 0.4
_KIND: Final = 1.0
_NONE: Final = 7.1

_KINDS: Final = (
    # What the question asks for, and what a sentence that names such a thing looks like.
    (
        re.compile(r"\bwhen\b|\b(what|which) (year|date|century|decade)\b", re.IGNORECASE),
        re.compile(
            r"\b\d{3,4}s?\b|\bcentury\b|\b(January|February|March|April|May|June|July|August|September|October"
            r"|November|December)\b"
        ),
    ),
    (
        re.compile(
            r"\bhow (many|much|long|far|old|large|tall|high|often)\b|\bwhat (number|percent|amount)\b|percentage",
            re.IGNORECASE,
        ),
        re.compile(
            r"\d|\b(one|two|three|four|five|six|seven|eight|nine|ten|half|hundred|thousand|million|billion|dozen)\b",
            re.IGNORECASE,
        ),
    ),
    (
        re.compile(r"\bwhy\b|\bwhat (caused|reason)\b|\bfor what reason\b", re.IGNORECASE),
        re.compile(r"\b(because|since|so that|in order|therefore)\b|due to|reason|caus", re.IGNORECASE),
    ),
)
_ASKS_NAME: Final = re.compile(
    r"\b(who|whom|whose|where)\b|\b(which|what) (city|country|person|company)\b|what (is|was) the name",
    re.IGNORECASE,
)
_NAME: Final = re.compile(r"(?<=[a-z,;:(\"] )[A-Z]\w+")
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and what its counterfactuals are computed from."""

    text: str
    citations: tuple[Citation, ...]
    worths: tuple[npt.NDArray[np.float64], ...]
    """For each document read, the probability of each of its sentences to be the answer."""

    @property
    def slots(self) -> int:
        """How many sentences the answer has; 0 where the documents do not answer."""
        return len(self.citations)


class Extractive:
    """Implements :class:`serving.generators.generator.Generator`; every answer is there at once."""

    generated = False

    def reads(self, query: Query) -> str:
        """The question alone."""
        return query.question

    def tokens_max(self, query: Query) -> int:  # noqa: ARG002 # what the query asks for concerns language models
        """The longest three sentences."""
        return ANSWER_TOKENS_MAX

    def begin(self, query: Query, retrieval: Retrieval) -> Delivered:  # noqa: ARG002 # the retrieval has its question
        """The answer. Where the documents do not answer, the answer to be valued is empty."""
        found = answer(retrieval)
        said = found.text if found.slots else ""
        return Delivered(found.text, found.citations, GroundedAnswer(retrieval, said, found.worths, found.slots))


@dataclass(frozen=True, slots=True)
class _Sentence:
    source: int
    start: int
    text: str


def answer(retrieval: Retrieval) -> Answer:
    """The extractive answer to what was asked, from what was retrieved."""
    read = retrieval.documents[:DOCUMENTS_READ]
    sentences: list[_Sentence] = []
    scores: list[float] = []
    expected = _Expectation(retrieval.question.text)
    for source, document in enumerate(read):
        rank = _RANK * (document.score - read[0].score)
        _score_document(source, document, rank, expected, sentences, scores)
    probabilities = _softmax(np.asarray([*scores, _NONE]))
    chosen = _choose(sentences, probabilities)
    text, citations = _compose(sentences, chosen)
    owner = np.asarray([sentence.source for sentence in sentences], np.int64)
    worths = tuple(probabilities[:-1][owner == source] for source in range(len(read)))
    return Answer(text, citations, worths)


def _score_document(
    source: int,
    document: RetrievedDocument,
    rank: float,
    expected: _Expectation,
    sentences: list[_Sentence],
    scores: list[float],
) -> None:
    for passage in document.passages:
        for i, (start, end) in enumerate(passage.sentences.tolist()):
            if not passage.own[i]:
                continue  # said before by another document: it plays once, for whoever registered it first
            text = passage.text[start:end]
            sentences.append(_Sentence(source, passage.start + start, text))
            scores.append(
                _SIMILARITY * float(passage.evidence.similarity[i])
                + _COVERAGE * float(passage.evidence.coverage[i])
                + _LEXICAL * float(passage.evidence.lexical[i])
                + _KIND * expected.met_by(text)
                + rank
            )


def _choose(sentences: list[_Sentence], probabilities: npt.NDArray[np.float64]) -> list[int]:
    """Indexes of the sentences of the answer, the most probable first; none where the documents do not answer."""
    if probabilities[-1] > NO_ANSWER_ABOVE or not sentences:
        return []
    order = np.lexsort((np.arange(len(sentences)), -probabilities[:-1]))
    answered = 1.0 - float(probabilities[-1])
    chosen: list[int] = []
    reached = 0.0
    for i in order.tolist():
        chosen.append(i)
        reached += float(probabilities[i]) / answered
        if reached >= CONFIDENCE or len(chosen) == SENTENCES_MAX:
            break
    return chosen


def _compose(sentences: list[_Sentence], chosen: list[int]) -> tuple[str, tuple[Citation, ...]]:
    if not chosen:
        return NO_ANSWER, ()
    citations = []
    position = 0
    for i in chosen:
        sentence = sentences[i]
        end = position + len(sentence.text)
        passage = (sentence.start, sentence.start + len(sentence.text))
        citations.append(Citation(sentence.source, sentence.text, passage, (position, end)))
        position = end + 1
    return " ".join(sentences[i].text for i in chosen), tuple(citations)


class _Expectation:
    """What kind of thing the question asks for: a time, a number, a reason, a name."""

    def __init__(self, question: str) -> None:
        self._patterns = [named for asks, named in _KINDS if asks.search(question)]
        self._asks_name = bool(_ASKS_NAME.search(question))
        self._known = set(_WORD.findall(question.lower()))

    def met_by(self, sentence: str) -> float:
        """1 where the sentence names such a thing, -1 where it does not, 0 where nothing special is asked."""
        if not self._patterns and not self._asks_name:
            return 0.0
        if any(pattern.search(sentence) for pattern in self._patterns):
            return 1.0
        if self._asks_name and any(name.lower() not in self._known for name in _NAME.findall(sentence)):
            return 1.0
        return -1.0


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    raised = exponential(scores - scores.max())
    probabilities: npt.NDArray[np.float64] = raised / fsum(raised.tolist())
    return probabilities
