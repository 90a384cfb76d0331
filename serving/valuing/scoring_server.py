"""A language model behind an HTTP interface that gives the log probabilities of a prompt, as vLLM does.

The prompts of the coalitions are sent as token ids to ``POST /completions`` with ``prompt_logprobs``: the server
echoes each token of a prompt with its log probability, and nothing is generated but the one token that it insists on.
A server that caches prefixes shares the documents that coalitions begin with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from threading import TIMEOUT_MAX
from typing import Any, Final

import httpx
import numpy as np

from attribution.arithmetic import Floats
from attribution.value_functions.likelihood import LikelihoodError, Prompt, Span
from serving.valuing.tokenizer import ModelTokenizer

_TIMEOUT_SECONDS: Final = 600.0
_RETRIES: Final = 2


class ScoringServer:
    """Scores tokens at a vLLM-compatible server, which decides on precision and determinism."""

    def __init__(
        self, url: str, model: str, *, key: str | None, batch_tokens: int, seconds: float = TIMEOUT_MAX
    ) -> None:
        """Connects at the first case.

        Args:
            url: such as ``http://host:8000/v1``.
            model: its name there, and the folder or hub name of its tokenizer.
            key: sent as a bearer token.
            batch_tokens: the tokens of one request, at most, where one prompt allows it.
            seconds: how long a case may take; one request never takes longer than ten minutes.

        Raises:
            LikelihoodError: the model's tokenizer cannot be loaded.
        """
        self._tokenizer = ModelTokenizer(model)
        self._model = model
        self._batch_tokens = batch_tokens
        self._seconds = seconds
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/",
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            transport=httpx.HTTPTransport(retries=_RETRIES),
        )
        self.name = f"upstream/{self._tokenizer.model}"

    def tokenize(self, text: str) -> tuple[Sequence[int], Sequence[Span]]:
        """See :class:`attribution.value_functions.likelihood.Scorer`."""
        return self._tokenizer.tokenize(text)

    @property
    def opening(self) -> Sequence[int]:
        """See :class:`attribution.value_functions.likelihood.Scorer`."""
        return self._tokenizer.opening

    def score(self, prompt: Prompt, coalitions: Sequence[int] | None = None) -> Floats:
        """See :meth:`attribution.value_functions.likelihood.Scorer.score`."""
        ends = time.monotonic() + self._seconds
        every = range(2 ** len(prompt.documents)) if coalitions is None else coalitions
        prompts = [prompt.coalition(members) for members in every]
        rows = [row for batch in self._batches(prompts) for row in self._ask(batch, prompt.scored, ends)]
        return np.asarray(rows, np.float64)

    def _batches(self, prompts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
        batch: list[list[int]] = []
        for tokens in prompts:
            if batch and sum(map(len, batch)) + len(tokens) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(tokens)
        yield batch

    def _ask(self, batch: Sequence[list[int]], scored: int, ends: float) -> list[list[float]]:
        left = ends - time.monotonic()
        if left <= 0:
            raise LikelihoodError(f"{self._client.base_url} took longer than {self._seconds:g} s for a case")
        body = {"model": self._model, "prompt": batch, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        try:
            reply = self._client.post("completions", json=body, timeout=min(left, _TIMEOUT_SECONDS))
            reply.raise_for_status()
            choices = sorted(reply.json()["choices"], key=lambda choice: int(choice["index"]))
            return [
                _logs(choice["prompt_logprobs"], tokens, scored) for choice, tokens in zip(choices, batch, strict=True)
            ]
        except httpx.HTTPStatusError as error:
            said = f"{error.response.status_code} {error.response.text[:200]}"
            raise LikelihoodError(f"{self._client.base_url} refuses {self._model}: {said}") from error
        except httpx.HTTPError as error:
            raise LikelihoodError(f"{self._client.base_url} cannot be reached: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise LikelihoodError(
                f"{self._client.base_url} does not give the log probabilities of these tokens: check that it serves "
                f"{self._model} and knows prompt_logprobs"
            ) from error


def _logs(given: Sequence[dict[str, Any]], tokens: Sequence[int], scored: int) -> list[float]:
    """The log probabilities of the last tokens, each found under its own id."""
    if len(given) != len(tokens):
        raise ValueError("another number of tokens")
    return [float(entry[str(token)]["logprob"]) for entry, token in zip(given[-scored:], tokens[-scored:], strict=True)]
