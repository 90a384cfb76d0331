"""A causal language model of transformers, in this process. Needs torch.

The coalitions of a case form a tree: each extends a coalition of the documents before its last. The keys and values
of a coalition are therefore computed once and shared by all that extend it: ``2 ** n`` documents are read, not
``n * 2 ** (n - 1)``. Coalitions are rows of a batch in which every document has its place; a row without it masks the
place, and its tokens keep the positions that they would have in a prompt of their own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

from attribution.arithmetic import Floats
from attribution.value_functions.likelihood import LikelihoodError, Prompt, Span, Unscorable
from retrieval.model_files import ModelMissing, Place, locate
from serving.valuing.tokenizer import ModelTokenizer

_ONE = threading.Lock()
"""Held while a case is scored: which algorithms may run is a setting of the process."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Coalitions of the documents read so far."""

    members: torch.Tensor
    """Coalitions as bit sets, shape ``[rows]``."""
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """Keys and values of each layer, shape ``[rows, heads, places, dimension]``."""
    seen: torch.Tensor
    """Which places a row has, shape ``[rows, places]``, 0 or 1."""

    def without(self, places: int) -> _Rows:
        """The same coalitions, after a document of that many tokens that none of them has."""
        padding = (0, 0, 0, places)
        layers = tuple(
            (torch.nn.functional.pad(keys, padding), torch.nn.functional.pad(values, padding))
            for keys, values in self.layers
        )
        return _Rows(self.members, layers, torch.nn.functional.pad(self.seen, (0, places)))

    def and_also(self, others: _Rows) -> _Rows:
        """Both, in one batch."""
        layers = tuple(
            (torch.cat([keys, other_keys]), torch.cat([values, other_values]))
            for (keys, values), (other_keys, other_values) in zip(self.layers, others.layers, strict=True)
        )
        return _Rows(torch.cat([self.members, others.members]), layers, torch.cat([self.seen, others.seen]))


class CausalLM:
    """Scores tokens in 32-bit floats, one case at a time; on CUDA where there is one.

    The same case, batch size, machine and number of threads give the same bits. Another batch size or machine
    multiplies matrices in another order, which moves a log probability by some 1e-6.
    """

    def __init__(
        self, name: str, *, batch_tokens: int, device: str | None = None, seconds: float = threading.TIMEOUT_MAX
    ) -> None:
        """Load a model.

        Args:
            name: a folder, or a model of the hub; it needs a ``tokenizer.json``.
            batch_tokens: how many tokens' keys and values are held at once, at most, where one row allows it; what
                a step makes of a batch comes on top for as long as the step takes.
            device: such as ``cpu`` or ``cuda``; without it, CUDA where there is one.
            seconds: how long a case may take, with the time that it waits for others.

        Raises:
            LikelihoodError: there is no such model, or not all of its layers attend to all that was read.
        """
        self._tokenizer = ModelTokenizer(name)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self._device.type == "cuda":
            # cuBLAS is deterministic with a workspace of fixed size, which it asks the process's environment for.
            os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        logging.disable_progress_bar()
        try:
            # The eager attention is the plain formula, exact with any mask; the fused kernels differ by machine.
            model = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=locate(name) is not Place.HUB,
            )
        except (ModelMissing, OSError, ValueError, ImportError) as error:
            raise LikelihoodError(f"language model {name} cannot be loaded: {error}") from error
        self._model = model.to(self._device).eval()
        config = model.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds - {"full_attention", "sliding_attention"} or getattr(model, "_is_stateful", False):
            raise LikelihoodError(f"language model {name} has layers with a state of their own: choose a transformer")
        limits = [getattr(config, "max_position_embeddings", None)]
        if "sliding_attention" in kinds or not getattr(config, "layer_types", None):
            limits.append(getattr(config, "sliding_window", None))
        self._tokens_max = min((limit for limit in limits if limit), default=None)
        self._batch_tokens = batch_tokens
        self._seconds = seconds
        self._ends = 0.0
        self.name = f"transformers/{self._tokenizer.model}"

    def tokenize(self, text: str) -> tuple[Sequence[int], Sequence[Span]]:
        """See :class:`attribution.value_functions.likelihood.Scorer`."""
        return self._tokenizer.tokenize(text)

    @property
    def opening(self) -> Sequence[int]:
        """See :class:`attribution.value_functions.likelihood.Scorer`."""
        return self._tokenizer.opening

    def score(self, prompt: Prompt, coalitions: Sequence[int] | None = None) -> Floats:
        """As :class:`attribution.value_functions.likelihood.Scorer` says; few of many are not read as a tree."""
        if self._tokens_max is not None and len(prompt) > self._tokens_max:
            raise Unscorable(
                f"the documents, question and answer have {len(prompt)} tokens; {self.name} reads {self._tokens_max}"
            )
        ends = time.monotonic() + self._seconds
        with _alone(self._seconds), torch.inference_mode(), _deterministic():
            self._ends = ends
            nothing = _Rows(torch.zeros(1, dtype=torch.int64), (), torch.zeros(1, 0, dtype=torch.int64))
            if coalitions is None:
                scores = torch.zeros(2 ** len(prompt.documents), prompt.scored, dtype=torch.float64)
                head, _ = self._read(nothing, prompt.head, 1)
                self._walk(head, 0, prompt, scores, _rows_max(prompt, self._batch_tokens))
            else:
                scores = torch.zeros(len(coalitions), prompt.scored, dtype=torch.float64)
                for row, members in zip(scores, coalitions, strict=True):
                    row[:] = self._of_answer(nothing, prompt.coalition(members), prompt)[0]
        found: Floats = scores.numpy().astype(np.float64)
        return found

    def _walk(self, rows: _Rows, place: int, prompt: Prompt, scores: torch.Tensor, rows_max: int) -> None:
        """Score every coalition that extends ``rows`` with documents from ``place`` on."""
        if place == len(prompt.documents):
            scores[rows.members] = self._of_answer(rows, prompt.tail, prompt)
            return
        document = prompt.documents[place]
        # Batches are handed on and not kept here, so that no more of them are alive than the way down needs.
        if 2 * len(rows.members) <= rows_max:
            both = rows.without(len(document)).and_also(self._extended(rows, document, place))
            self._walk(both, place + 1, prompt, scores, rows_max)
        else:
            self._walk(self._extended(rows, document, place), place + 1, prompt, scores, rows_max)
            self._walk(rows.without(len(document)), place + 1, prompt, scores, rows_max)

    def _of_answer(self, rows: _Rows, tokens: Sequence[int], prompt: Prompt) -> torch.Tensor:
        """The log probabilities of the answer, with which ``tokens`` end, after each row; ``[rows, scored]``."""
        _, logits = self._read(rows, tokens, prompt.scored + 1)
        answer = torch.tensor(prompt.tail[-prompt.scored :], device=self._device)
        logs = logits[:, :-1].log_softmax(dim=-1)
        return logs.gather(2, answer.expand(len(rows.members), -1)[:, :, None])[:, :, 0].double().cpu()

    def _extended(self, rows: _Rows, document: Sequence[int], place: int) -> _Rows:
        """The coalitions of ``rows``, each with the document at ``place`` too."""
        read, _ = self._read(rows, document, 1)
        return _Rows(read.members | 1 << place, read.layers, read.seen)

    def _read(self, rows: _Rows, tokens: Sequence[int], keep: int) -> tuple[_Rows, torch.Tensor]:
        """Every row after it has read ``tokens``, and its logits at the last ``keep`` of them."""
        if time.monotonic() > self._ends:
            raise LikelihoodError(f"{self.name} took longer than {self._seconds:g} s for a case")
        count = len(rows.members)
        seen = torch.nn.functional.pad(rows.seen, (0, len(tokens)), value=1)
        positions = rows.seen.sum(dim=1, keepdim=True) + torch.arange(len(tokens))
        cache: Any = DynamicCache(rows.layers) if rows.layers else DynamicCache()
        output = self._model(
            input_ids=torch.tensor(tokens, device=self._device).expand(count, -1),
            attention_mask=seen.to(self._device),
            position_ids=positions.to(self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        layers = tuple((layer.keys, layer.values) for layer in output.past_key_values.layers)
        return _Rows(rows.members, layers, seen), output.logits


def _rows_max(prompt: Prompt, batch_tokens: int) -> int:
    """The most rows of a batch, so that all batches that wait on the way down the tree stay within the budget."""
    places = len(prompt.head)
    waiting = places
    for document in prompt.documents:
        places += len(document)
        waiting += places
    return max(1, batch_tokens // (waiting + len(prompt)))


@contextmanager
def _alone(seconds: float) -> Iterator[None]:
    """One case at a time; the next waits for so long."""
    if not _ONE.acquire(timeout=seconds):
        raise LikelihoodError(f"other cases took longer than {seconds:g} s")
    try:
        yield
    finally:
        _ONE.release()


@contextmanager
def _deterministic() -> Iterator[None]:
    """Only deterministic algorithms, for as long as this takes."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)
