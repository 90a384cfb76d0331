"""Attributing the logs of other retrieval-augmented systems: case by case, on every core, in the order they come.

From Python::

    from serving.cases import attribute

    cases = [{"id": "1", "question": "...", "answer": "...", "passages": [{"id": "a", "text": "..."}]}]
    for result in attribute(cases):
        print(result["shares"], result["model_residual"])
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import TIMEOUT_MAX
from typing import Any, BinaryIO, Final

from attribution.cases import methods
from attribution.cases.case import Case, CaseError, Result, decode_case, encode_result
from attribution.games.estimation import BUDGET
from attribution.value_functions.likelihood import LOG_LIKELIHOOD, LikelihoodError, Scorer
from attribution.value_functions.support import SUPPORT
from metering.money import Currency
from retrieval.embedding import Embedder
from serving.assembly import open_embedder, open_scorer
from serving.settings import Settings
from serving.store.data_dir import DataDir
from serving.valuing.text_analyzer import EmbeddingAnalyzer

LINE_BYTES_MAX: Final = 10_000_000
_READ_AHEAD: Final = 4
"""Cases for each core that wait or are done and not yet taken: what bounds memory."""


class Attributor:
    """Attributes many cases in one way. Thread-safe."""

    def __init__(
        self,
        embedder: Embedder,
        method: str,
        value_function: str,
        currency: Currency,
        *,
        scorer: Scorer | None = None,
        budget: int = BUDGET,
    ) -> None:
        """See :func:`attribution.cases.methods.attribute_case`."""
        self._analyzer = EmbeddingAnalyzer(embedder)
        self._method = method
        self._value_function = value_function
        self._currency = currency
        self._scorer = scorer
        self._budget = budget

    def one(self, case: Case) -> Result:
        """Attribute one case.

        Raises:
            CaseError: it lacks what the method or the value function needs.
            LikelihoodError: the language model does not answer.
        """
        return methods.attribute_case(
            case,
            self._analyzer,
            method=self._method,
            value_function=self._value_function,
            scorer=self._scorer,
            budget=self._budget,
            currency=self._currency,
        )

    def lines(self, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Result | CaseError]]:
        """Attribute the case on each numbered line, on every core.

        Yields:
            The number of each line and its result, or why it has none, in the order of the lines.

        Raises:
            LikelihoodError: the language model does not answer.
        """
        cores = os.cpu_count() or 1
        waiting: deque[tuple[int, Future[Result | CaseError]]] = deque()
        pool = ThreadPoolExecutor(cores, thread_name_prefix="attribute")
        try:
            for number, line in lines:
                waiting.append((number, pool.submit(self._line, line)))
                if len(waiting) >= _READ_AHEAD * cores:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for rest, future in waiting:
                yield rest, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _line(self, line: bytes) -> Result | CaseError:
        try:
            if len(line.rstrip()) > LINE_BYTES_MAX:
                raise CaseError(f"the line is longer than {LINE_BYTES_MAX} bytes")
            return self.one(decode_case(line))
        except CaseError as error:
            return error


def read_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, numbered from 1; of one that is too long, as much as shows it."""
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        rest = line
        while len(rest) > LINE_BYTES_MAX and not rest.endswith(b"\n"):
            rest = file.readline(LINE_BYTES_MAX + 1)
        if line.strip():
            yield number, line


def attribute(
    cases: Iterable[Mapping[str, Any]],
    *,
    method: str = "shapley",
    value_function: str = SUPPORT,
    budget: int = BUDGET,
    settings: Settings | None = None,
) -> Iterator[dict[str, Any]]:
    """Attribute cases, on every core; gives their results in the same order.

    Args:
        cases: objects as the lines of ``patronage attribute``: ``{"id", "question", "answer", "passages": [{"id",
            "text", "title"?, "contributor"?, "score"?, "registered_at"?}], "charge"?}``.
        method: how what all passages earned is divided, one of :data:`attribution.cases.methods.METHODS`.
        value_function: what a coalition of passages is worth, by name and version, one of
            :data:`attribution.cases.methods.VALUE_FUNCTIONS`.
        budget: coalitions that are valued at most where a game must be estimated, see
            :func:`attribution.cases.methods.attribute_case`.
        settings: decide the embedding model and where its files lie, and the language model of ``log_likelihood/1``;
            without them, the environment does.

    Yields:
        ``{"id", "shares": [{"passage_id", "contributor", "weight", "raw"}], "model_residual", "method", "estimated",
        "value_all", "value_none", "value_function"}``. The weights and the residual sum to 1. An estimate also has
        ``"budget", "seed", "confidence"``, and each of its shares an ``"interval": [low, high]`` of its weight.

    Raises:
        CaseError: a case is not one or cannot be valued, or there is no such method or value function.
        EmbedderError: the embedding model cannot be loaded.
        LikelihoodError: the language model cannot be used.
    """
    lines = ((number, json.dumps(case).encode()) for number, case in enumerate(cases, 1))
    for _, result in open_attributor(settings or Settings(), method, value_function, budget).lines(lines):
        if isinstance(result, CaseError):
            raise result
        yield json.loads(encode_result(result))


def open_attributor(settings: Settings, method: str, value_function: str, budget: int) -> Attributor:
    """The attribution of cases with the models of the settings.

    Raises:
        EmbedderError: the embedding model cannot be loaded.
        LikelihoodError: the value function needs a language model that cannot be used.
    """
    scorer = None
    if value_function == LOG_LIKELIHOOD:
        try:
            scorer = open_scorer(settings, TIMEOUT_MAX)
        except LikelihoodError as error:
            raise LikelihoodError(f"{value_function} cannot be computed here: {error}") from error
    embedder = open_embedder(settings, DataDir(settings.data_dir))
    currency = Currency.of(settings.currency)
    return Attributor(embedder, method, value_function, currency, scorer=scorer, budget=budget)
