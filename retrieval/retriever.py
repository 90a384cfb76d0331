"""Hybrid retrieval: dense and lexical candidates, fused, then ranked again by the evidence of their sentences.

The index follows the catalogue: every retrieval first asks for the catalogue's epoch, and takes in what changed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from retrieval.analysis import subject_stems, term_ids
from retrieval.catalogue import Catalogue, StoredDocument
from retrieval.copies import Copies, Terms
from retrieval.dense_index import DenseIndex, Mask, Rows
from retrieval.embedding import Embedder
from retrieval.evidence import Evidence, Question, echoes, weigh
from retrieval.lexical_index import LexicalEntry, LexicalIndex, LexicalView
from retrieval.near_duplicates import repeated_sentences
from retrieval.passage_table import StoredPassage
from retrieval.similarity import Floats

CANDIDATES: Final = 100
"""How many passages each index proposes."""
RERANKED_MIN: Final = 30
PASSAGES_PER_DOCUMENT: Final = 3
_CACHED_PASSAGES: Final = 4_096
_CHUNK: Final = 512
_REBUILT_ROWS_MAX: Final = 2_048
"""Up to this size the index is built anew whenever a passage is gone, beyond it when a tenth of them are.

The lexical index counts a gone passage in its term statistics until then.
"""

_STANDARD: Final = 2.0**-24
"""Measures are multiples of it when they are standardised: cosines are already."""

# Weights of the standardised measures, found on data/squad-dev and kept round: a tenth more or less changes nothing.
LEXICAL_WEIGHT: Final = 0.7
SENTENCE_WEIGHT: Final = 0.5


class EmbedderMismatch(RuntimeError):
    """The stored passages were embedded with another model."""


@dataclass(frozen=True, slots=True)
class RetrievedPassage:
    """A passage of a retrieved document, with the evidence of its sentences."""

    id: int
    start: int
    text: str
    sentences: npt.NDArray[np.int32]
    """Spans relative to ``start``, shape ``[n, 2]``."""
    evidence: Evidence
    own: Mask
    """Which sentences are its own: neither said by what was registered before and retrieved too, nor the question."""
    registered_ms: int


@dataclass(frozen=True, slots=True)
class RetrievedDocument:
    """A retrieved document, with its best passages, best first."""

    document: StoredDocument
    score: float
    """Sum of standardised measures: comparable within one retrieval only."""
    passages: tuple[RetrievedPassage, ...]

    @property
    def registered_ms(self) -> int:
        """Since when it has the best of its passages."""
        return self.passages[0].registered_ms


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What was found for a question, best first."""

    question: Question
    documents: tuple[RetrievedDocument, ...]
    epoch: int = 0
    """The catalogue's epoch that it was found at; 0 where nothing was looked for."""


@dataclass(frozen=True, slots=True)
class _View:
    """The index at one epoch. Arrays have one entry a row; rows are never renumbered within a view's life.

    Only originals have rows. So copies change neither what is found nor the statistics it is ranked by.
    """

    epoch: int
    dense: DenseIndex
    lexical: LexicalView
    passage: Rows
    document: Rows
    alive: Mask
    documents: dict[int, StoredDocument] = field(repr=False)
    restricted: dict[int, StoredDocument] = field(repr=False)
    """The documents that not every query may use."""
    copies: Copies = field(repr=False)

    def refused(self, purpose: str, price: int) -> list[int]:
        """The numbers of the documents that a query of that purpose and price may not use."""
        return [
            number
            for number, document in self.restricted.items()
            if price < document.terms.floor
            or (document.terms.purposes is not None and purpose not in document.terms.purposes)
        ]


class Retriever:
    """Finds passages. Thread-safe."""

    def __init__(self, catalogue: Catalogue, embedder: Embedder) -> None:
        """Cheap; the index is built at the first retrieval, or by :meth:`refresh`."""
        self._catalogue = catalogue
        self._embedder = embedder
        self._writing = threading.Lock()
        self._cache: LRUCache[int, StoredPassage] = LRUCache(_CACHED_PASSAGES)
        self._caching = threading.Lock()
        self._lexical = LexicalIndex()
        self._view = self._empty()

    def refresh(self) -> int:
        """Take in what changed in the catalogue, and give the number of passages that can be found.

        Raises:
            EmbedderMismatch: the catalogue was embedded with another model.
        """
        return int(self._current().alive.sum())

    def retrieve(self, text: str, *, top_k: int, purpose: str, price: int) -> Retrieval:
        """The ``top_k`` best documents for a question that may be used for ``purpose`` at ``price`` (units).

        Raises:
            EmbedderMismatch: the catalogue was embedded with another model.
        """
        view = self._current()
        terms = term_ids(subject_stems(text))
        idf = view.lexical.idf(terms.tolist())
        question = Question(text, self._embedder.embed_query(text), terms, idf)
        refused = view.refused(purpose, price)
        allowed = view.alive & ~np.isin(view.document, refused) if refused else view.alive
        rows, base = self._candidates(view, question, top_k, allowed, purpose, price)
        passages, base = self._looked_at(view, terms, rows, base, refused)
        evidence = weigh(question, passages)
        repeated = _repeated(passages, evidence)
        echoed = echoes(text, passages)
        scores = base + SENTENCE_WEIGHT * (
            _standardised(np.asarray([each.similarity.max(initial=0.0) for each in evidence]))
            + _standardised(np.asarray([each.lexical.max(initial=0.0) for each in evidence]))
        )
        number = np.asarray([stored.document for stored in passages])
        taken = [(source >= 0) & (number[source] != mine) for source, mine in zip(repeated, number, strict=True)]
        demoted = [_found_for_others(each, mask) for each, mask in zip(evidence, taken, strict=True)]
        scores[demoted] -= 1 + np.ptp(scores) if len(scores) else 0  # behind everything that is found for itself
        ranked = _ranked(view, passages, scores, top_k)
        chosen = [i for _, indexes in ranked for i in indexes]
        parts = {
            i: RetrievedPassage(
                id=passages[i].id,
                start=passages[i].start,
                text=passages[i].text,
                sentences=passages[i].sentences,
                evidence=evidence[i],
                own=~np.isin(repeated[i], chosen) & ~echoed[i],
                registered_ms=passages[i].registered_ms,
            )
            for i in chosen
        }
        return Retrieval(
            question,
            tuple(
                RetrievedDocument(
                    document=view.documents[number],
                    score=float(scores[indexes[0]]),
                    passages=tuple(parts[i] for i in indexes),
                )
                for number, indexes in ranked
            ),
            view.epoch,
        )

    def _looked_at(
        self, view: _View, terms: Terms, rows: Rows, base: Floats, refused: Sequence[int]
    ) -> tuple[list[StoredPassage], Floats]:
        """The passages of those rows that are still there, and such copies as name what is asked where they do not."""
        loaded = self._load(view.passage[rows])
        passages = [stored for stored in loaded if stored is not None]
        base = base[[stored is not None for stored in loaded]]
        named = view.copies.named(terms, passages, refused)
        more = self._load(copy.passage for _, copy in named)
        beside = [index for (index, _), stored in zip(named, more, strict=True) if stored is not None]
        return passages + [stored for stored in more if stored is not None], np.concatenate([base, base[beside]])

    def _candidates(
        self, view: _View, question: Question, top_k: int, allowed: Mask, purpose: str, price: int
    ) -> tuple[Rows, Floats]:
        """Rows worth a closer look and their fused scores, best first, at most a few of each document."""
        wanted = max(RERANKED_MIN, 2 * top_k)
        limit = CANDIDATES
        while True:
            dense_rows, cosines = view.dense.search(question.vector, limit, allowed)
            lexical_rows, bm25 = view.lexical.search(question.terms.tolist(), limit, purpose, price)
            rows = np.union1d(dense_rows, lexical_rows)
            if limit >= len(view.passage) or len(np.unique(view.document[rows])) >= top_k:
                break
            limit *= 4
        if not len(rows):
            return rows, np.empty(0)
        lexical = np.full(len(rows), float(bm25.min()) if len(bm25) >= limit else 0.0)
        lexical[np.searchsorted(rows, lexical_rows)] = bm25
        dense = np.empty(len(rows))
        dense[np.searchsorted(rows, dense_rows)] = cosines
        others = np.setdiff1d(lexical_rows, dense_rows, assume_unique=True)
        dense[np.searchsorted(rows, others)] = view.dense.scores(question.vector, others)
        fused = _standardised(dense) + LEXICAL_WEIGHT * _standardised(lexical)
        order = np.lexsort((rows, -fused))
        chosen: list[int] = []
        taken: dict[int, int] = {}
        for i in order:
            number = int(view.document[rows[i]])
            if len(chosen) >= wanted and (number in taken or len(taken) >= top_k):
                continue
            if taken.get(number, 0) < PASSAGES_PER_DOCUMENT:
                taken[number] = taken.get(number, 0) + 1
                chosen.append(int(i))
        return rows[chosen], fused[chosen]

    def _load(self, ids: Iterable[int]) -> list[StoredPassage | None]:
        wanted = [int(number) for number in ids]
        with self._caching:
            found = {number: self._cache[number] for number in wanted if number in self._cache}
        missing = [number for number in wanted if number not in found]
        if missing:
            loaded = {stored.id: stored for stored in self._catalogue.passages(missing)}
            found |= loaded
            with self._caching:
                self._cache.update(loaded)
        return [found.get(number) for number in wanted]

    def _current(self) -> _View:
        view = self._view
        if self._catalogue.epoch() == view.epoch:
            return view
        with self._writing:
            if self._catalogue.epoch() != self._view.epoch:
                self._view = self._updated(self._view)
            return self._view

    def _empty(self) -> _View:
        none = np.empty(0, np.int64)
        return _View(
            epoch=-1,
            dense=DenseIndex(self._embedder.dimension),
            lexical=self._lexical.update((), ()),
            passage=none,
            document=none,
            alive=np.empty(0, np.bool_),
            documents={},
            restricted={},
            copies=Copies(),
        )

    def _updated(self, view: _View) -> _View:
        epoch, changed = self._catalogue.changes(view.epoch)
        gone = np.isin(view.document, [document.number for document in changed])
        dead = len(view.alive) - int((view.alive & ~gone).sum())
        if dead and (len(view.alive) <= _REBUILT_ROWS_MAX or dead > len(view.alive) // 10):
            self._lexical = LexicalIndex()
            view = self._empty()
            epoch, changed = self._catalogue.changes(view.epoch)
        numbers = {document.number for document in changed}
        live = {document.number: document for document in changed if document.withdrawn_ms is None}
        documents = {number: each for number, each in view.documents.items() if number not in numbers} | live
        passage, document, vectors, entries = [view.passage], [view.document], [], []
        row = len(view.passage)
        copies: list[StoredPassage] = []
        for i in range(0, len(live), _CHUNK):
            for stored in self._catalogue.passages_of(list(live)[i : i + _CHUNK]):
                if stored.version != live[stored.document].version:
                    continue  # replaced since the documents were read: the epoch has moved, the next call sees it
                if stored.embedder != self._embedder.name:
                    raise EmbedderMismatch(
                        f"the documents were embedded with {stored.embedder}, and the setting says "
                        f"{self._embedder.name}: set PATRONAGE_EMBEDDER back, or run `patronage reembed`"
                    )
                if stored.original is not None:
                    copies.append(stored)
                    continue
                terms = live[stored.document].terms
                entries.append(LexicalEntry(row, stored.document, stored.terms, terms.purposes, terms.floor))
                vectors.append(stored.vector)
                passage.append(np.asarray([stored.id], np.int64))
                document.append(np.asarray([stored.document], np.int64))
                row += 1
        gone = np.isin(view.document, list(numbers))
        return _View(
            epoch=epoch,
            dense=view.dense.extended(np.asarray(vectors, np.float32)) if vectors else view.dense,
            lexical=self._lexical.update(numbers, entries),
            passage=np.concatenate(passage),
            document=np.concatenate(document),
            alive=np.concatenate([view.alive & ~gone, np.ones(len(vectors), np.bool_)]),
            documents=documents,
            restricted={
                number: each
                for number, each in documents.items()
                if each.terms.floor or each.terms.purposes is not None
            },
            copies=view.copies.updated(numbers, copies),
        )


def _ranked(view: _View, passages: Sequence[StoredPassage], scores: Floats, top_k: int) -> list[tuple[int, list[int]]]:
    """The best documents' numbers, by their best passage, ties by id, and the indexes of their passages."""
    best: dict[int, list[int]] = {}
    for i in np.lexsort((np.asarray([passage.id for passage in passages]), -scores)):
        best.setdefault(passages[i].document, []).append(int(i))
    ranked = sorted(best.items(), key=lambda item: (-scores[item[1][0]], view.documents[item[0]].id))
    return ranked[:top_k]


def _repeated(passages: Sequence[StoredPassage], evidence: Sequence[Evidence]) -> list[npt.NDArray[np.int64]]:
    """For each sentence of each passage, the index of the passage that has it by earlier registration, or -1.

    A sentence that names more of what is asked for than anything in that passage is no repetition: what they
    differ in is the point, as on pages that say the same of different things.
    """
    order = sorted(range(len(passages)), key=lambda i: passages[i].registration)
    found = repeated_sentences([passages[i].worded for i in order], [passages[i].shingled for i in order])
    places = np.asarray([*order, -1], np.int64)
    named = np.asarray([*(each.coverage.max(initial=0.0) for each in evidence), np.inf])
    result: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * len(passages)
    for i, sources in zip(order, found, strict=True):
        result[i] = np.where(evidence[i].coverage > named[places[sources]], -1, places[sources])
    return result


def _found_for_others(evidence: Evidence, taken: Mask) -> bool:
    """Whether the best that a passage has for the question is said in another document, registered earlier."""
    return bool(taken.any()) and any(
        measure[~taken].max(initial=-np.inf) < measure.max() for measure in (evidence.similarity, evidence.lexical)
    )


def _standardised(values: Floats) -> Floats:
    """Zero mean and unit deviation; zeros where there is nothing to tell apart.

    Values are counted in units of ``_STANDARD``, so that the sums are of integers and their order makes no difference.
    """
    units = np.rint(values / _STANDARD).astype(np.int64)
    each, count = units.tolist(), len(units)
    total = sum(each)
    spread = count * sum(unit * unit for unit in each) - total * total
    return (count * units - total) / math.sqrt(spread) if spread else np.zeros(count)
