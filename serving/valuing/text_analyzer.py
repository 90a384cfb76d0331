"""The text analyzer of attribution, with the embedder, the words and the copies of retrieval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attribution.games.players import Relation
from attribution.value_functions.support import VECTOR_ONE, Span, Vectors
from retrieval.analysis import stems, subject_stems
from retrieval.chunking import sentences
from retrieval.embedding import Embedder
from retrieval.near_duplicates import relation, sentences_of_others


class EmbeddingAnalyzer:
    """Analyzes texts as retrieval does. Thread-safe."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def sentences(self, text: str) -> Sequence[Span]:
        """See :meth:`attribution.value_functions.support.TextAnalyzer.sentences`."""
        return sentences(text)

    def stems(self, text: str) -> Sequence[str]:
        """See :meth:`attribution.value_functions.support.TextAnalyzer.stems`."""
        return stems(text)

    def subject(self, text: str) -> Sequence[str]:
        """See :meth:`attribution.value_functions.support.TextAnalyzer.subject`."""
        return subject_stems(text)

    def vectors(self, text: str, spans: Sequence[Span]) -> Vectors:
        """See :meth:`attribution.value_functions.support.TextAnalyzer.vectors`."""
        vectors = self._embedder.embed_passage(text, spans).sentences.astype(np.float64)
        return np.rint(vectors * VECTOR_ONE).astype(np.int64)

    def relation(self, texts: Sequence[str]) -> Relation:
        """See :meth:`attribution.cases.methods.CaseAnalyzer.relation`: compared as when passages are registered."""
        return relation(texts, lambda text: self._embedder.embed_passage(text, []).passage)

    def repeated(self, texts: Sequence[str]) -> Sequence[Sequence[tuple[Span, int]]]:
        """See :meth:`attribution.cases.methods.CaseAnalyzer.repeated`: compared as in what a paid query retrieves."""
        return sentences_of_others(texts)
