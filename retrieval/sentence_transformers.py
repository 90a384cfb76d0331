"""Any sentence-transformers model as an embedder. Needs the extra of the same name, with torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from sentence_transformers import SentenceTransformer

from retrieval.chunking import Span
from retrieval.embedding import TOKENS_MAX, EmbedderError, PassageVectors, Vector, vocabulary
from retrieval.model_files import ModelMissing, Place, locate


class SentenceTransformersEmbedder:
    """A model of the hub by name, or of a folder by path; on CUDA where there is one.

    Models differ in how they pool, so each sentence is embedded by itself.
    """

    def __init__(self, name: str) -> None:
        """Load the model.

        Raises:
            EmbedderError: there is no such model.
        """
        try:
            self._model = SentenceTransformer(name, local_files_only=locate(name) is not Place.HUB)
        except (ModelMissing, OSError, ValueError) as error:
            raise EmbedderError(f"embedding model {name} cannot be loaded: {error}") from error
        dimension = self._model.get_embedding_dimension()
        if not dimension:
            raise EmbedderError(f"embedding model {name} does not say its dimension")
        self.name = f"sentence-transformers/{name}"
        self.dimension = int(dimension)
        self.tokens_max = int(self._model.max_seq_length or TOKENS_MAX) - int(
            self._model.tokenizer.num_special_tokens_to_add()
        )
        self.tokenizer = vocabulary(self._model.tokenizer.get_vocab())
        self._lock = threading.Lock()

    def embed_query(self, text: str) -> Vector:
        """See :meth:`retrieval.embedding.Embedder.embed_query`."""
        return self._embed([text])[0]

    def embed_passage(self, text: str, sentences: Sequence[Span]) -> PassageVectors:
        """See :meth:`retrieval.embedding.Embedder.embed_passage`."""
        vectors = self._embed([text, *[text[start:end] for start, end in sentences]])
        return PassageVectors(vectors[0], np.asarray(vectors[1:], np.float32).reshape(-1, self.dimension))

    def count_tokens(self, text: str) -> int:
        """See :meth:`retrieval.embedding.Embedder.count_tokens`."""
        with self._lock:
            return len(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _embed(self, texts: Sequence[str]) -> list[Vector]:
        # One text a pass, as embedding.py explains. Models and their tokenizers are not thread-safe.
        with self._lock:
            return [
                np.asarray(self._model.encode(text, normalize_embeddings=True, show_progress_bar=False), np.float32)
                for text in texts
            ]
