"""The lexical index: BM25 over term ids, on tantivy, with terms of use as a filter inside the search.

Tantivy adds up a passage's score in float32, term by term in the order of the query, which is that of the ids here: it
depends neither on the order in which passages came, nor on the processor. Passages that were removed stay in tantivy's
statistics until the index is built anew, which :mod:`retrieval.retriever` decides.

Tantivy's segments are immutable and a searcher is a view of one moment, so a search never sees half a change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import tantivy

from retrieval.dense_index import Rows

Scores = npt.NDArray[np.float32]

_ANY: Final = "*"
_HEAP_BYTES: Final = 64_000_000
_EXACT: Final = Context(prec=34)
"""Rounds every logarithm to the nearest decimal; what libraries of floats give depends on the processor."""


@dataclass(frozen=True, slots=True)
class LexicalEntry:
    """One passage as the index takes it."""

    row: int
    document: int
    terms: npt.NDArray[np.uint32]
    purposes: tuple[str, ...] | None
    floor: int


class LexicalView:
    """The index at one moment."""

    def __init__(self, schema: tantivy.Schema, searcher: tantivy.Searcher) -> None:
        self._schema = schema
        self._searcher = searcher

    def search(self, terms: Iterable[int], limit: int, purpose: str, price: int) -> tuple[Rows, Scores]:
        """The best ``limit`` rows that may be used for ``purpose`` at ``price``, best first, with their BM25."""
        schema, query = self._schema, tantivy.Query
        wanted = [(tantivy.Occur.Should, query.term_query(schema, "terms", str(term))) for term in sorted(terms)]
        if not wanted or not self._searcher.num_docs:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        allowed = [
            query.term_set_query(schema, "purposes", [_ANY, purpose]),
            query.range_query(schema, "floor", tantivy.FieldType.Integer, upper_bound=price),
        ]
        clauses = [(tantivy.Occur.Must, query.boolean_query(wanted))]
        clauses += [(tantivy.Occur.Must, query.const_score_query(each, 0.0)) for each in allowed]
        hits = self._best(query.boolean_query(clauses), limit)
        addresses = [address for _, address in hits]
        rows = np.asarray(self._searcher.fast_field_values("row", addresses), np.int64)
        scores = np.asarray([score for score, _ in hits], np.float32)
        order = np.lexsort((rows, -scores))[:limit]
        return rows[order], scores[order]

    def _best(self, query: tantivy.Query, limit: int) -> list[tuple[float, tantivy.DocAddress]]:
        """The best ``limit`` hits and every hit that equals the last of them.

        Among equals tantivy takes those of its oldest segments, so where it cuts depends on how the index grew.
        """
        taken = limit
        while True:
            taken *= 2
            hits = self._searcher.search(query, taken, count=False).hits
            if len(hits) < taken or hits[-1][0] < hits[limit - 1][0]:
                return list(hits)

    def idf(self, terms: Sequence[int]) -> npt.NDArray[np.float64]:
        """Inverse document frequency of each term, as BM25 has it: ``ln(1 + (N - n + 0.5) / (n + 0.5))``."""
        total = self._searcher.num_docs
        return np.asarray([_idf(total, self._count(term)) for term in terms], np.float64)

    def _count(self, term: int) -> int:
        """In how many passages a term is; the index's own statistics count removed ones until a merge."""
        query = tantivy.Query.term_query(self._schema, "terms", str(term))
        return int(self._searcher.search(query, 1).count)  # type: ignore[attr-defined] # its stubs leave it out


@lru_cache(4_096)
def _idf(total: int, having: int) -> float:
    return float(_EXACT.ln(_EXACT.divide(Decimal(2 * total + 2), Decimal(2 * having + 1))))


class LexicalIndex:
    """The writer. One thread writes; any number search the views."""

    def __init__(self) -> None:
        builder = tantivy.SchemaBuilder()
        builder.add_integer_field("row", fast=True)
        builder.add_integer_field("document", indexed=True)
        builder.add_text_field("terms", tokenizer_name="whitespace", index_option="freq")
        builder.add_text_field("purposes", tokenizer_name="whitespace", index_option="basic")
        builder.add_integer_field("floor", indexed=True, fast=True)
        self._schema = builder.build()
        self._index = tantivy.Index(self._schema)
        self._writer = self._index.writer(_HEAP_BYTES, 1)

    def update(self, removed: Iterable[int], added: Iterable[LexicalEntry]) -> LexicalView:
        """Remove every passage of some documents, add others, and give the view after both."""
        for document in removed:
            self._writer.delete_documents_by_term("document", document)
        for entry in added:
            purposes = [_ANY] if entry.purposes is None else list(entry.purposes)
            self._writer.add_document(
                tantivy.Document(
                    row=entry.row,
                    document=entry.document,
                    terms=" ".join(map(str, entry.terms.tolist())),
                    purposes=" ".join(purposes),
                    floor=entry.floor,
                )
            )
        self._writer.commit()
        self._index.reload()
        return LexicalView(self._schema, self._index.searcher())
