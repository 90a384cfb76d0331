"""The value function of language models: how probable the given answer is when only some documents are read.

The worth of a coalition is the probability that a causal language model gives the answer's tokens after reading the
question and the coalition's documents, in their fixed order; per token, as a geometric mean::

    nats(S) = sum over the answer's tokens t of  ln p(t | the documents of S, the question, the tokens before t)
    v(S)    = exp(nats(S) / tokens)

It is between 0 and 1 whatever the length of the answer, needs no generation, and is not monotone: a document that
makes the model doubt the answer takes value away, and its marginals stay negative. What the model knows by itself is
v(nothing). Scoring an answer under subsets of its context follows Cohen-Wang et al. 2024, "ContextCite".

This module knows no model. It is handed a tokenizer and something that scores tokens, so it loads neither torch nor
a client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from attribution.arithmetic import Floats, exponential, total
from attribution.games.estimation import Coalitions
from attribution.games.values import TABLE_PLAYERS_MAX, Table
from metering.records import VALUE_ONE

LOG_LIKELIHOOD: Final = "log_likelihood/1"

_HEAD: Final = "Answer the question from the documents.\n\n"
_DOCUMENT: Final = "Document: {}\n\n"
_QUESTION: Final = "Question: {}\nAnswer: "

Span = tuple[int, int]

Tokenize = Callable[[str], tuple[Sequence[int], Sequence[Span]]]
"""The ids of a text's tokens, without special ones, and the characters that each covers, end exclusive."""


class LikelihoodError(RuntimeError):
    """A model that cannot be used; the message says what to do."""


class Unscorable(LikelihoodError):
    """A case that this model cannot score; another one may."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A case in tokens. A coalition's prompt is the head, its documents in their order, and the tail.

    The parts are tokenized one by one, so every coalition has the same tokens in its tail, and the same are scored.
    """

    head: tuple[int, ...]
    documents: tuple[tuple[int, ...], ...]
    tail: tuple[int, ...]
    """The question and the answer."""
    scored: int
    """How many tokens at the end of ``tail`` are the answer's."""

    def coalition(self, members: int) -> list[int]:
        """The tokens of one coalition; bit ``i`` of ``members`` stands for document ``i``."""
        chosen = [token for i, part in enumerate(self.documents) if members >> i & 1 for token in part]
        return [*self.head, *chosen, *self.tail]

    def __len__(self) -> int:
        """The tokens of the longest coalition: all of them."""
        return len(self.head) + sum(map(len, self.documents)) + len(self.tail)


class Scorer(Protocol):
    """Something that knows the probability of tokens."""

    @property
    def name(self) -> str:
        """The model, as it is recorded with the values."""
        ...

    def tokenize(self, text: str) -> tuple[Sequence[int], Sequence[Span]]:
        """See :data:`Tokenize`."""
        ...

    @property
    def opening(self) -> Sequence[int]:
        """The special tokens that every prompt of the model begins with."""
        ...

    def score(self, prompt: Prompt, coalitions: Sequence[int] | None = None) -> Floats:
        """The log probability of each scored token under some coalitions, shape ``[coalitions, scored]``, in nats.

        Args:
            prompt: the case.
            coalitions: as for :meth:`Prompt.coalition`; without them all ``2 ** n``.

        Raises:
            Unscorable: the prompt does not fit the model.
            LikelihoodError: the model does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The scored coalitions of a case."""

    nats: Floats
    """ln p(answer | question, coalition), shape ``[coalitions]``: all ``2 ** n``, or those that were asked for."""
    tokens: int
    """How many tokens the answer has."""

    @property
    def values(self) -> Table:
        """The game: probability per token, in integers of which ``VALUE_ONE`` is 1, shape ``[coalitions]``."""
        worths = exponential(np.minimum(self.nats, 0.0) / self.tokens)
        table: Table = np.floor(worths * VALUE_ONE).astype(np.int64)
        return table

    @property
    def value_all(self) -> float:
        """The worth with every document."""
        return float(self.values[-1]) / VALUE_ONE

    @property
    def value_none(self) -> float:
        """The worth without any: what the model has by itself. Documents earn on the difference to it."""
        return float(self.values[0]) / VALUE_ONE


def log_likelihood(question: str, answer: str, documents: Sequence[str], scorer: Scorer) -> Likelihood:
    """Score an answer under every coalition of up to 12 documents.

    Args:
        question: what was asked.
        answer: what was answered; not blank.
        documents: what was read, in the order in which it was.
        scorer: the model.

    Raises:
        Unscorable: too many documents, a blank answer, or a case that the model cannot read.
        LikelihoodError: the model does not answer.
    """
    if len(documents) > TABLE_PLAYERS_MAX:
        raise Unscorable(f"{len(documents)} documents; the coalitions of {TABLE_PLAYERS_MAX} can be scored")
    prompt = prepare(question, answer, documents, scorer.tokenize, scorer.opening)
    return _checked(scorer.score(prompt), 2 ** len(documents), prompt, scorer)


class Sampled:
    """The same game of any number of documents, of which only the coalitions that are asked for are scored, each once.

    Raises:
        Unscorable: a blank answer, or a case that the model cannot read.
        LikelihoodError: the model does not answer.
    """

    def __init__(self, question: str, answer: str, documents: Sequence[str], scorer: Scorer) -> None:
        """See :func:`log_likelihood`."""
        self._prompt = prepare(question, answer, documents, scorer.tokenize, scorer.opening)
        self._scorer = scorer
        self._known: dict[int, int] = {}

    def __call__(self, coalitions: Coalitions) -> npt.NDArray[np.int64]:
        """The worth of each coalition, shape ``[coalitions]``, as in :attr:`Likelihood.values`."""
        packed = np.packbits(coalitions, axis=1, bitorder="little")
        members = [int.from_bytes(row.tobytes(), "little") for row in packed]
        new = [each for each in dict.fromkeys(members) if each not in self._known]
        if new:
            scores = self._scorer.score(self._prompt, new)
            found = _checked(scores, len(new), self._prompt, self._scorer)
            self._known.update(zip(new, found.values.tolist(), strict=True))
        return np.asarray([self._known[each] for each in members], np.int64)


def _checked(scores: Floats, coalitions: int, prompt: Prompt, scorer: Scorer) -> Likelihood:
    if scores.shape != (coalitions, prompt.scored) or not np.isfinite(scores).all():
        raise Unscorable(f"{scorer.name} gives no probability for some tokens of the answer")
    return Likelihood(total(scores.T), prompt.scored)


def prepare(
    question: str, answer: str, documents: Sequence[str], tokenize: Tokenize, opening: Sequence[int] = ()
) -> Prompt:
    """A case in tokens, aligned: exactly the tokens that have a character of the answer are scored.

    The answer is tokenized after its question, as a model would write it, so the tokenizer may merge across where
    they meet; the token it makes there has a character of the answer, so it is scored.

    Raises:
        Unscorable: an answer without a token.
    """
    asked = _QUESTION.format(question.strip())
    tail, spans = tokenize(asked + answer.strip())
    scored = sum(end > len(asked) for _, end in spans)
    if not scored:
        raise Unscorable("the answer is blank: there is nothing to score")
    if any(end <= len(asked) for _, end in spans[-scored:]):
        raise Unscorable("the tokenizer does not keep the order of the text")
    return Prompt(
        head=(*opening, *tokenize(_HEAD)[0]),
        documents=tuple(tuple(tokenize(_DOCUMENT.format(text.strip()))[0]) for text in documents),
        tail=tuple(tail),
        scored=scored,
    )
