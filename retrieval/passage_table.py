"""The passages that may be retrieved, in SQL, and which of them are copies.

Rule ``earliest/1``. Passages come in the order of registration: time, then the document's number, then place. A
passage is an *original* unless it is a near-duplicate (:mod:`retrieval.near_duplicates`) of an earlier original of
another document; then it is a copy of the earliest such, and of no copy, so likeness does not chain from text to
text. What is a copy depends on the passages alone and not on the order in which they came or went.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from retrieval.near_duplicates import Runs, Vector, Wording, Words, contained, repeats, runs, sketch, words_of
from retrieval.similarity import cosine

METADATA = sa.MetaData()

passages_table = sa.Table(
    "passages",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("document", sa.Integer, nullable=False, index=True),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("start", sa.Integer, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("sentences", sa.LargeBinary, nullable=False),
    sa.Column("terms", sa.LargeBinary, nullable=False),
    sa.Column("sentence_terms", sa.LargeBinary, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("sentence_vectors", sa.LargeBinary, nullable=False),
    sa.Column("embedder", sa.String(200), nullable=False),
    sa.Column("registered_ms", sa.BigInteger, nullable=False),
    sa.Column("original", sa.Integer, nullable=True, index=True),
    sqlite_autoincrement=True,
)

sketches = sa.Table(
    "sketches",
    METADATA,
    sa.Column("hash", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("passage", sa.Integer, primary_key=True, autoincrement=False, index=True),
)

LOOKED_AT: Final = 32
"""Of how many passages that share parts of a sketch, the likest first, the wording is compared."""
SHARED: Final = 2
"""How many parts of a sketch they must share, unless the sketch is small: one is shared by chance."""
REPEATED: Final = 8
"""In how many passages of one document a part of a sketch is looked for. A document that says the same in each of its
thousands of passages would else be compared with itself, and with the next such one, passage by passage."""
_NEVER: Final = 2**62
"""Later than any registration."""
_CHUNK: Final = 500
_DATES: Final = 32


@dataclass(frozen=True)
class PreparedPassage:
    """A passage ready to be stored: text, spans and vectors. Spans are relative to the passage's start."""

    start: int
    text: str
    sentences: npt.NDArray[np.int32]
    terms: npt.NDArray[np.uint32]
    sentence_terms: npt.NDArray[np.int32]
    """How many of ``terms``, in order, belong to each sentence; shape ``[sentences]``."""
    vector: npt.NDArray[np.float32]
    sentence_vectors: npt.NDArray[np.float16]

    @cached_property
    def shingled(self) -> tuple[Runs, npt.NDArray[np.int64]]:
        """Its shingles, see :func:`retrieval.near_duplicates.runs`."""
        return runs(self.terms, self.sentence_terms)

    @cached_property
    def worded(self) -> Words:
        """The words of each of its sentences."""
        return words_of(self.text[start:end] for start, end in self.sentences.tolist())

    @cached_property
    def wording(self) -> Wording:
        """What it is compared by."""
        return Wording(self.text, np.unique(self.shingled[0]), lambda: self.vector)

    @cached_property
    def sketched(self) -> list[int]:
        """What others find it by, see :func:`retrieval.near_duplicates.sketch`."""
        return sketch(self.wording.runs)


@dataclass(frozen=True)
class ComparedPassage(PreparedPassage):
    """A passage that was compared with what is stored, before the database's write lock is taken: see :func:`compare`.

    It takes some milliseconds, and what it gives depends on nothing but the passages that are compared.
    """

    earlier: tuple[int, ...]
    """The ids of those with which it was compared."""
    copy_of: int | None
    """Which of them it is a copy of."""


@dataclass(frozen=True)
class StoredPassage(PreparedPassage):
    """A passage as the catalogue gives it back."""

    id: int
    document: int
    """The document's number."""
    version: str
    embedder: str
    registered_ms: int
    """When the document first had it."""
    original: int | None
    """The passage that it is a copy of."""

    @property
    def registration(self) -> tuple[int, int, int]:
        """Its place in the order of registration."""
        return self.registered_ms, self.document, self.start


def load(connection: sa.Connection, column: sa.Column[int], keys: Sequence[int]) -> Iterator[StoredPassage]:
    """The passages with one of ``keys`` in ``column``, by id."""
    for i in range(0, len(keys), _CHUNK):
        query = sa.select(passages_table).where(column.in_(keys[i : i + _CHUNK])).order_by(passages_table.c.id)
        yield from map(_passage, connection.execute(query))


def store(
    connection: sa.Connection,
    document: int,
    version: str,
    prepared: Sequence[PreparedPassage],
    registered: Sequence[int],
    embedder: str,
) -> set[int]:
    """Add passages of a document, registered at those times (ms), and return what :func:`mark_copies` does."""
    rows = [
        {
            "document": document,
            "version": version,
            "start": passage.start,
            "text": passage.text,
            "sentences": passage.sentences.tobytes(),
            "terms": passage.terms.tobytes(),
            "sentence_terms": passage.sentence_terms.tobytes(),
            "vector": passage.vector.tobytes(),
            "sentence_vectors": passage.sentence_vectors.tobytes(),
            "embedder": embedder,
            "registered_ms": since,
        }
        for passage, since in zip(prepared, registered, strict=True)
    ]
    if not rows:
        return set()
    connection.execute(sa.insert(passages_table), rows)
    new = list(load(connection, passages_table.c.document, [document]))
    times: Counter[int] = Counter()
    parts: list[dict[str, int]] = []
    for each in new:
        rare = [part for part in each.sketched if times[part] < REPEATED]
        times.update(rare)
        parts += [{"hash": part, "passage": each.id} for part in rare]
    if parts:
        connection.execute(sa.insert(sketches), parts)
    shared = _shared(connection, document, list(times))
    alone = {each.id for each in new if shared.isdisjoint(each.sketched)}
    compared = {
        each.id: (given.earlier, given.copy_of)
        for each, given in zip(new, prepared, strict=True)
        if isinstance(given, ComparedPassage)
    }
    return _decide(connection, new, alone, compared)


def compare(connection: sa.Connection, passage: PreparedPassage, document: int | None) -> ComparedPassage:
    """Compare a passage with those it may be a copy of, as if it came now; ``document`` is its own, if there is one."""
    earlier, _ = _sharing(connection, passage, (_NEVER, -1 if document is None else document))
    found = _original(passage, load(connection, passages_table.c.id, earlier))
    given = {each.name: getattr(passage, each.name) for each in fields(passage)}
    return ComparedPassage(**given, earlier=tuple(earlier), copy_of=found)


def remove(connection: sa.Connection, document: int) -> list[int]:
    """Remove the passages of a document; their copies, whose ids are returned, are for :func:`mark_copies` to see."""
    gone = sa.select(passages_table.c.id).where(passages_table.c.document == document)
    orphaned = sa.select(passages_table.c.id).where(passages_table.c.original.in_(gone))
    found = list(connection.execute(orphaned).scalars())
    connection.execute(sa.delete(sketches).where(sketches.c.passage.in_(gone)))
    connection.execute(sa.delete(passages_table).where(passages_table.c.document == document))
    return found


def mark_copies(connection: sa.Connection, passages: Iterable[int]) -> set[int]:
    """Decide anew which of these passages are copies, and of all whose state depends on theirs.

    Returns:
        The numbers of the documents with a passage that became an original or a copy.
    """
    return _decide(connection, load(connection, passages_table.c.id, list(passages)), frozenset(), {})


def _decide(
    connection: sa.Connection,
    passages: Iterable[StoredPassage],
    alone: Collection[int],
    compared: Mapping[int, tuple[tuple[int, ...], int | None]],
) -> set[int]:
    """As :func:`mark_copies`; ``alone`` are the ids of passages that are new and have nothing in common with others.

    ``compared`` says with which passages some were compared before, and which of those they are copies of. It goes
    through them in the order of registration, and a passage's state depends on earlier ones only, so each is decided
    for good.
    """
    known = {each.id: each for each in passages}
    queue = [(each.registration, each.id) for each in known.values()]
    heapq.heapify(queue)
    changed: set[int] = set()
    while queue:
        _, number = heapq.heappop(queue)
        if number in alone:
            continue
        passage = known[number]
        earlier, later = _sharing(connection, passage, passage.registration[:2])
        later.update(connection.execute(_COPIES, {"passage": number}).scalars())
        before, found = compared.get(number, (None, None))
        if before != tuple(earlier):
            found = _original(passage, load(connection, passages_table.c.id, earlier))
        moves = found != passage.original
        if moves:
            moved = sa.update(passages_table).where(passages_table.c.id == number)
            connection.execute(moved.values(original=found))
            changed.add(passage.document)
        if moves or found is None:
            for each in load(connection, passages_table.c.id, sorted(later - known.keys())):
                known[each.id] = each
                heapq.heappush(queue, (each.registration, each.id))
    return changed


def dates(connection: sa.Connection, document: int) -> list[int]:
    """Since when the document has its passages: the distinct times, the oldest ``32``, in order."""
    column = passages_table.c.registered_ms
    query = sa.select(column).where(passages_table.c.document == document).distinct().order_by(column).limit(_DATES)
    return list(connection.execute(query).scalars())


_SHARING: Final = (
    # The passages of other documents that share part of a passage's sketch, those that share the most first.
    sa.select(*(passages_table.c[name] for name in ("id", "registered_ms", "document", "original")))
    .join_from(sketches, passages_table, sketches.c.passage == passages_table.c.id)
    .where(sketches.c.hash.in_(sa.bindparam("parts", expanding=True)))
    .where(passages_table.c.document != sa.bindparam("document"))
    .where(passages_table.c.original.is_(None) | (passages_table.c.registered_ms >= sa.bindparam("registered_ms")))
    .group_by(passages_table.c.id)
    .having(sa.func.count() >= sa.bindparam("enough"))
    .order_by(sa.func.count().desc(), passages_table.c.id)
)
_COPIES: Final = sa.select(passages_table.c.id).where(passages_table.c.original == sa.bindparam("passage"))


def _shared(connection: sa.Connection, document: int, parts: Sequence[int]) -> set[int]:
    """Those parts of sketches that other documents have too."""
    query = sa.select(sketches.c.hash).join(passages_table, sketches.c.passage == passages_table.c.id).distinct()
    query = query.where(passages_table.c.document != document)
    found: set[int] = set()
    for i in range(0, len(parts), _CHUNK):
        found.update(connection.execute(query.where(sketches.c.hash.in_(parts[i : i + _CHUNK]))).scalars())
    return found


def _sharing(
    connection: sa.Connection, passage: PreparedPassage, registration: tuple[int, int]
) -> tuple[list[int], set[int]]:
    """The earlier originals that it may be a copy of, the likest first, and the later passages that may be its copies.

    ``registration`` is its time and the number of its document.
    """
    registered_ms, document = registration
    given = {
        "parts": passage.sketched,
        "document": document,
        "registered_ms": registered_ms,
        "enough": min(SHARED, max(len(passage.sketched) // 4, 1)),
    }
    earlier: list[int] = []
    later: set[int] = set()
    beyond: Counter[int] = Counter()
    for row in connection.execute(_SHARING, given):
        if (row.registered_ms, row.document) > registration:
            later.add(row.id)
            beyond[row.document] += 1
        elif row.original is None and len(earlier) < LOOKED_AT:
            earlier.append(row.id)
    # Where so many were found, there may be more that are not looked for.
    repeating = [found for found, times in beyond.items() if times >= REPEATED]
    if repeating:
        rest = sa.select(passages_table.c.id).where(passages_table.c.document.in_(repeating))
        rest = rest.where(passages_table.c.registered_ms >= registered_ms)
        later.update(connection.execute(rest).scalars())
    return earlier, later


def _original(passage: PreparedPassage, earlier: Iterable[StoredPassage]) -> int | None:
    """The passage that it is a copy of. A copy may be cut elsewhere, so it is compared with all that a document has."""
    together: dict[int, list[StoredPassage]] = {}
    for each in sorted(earlier, key=lambda each: each.registration):
        together.setdefault(each.document, []).append(each)
    mine = passage.wording
    for parts in together.values():
        whole = Wording(
            " ".join(each.text for each in parts),
            np.unique(np.concatenate([each.shingled[0] for each in parts])),
            partial(_nearest, parts, passage.vector),
        )
        if repeats(mine, whole):
            return max(parts, key=lambda each: contained(mine.runs, each.wording.runs)).id
    return None


def _nearest(parts: Sequence[StoredPassage], vector: Vector) -> Vector:
    return max((each.vector for each in parts), key=lambda own: cosine(own, vector))


def _passage(row: Any) -> StoredPassage:
    vector = np.frombuffer(row.vector, np.float32)
    return StoredPassage(
        start=row.start,
        text=row.text,
        sentences=np.frombuffer(row.sentences, np.int32).reshape(-1, 2),
        terms=np.frombuffer(row.terms, np.uint32),
        sentence_terms=np.frombuffer(row.sentence_terms, np.int32),
        vector=vector,
        sentence_vectors=np.frombuffer(row.sentence_vectors, np.float16).reshape(-1, len(vector)),
        id=row.id,
        document=row.document,
        version=row.version,
        embedder=row.embedder,
        registered_ms=row.registered_ms,
        original=row.original,
    )
