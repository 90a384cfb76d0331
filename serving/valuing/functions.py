"""Valuing: the value functions of queries, by name, and those that a policy pays by.

Policies pay by ``counterfactual/1``, ``support/1`` and ``log_likelihood/1``. The audit by ablation recomputes by
``log_likelihood/1`` or ``rerun/1``.

``rerun/1`` needs no model: the extractive generator answers again from each coalition's documents and nothing else,
and a coalition is worth as much of the answer that was given as it gives again: the F1 of their words (Rajpurkar et
al. 2016). It uses the output of the generator, and not the probabilities that payments are computed from.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np
import structlog

from attribution.games.values import COUNTERFACTUAL, UNVALUED, Table, counterfactual
from attribution.policy import Policy, PolicyError
from attribution.value_functions.likelihood import LOG_LIKELIHOOD, LikelihoodError, Scorer, Unscorable, log_likelihood
from attribution.value_functions.support import SUPPORT, Passage, TextAnalyzer, support
from metering.records import VALUE_ONE
from retrieval.evidence import Question
from retrieval.retriever import Retrieval
from serving.generators import extractive
from serving.generators.grounded_answer import GroundedAnswer, own_text

RERUN: Final = "rerun/1"
REST_SECONDS: Final = 5.0
"""For so long after the model of a value function failed, answers that it would have to value are refused."""
_WORD: Final = re.compile(r"\w+")

_log = structlog.get_logger()


class NotComputable(PolicyError):
    """A policy whose value functions this deployment cannot compute; the message says what to set."""


class NotValued(RuntimeError):
    """The documents' worth to an answer cannot be computed now; the reason is in the log."""


class ValueFunction(Protocol):
    """What the coalitions of the documents that an answer was made from are worth. Thread-safe."""

    @property
    def name(self) -> str:
        """Name and version, as policies and records have it."""
        ...

    @property
    def model(self) -> str:
        """The language model, if it has one."""
        ...

    def table(self, grounded: GroundedAnswer) -> Table:
        """The worth of every coalition of the ``n`` documents read, shape ``[2 ** n]``.

        Raises:
            Unscorable: this function cannot value the answer.
            LikelihoodError: it cannot value any now.
        """
        ...


class Counterfactual:
    """What the extractive generator would have answered from each coalition: it left the worths in the answer."""

    name = COUNTERFACTUAL
    model = ""

    def table(self, grounded: GroundedAnswer) -> Table:
        """See :meth:`ValueFunction.table`."""
        return counterfactual(grounded.worths, grounded.slots)


class Support:
    """How well each coalition's documents support the answer, read by embeddings and words."""

    name = SUPPORT
    model = ""

    def __init__(self, analyzer: TextAnalyzer) -> None:
        self._analyzer = analyzer

    def table(self, grounded: GroundedAnswer) -> Table:
        """See :meth:`ValueFunction.table`. A document is one passage: all that was retrieved of it."""
        passages = [Passage(own_text(each), each.document.title) for each in grounded.read]
        return support(grounded.retrieval.question.text, grounded.answer, passages, self._analyzer).table()


class LogLikelihood:
    """How probable a language model finds the answer with every coalition's documents."""

    name = LOG_LIKELIHOOD

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.model = scorer.name

    def table(self, grounded: GroundedAnswer) -> Table:
        """See :meth:`ValueFunction.table`. A document begins with its title."""
        texts = [f"{each.document.title}\n{own_text(each)}" for each in grounded.read]
        return log_likelihood(grounded.retrieval.question.text, grounded.answer, texts, self._scorer).values


class Rerun:
    """The extractive generator, run again on every coalition."""

    name = RERUN
    model = ""

    def table(self, grounded: GroundedAnswer) -> Table:
        """See :meth:`ValueFunction.table`."""
        given = _words(grounded.answer)
        values = np.zeros(2 ** len(grounded.read), np.int64)
        for members in range(1, len(values)):
            documents = tuple(each for i, each in enumerate(grounded.read) if members >> i & 1)
            again = extractive.answer(Retrieval(grounded.retrieval.question, documents))
            if again.citations:
                values[members] = _f1(given, _words(again.text))
        return values


class Valuing:
    """Values answers by the functions that policies name. Thread-safe."""

    def __init__(self, makers: Mapping[str, Callable[[], ValueFunction]]) -> None:
        """``makers`` make the functions by name, each when it is first needed; ``LikelihoodError`` says why not."""
        self._makers = makers
        self._made: dict[str, ValueFunction] = {}
        self._making = {name: threading.Lock() for name in makers}
        self._rests_until = 0.0
        self.unvalued = 0
        """Answers that were delivered and could not be valued."""

    def load(self, policy: Policy) -> None:
        """Make the functions of a policy, so that no query waits for that.

        Raises:
            NotComputable: one of them cannot be computed here.
        """
        try:
            for generated in (False, True):
                self._function(policy.values_by(generated=generated))
        except NotComputable as error:
            advice = "or choose another function with `patronage policy set`"
            raise NotComputable(f"policy {policy.version} is in force: {error}; {advice}") from error

    def prove(self, policy: Policy) -> None:
        """Load the functions of a policy and let each value a small answer.

        Raises:
            NotComputable: one of them cannot be computed here, or not now.
        """
        for generated in (False, True):
            function = self._function(policy.values_by(generated=generated))
            try:
                function.table(_PROBE)
            except LikelihoodError as error:
                raise NotComputable(f"{function.name} cannot be computed here: {error}") from error

    def ensure_available(self, name: str) -> None:
        """Refuse a query before anything is generated if its answer could not be valued.

        Raises:
            NotValued: the function cannot be computed here, or its model failed a moment ago.
        """
        try:
            function = self._function(name)
        except NotComputable as error:
            _log.error("nothing is served that cannot be valued", reason=str(error))
            raise NotValued("answers cannot be valued now, so none is given") from error
        if function.model and time.monotonic() < self._rests_until:
            raise NotValued("answers cannot be valued now, so none is given")

    def value(self, name: str, grounded: GroundedAnswer, *, sent: bool) -> tuple[str, Table]:
        """Value an answer by the function of a name, and no other. Computes; call it in a thread.

        Args:
            name: the function, by name and version.
            grounded: an answer that says nothing is worth nothing.
            sent: whether the customer has the answer, so that it is charged whatever happens here.

        Returns:
            What was computed, and the worth of every coalition of the ``n`` documents read, shape ``[2 ** n]``. If an
            answer that was sent cannot be valued, ``UNVALUED`` and a game of no documents.

        Raises:
            NotValued: an answer that was not sent cannot be valued.
        """
        try:
            if not grounded.answer.strip():
                return name, np.zeros(2 ** len(grounded.read), np.int64)
            return name, self._function(name).table(grounded)
        except Exception as error:
            # Whatever it is: an answer that was sent is charged, and this function is never replaced by another.
            if not isinstance(error, Unscorable):
                self._rests_until = time.monotonic() + REST_SECONDS
            _log.error(
                "an answer cannot be valued", function=name, sent=sent, reason=f"{type(error).__name__}: {error}"
            )
            if not sent:
                raise NotValued("the answer cannot be valued, so it is not given") from error
            self.unvalued += 1
            return UNVALUED, np.zeros(1, np.int64)

    def _function(self, name: str) -> ValueFunction:
        with self._making[name]:
            if name not in self._made:
                try:
                    self._made[name] = self._makers[name]()
                except LikelihoodError as error:
                    raise NotComputable(f"{name} cannot be computed here: {error}") from error
            return self._made[name]


_PROBE: Final = GroundedAnswer(
    Retrieval(Question("What is this?", np.zeros(0, np.float32), np.zeros(0, np.uint32), np.zeros(0)), ()),
    "This is a trial.",
)


def waits(name: str) -> bool:
    """Whether a function waits for a language model, so that it must not hold up the threads that answer."""
    return name == LOG_LIKELIHOOD


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.lower()))


def _f1(first: Counter[str], second: Counter[str]) -> int:
    return 2 * (first & second).total() * VALUE_ONE // (first.total() + second.total())
