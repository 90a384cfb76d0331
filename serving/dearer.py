"""The dearer value functions: what the audit by ablation recomputes a sampled query with.

``rerun/1`` needs no model: the extractive generator answers again from each coalition's documents and nothing else,
and a coalition is worth as much of the answer that was given as it gives again: the F1 of their words (Rajpurkar et
al. 2016). It looks at what comes out of the generator and at none of the probabilities that were paid by.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from attribution.likelihood import LOG_LIKELIHOOD, Scorer, log_likelihood
from attribution.values import Table
from metering.records import VALUE_ONE
from retrieval.retriever import Retrieval, RetrievedDocument
from serving.generators import extractive

RERUN: Final = "rerun/1"
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Case:
    """A query with its text: all that a dearer value function needs."""

    retrieval: Retrieval
    answer: str

    @property
    def read(self) -> tuple[RetrievedDocument, ...]:
        """The documents that the answer was made from: the members of the game."""
        return self.retrieval.documents[: extractive.DOCUMENTS_READ]

    def encode(self) -> bytes:
        """The case as bytes."""
        return _ENCODER.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Case:
        """The case in bytes of :meth:`encode`.

        Raises:
            ValueError: they are of another version of the program.
        """
        return _DECODER.decode(data)


class Dearer(Protocol):
    """A value function that takes its time."""

    @property
    def name(self) -> str:
        """Name and version."""
        ...

    @property
    def model(self) -> str:
        """The language model, if it has one."""
        ...

    def table(self, case: Case) -> Table:
        """The worth of every coalition of the documents read, shape ``[2 ** n]``.

        Raises:
            Unscorable: this function cannot value the case.
            LikelihoodError: it cannot value any now.
        """
        ...


class Rerun:
    """The extractive generator, run again on every coalition."""

    name = RERUN
    model = ""

    def table(self, case: Case) -> Table:
        """See :meth:`Dearer.table`."""
        given = _words(case.answer)
        values = np.zeros(2 ** len(case.read), np.int64)
        for members in range(1, len(values)):
            documents = tuple(each for i, each in enumerate(case.read) if members >> i & 1)
            again = extractive.answer(Retrieval(case.retrieval.question, documents))
            if again.citations:
                values[members] = _f1(given, _words(again.text))
        return values


class LogLikelihood:
    """How probable a language model finds the answer with every coalition's passages."""

    name = LOG_LIKELIHOOD

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.model = scorer.name

    def table(self, case: Case) -> Table:
        """See :meth:`Dearer.table`."""
        texts = [_text(each) for each in case.read]
        return log_likelihood(case.retrieval.question.text, case.answer, texts, self._scorer).values


def _text(document: RetrievedDocument) -> str:
    """A document as a model reads it: its title, and what was retrieved of it in the order of the text."""
    passages = sorted(document.passages, key=lambda passage: passage.start)
    return "\n".join([document.document.title, *(passage.text for passage in passages)])


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.lower()))


def _f1(first: Counter[str], second: Counter[str]) -> int:
    return 2 * (first & second).total() * VALUE_ONE // (first.total() + second.total())


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    raise TypeError(f"{type(value).__name__} is not stored")


def _array(kind: Any, plain: Any) -> Any:
    """An array of the type that the field is declared with, ``NDArray[...]``."""
    (dtype,) = kind.__args__[1].__args__
    shape, data = plain
    return np.frombuffer(data, dtype).reshape(shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_DECODER = msgspec.msgpack.Decoder(Case, dec_hook=_array)
