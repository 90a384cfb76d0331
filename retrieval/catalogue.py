"""The catalogue: contributors, documents and their versions, in SQL; their passages are in :mod:`passage_table`.

Every change to what may be retrieved advances its epoch in the same transaction. A replica that has seen epoch
``n`` asks for what changed since, so a withdrawal reaches every replica with its next query.
Versions are kept for ever, because citations are spans into them; passages only for what may be retrieved.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import sqlalchemy as sa

from retrieval import passage_table, sources, versions
from retrieval.analysis import stems, term_ids
from retrieval.chunking import PassageSpan, Span, passages
from retrieval.documents import Document, DocumentConflict, DocumentError, SplitShare, Terms, check_terms
from retrieval.embedding import Embedder
from retrieval.passage_table import METADATA, PreparedPassage, StoredPassage, passages_table
from retrieval.versions import Ages

_ID = sa.String(200)

contributors = sa.Table(
    "contributors",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", sa.String(500), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

documents = sa.Table(
    "documents",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", _ID, nullable=False, unique=True),
    sa.Column("contributor", _ID, nullable=False, index=True),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("title", sa.String(500), nullable=False),
    sa.Column("url", sa.String(2000), nullable=True),
    sa.Column("splits", sa.Text, nullable=False),
    sa.Column("purposes", sa.Text, nullable=True),
    sa.Column("floor", sa.BigInteger, nullable=False),
    sa.Column("terms_format", sa.Integer, nullable=False, server_default="1"),
    sa.Column("added_ms", sa.BigInteger, nullable=False),
    sa.Column("withdrawn_ms", sa.BigInteger, nullable=True),
    sa.Column("changed", sa.BigInteger, nullable=False, index=True),
)

epoch_table = sa.Table(
    "catalogue_clock",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

_CHUNK: Final = 500

Change = Literal["added", "replaced", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document's current state."""

    number: int
    id: str
    contributor: str
    version: str
    title: str
    url: str | None
    splits: tuple[SplitShare, ...]
    terms: Terms
    added_ms: int
    withdrawn_ms: int | None
    changed: int


@dataclass(frozen=True, slots=True)
class _Moment:
    """Of a change: the catalogue's clock, the time, and whose vectors the passages have."""

    epoch: int
    now_ms: int
    embedder: str


Guard = Callable[[sa.Connection, StoredDocument | None], None]
"""Has the last word before a document is stored: given its state before, it may raise."""


def prepare(document: Document, embedder: Embedder) -> list[PreparedPassage]:
    """Cut, analyse and embed a document. The expensive part of ingesting, free of side effects."""
    return [prepare_passage(document.text, passage, embedder) for passage in passages(document.text)]


def prepare_passage(whole: str, passage: PassageSpan, embedder: Embedder) -> PreparedPassage:
    """Analyse and embed one passage of the text ``whole``."""
    text = whole[passage.start : passage.end]
    spans: list[Span] = [(start - passage.start, end - passage.start) for start, end in passage.sentences]
    vectors = embedder.embed_passage(text, spans)
    stemmed = [stems(text[start:end]) for start, end in spans]
    return PreparedPassage(
        start=passage.start,
        text=text,
        sentences=np.asarray(spans, np.int32),
        terms=term_ids([stem for sentence in stemmed for stem in sentence]),
        sentence_terms=np.asarray([len(sentence) for sentence in stemmed], np.int32),
        vector=vectors.passage,
        sentence_vectors=vectors.sentences.astype(np.float16),
    )


class Catalogue:
    """Documents and contributors. Thread-safe; the caller owns the engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add_contributor(self, contributor: str, name: str) -> bool:
        """Register a contributor; False if the id is taken."""
        row = {"id": contributor, "name": name, "created_ms": _now_ms()}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(contributors), row)
        except sa.exc.IntegrityError:
            return False
        return True

    def contributors(self) -> dict[str, str]:
        """Id and name of every contributor, by id."""
        query = sa.select(contributors.c.id, contributors.c.name).order_by(contributors.c.id)
        with self._engine.connect() as connection:
            return {row.id: row.name for row in connection.execute(query)}

    def epoch(self) -> int:
        """The number of the last change; one indexed read."""
        with self._engine.connect() as connection:
            return _epoch(connection)

    def get(self, ids: Sequence[str]) -> dict[str, StoredDocument]:
        """The documents of those ids that exist, by id."""
        return {document.id: document for document in self._select(documents.c.id, ids)}

    def by_number(self, numbers: Sequence[int]) -> dict[int, StoredDocument]:
        """The documents of those numbers, by number."""
        return {document.number: document for document in self._select(documents.c.number, numbers)}

    def page(self, contributor: str | None = None, *, after: str = "", limit: int = 1_000) -> list[StoredDocument]:
        """Documents in the order of their ids, withdrawn ones too, from just after the id ``after``."""
        query = sa.select(documents).where(documents.c.id > after).order_by(documents.c.id).limit(limit)
        if contributor is not None:
            query = query.where(documents.c.contributor == contributor)
        with self._engine.connect() as connection:
            return [_document(row) for row in connection.execute(query)]

    def count(self) -> tuple[int, int]:
        """How many documents may be retrieved, and how many passages they have."""
        with self._engine.connect() as connection:
            live = connection.execute(
                sa.select(sa.func.count()).select_from(documents).where(documents.c.withdrawn_ms.is_(None))
            )
            parts = connection.execute(sa.select(sa.func.count()).select_from(passages_table))
            return int(live.scalar_one()), int(parts.scalar_one())

    def text(self, document: str, version: str) -> str | None:
        """The text of a version, or None."""
        with self._engine.connect() as connection:
            return versions.text(connection, document, version)

    def sources(self, ids: Sequence[str], paths: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
        """The path of each of these documents that came from a file, and the documents that came from these paths."""
        with self._engine.connect() as connection:
            at = sources.at(connection, paths)
            return sources.of(connection, [*ids, *(each for found in at.values() for each in found)]), at

    def put(
        self,
        batch: Sequence[tuple[Document, Sequence[PreparedPassage] | None]],
        embedder: str,
        paths: Mapping[str, str] | None = None,
        guard: Guard | None = None,
    ) -> list[Change | DocumentError]:
        """Add or replace documents in one transaction.

        ``None`` for passages says that the caller found the text unchanged; then only title, url, splits and terms
        are compared. The answers stand in the order of the batch; a refused document does not hold up the others.
        ``paths`` are of the files that documents were read from, by id. With ``guard``, all is stored or nothing: what
        it raises ends the transaction, and so does a document that is refused, for ``guard`` may have said it is there.

        Raises:
            DocumentError: with ``guard``, a document is refused. And whatever ``guard`` raises.
        """
        changes: list[Change | DocumentError] = []
        ages = self._ages(batch)
        with self._engine.begin() as connection:
            at = _Moment(_advance(connection), _now_ms(), embedder)
            stored = _by_id(connection, [document.id for document, _ in batch])
            for document, prepared in batch:
                if guard is not None:
                    guard(connection, stored.get(document.id))
                try:
                    change = _put(connection, stored.get(document.id), document, prepared, at, ages.get(document.id))
                except DocumentError as error:
                    if guard is not None:
                        raise
                    changes.append(error)
                    continue
                changes.append(change)
            taken = [each.id for (each, _), change in zip(batch, changes, strict=True) if isinstance(change, str)]
            sources.record(connection, {each: paths[each] for each in taken if paths and each in paths})
        return changes

    def prepared(self, document: Document, passage: PassageSpan, embedder: Embedder) -> PreparedPassage:
        """A passage as :func:`prepare_passage` makes it, compared with what is stored: that takes no lock here."""
        found = prepare_passage(document.text, passage, embedder)
        with self._engine.connect() as connection:
            number = connection.execute(sa.select(documents.c.number).where(documents.c.id == document.id)).scalar()
            return passage_table.compare(connection, found, number)

    def withdraw(self, ids: Sequence[str], contributor: str | None = None) -> list[str]:
        """Withdraw documents, of one contributor if given; answers the ids that are withdrawn now.

        When this returns, no query that begins can retrieve them. Repeating it is harmless.
        """
        now = _now_ms()
        withdrawn = []
        orphaned: list[int] = []
        with self._engine.begin() as connection:
            epoch = _advance(connection)
            for document in _by_id(connection, ids).values():
                if contributor is not None and document.contributor != contributor:
                    continue
                withdrawn.append(document.id)
                if document.withdrawn_ms is not None:
                    continue
                change = sa.update(documents).where(documents.c.number == document.number)
                connection.execute(change.values(withdrawn_ms=now, changed=epoch))
                orphaned += passage_table.remove(connection, document.number)
            _mark(connection, passage_table.mark_copies(connection, orphaned), epoch)
        return withdrawn

    def replace_passages(
        self, batch: Sequence[tuple[StoredDocument, Sequence[PreparedPassage]]], embedder: str
    ) -> None:
        """Store new passages of documents whose text has not changed, in one transaction."""
        with self._engine.begin() as connection:
            at = _Moment(_advance(connection), _now_ms(), embedder)
            for document, prepared in batch:
                same = (documents.c.number == document.number, documents.c.version == document.version)
                live = documents.c.withdrawn_ms.is_(None)
                changed = connection.execute(sa.update(documents).where(*same, live).values(changed=at.epoch))
                if changed.rowcount == 1:
                    _replace(connection, document.number, document.id, document.version, prepared, at)

    def changes(self, since: int) -> tuple[int, list[StoredDocument]]:
        """An epoch, and every document that changed after ``since``, up to that epoch at least."""
        with self._engine.connect() as connection:
            now = _epoch(connection)
            query = sa.select(documents).where(documents.c.changed > since).order_by(documents.c.number)
            return now, [_document(row) for row in connection.execute(query)]

    def passages_of(self, numbers: Sequence[int]) -> Iterator[StoredPassage]:
        """The passages of those documents."""
        with self._engine.connect() as connection:
            yield from passage_table.load(connection, passages_table.c.document, numbers)

    def passages(self, ids: Sequence[int]) -> Iterator[StoredPassage]:
        """The passages of those ids that still exist."""
        with self._engine.connect() as connection:
            yield from passage_table.load(connection, passages_table.c.id, ids)

    def copies(self, numbers: Sequence[int]) -> dict[int, dict[str, int]]:
        """Of documents with passages that are copies: how many are copies of which document, by number and id."""
        copy, original = passages_table.alias("copy"), passages_table.alias("original")
        query = (
            sa.select(copy.c.document, documents.c.id, sa.func.count().label("passages"))
            .join_from(copy, original, copy.c.original == original.c.id)
            .join(documents, original.c.document == documents.c.number)
            .group_by(copy.c.document, documents.c.id)
            .order_by(copy.c.document, documents.c.id)
        )
        found: dict[int, dict[str, int]] = {}
        with self._engine.connect() as connection:
            for i in range(0, len(numbers), _CHUNK):
                for row in connection.execute(query.where(copy.c.document.in_(numbers[i : i + _CHUNK]))):
                    found.setdefault(row.document, {})[row.id] = row.passages
        return found

    def _ages(self, batch: Sequence[tuple[Document, Sequence[PreparedPassage] | None]]) -> dict[str, Ages]:
        """Since when documents that have another text have their new passages, by id.

        It reads their older versions, which takes seconds where those are books, and so not with the write lock.
        """
        with self._engine.connect() as connection:
            stored = _by_id(connection, [document.id for document, _ in batch])
            return {
                document.id: versions.ages(connection, before.number, document.id, document.version, prepared)
                for document, prepared in batch
                if prepared is not None and (before := stored.get(document.id)) and before.version != document.version
            }

    def _select(
        self, column: sa.Column[str] | sa.Column[int], keys: Sequence[str] | Sequence[int]
    ) -> Iterator[StoredDocument]:
        with self._engine.connect() as connection:
            for i in range(0, len(keys), _CHUNK):
                query = sa.select(documents).where(column.in_(keys[i : i + _CHUNK]))
                yield from map(_document, connection.execute(query))


def find(connection: sa.Connection, document: str) -> StoredDocument | None:
    """The document of that id, within a transaction."""
    return _by_id(connection, [document]).get(document)


def state_of(stored: StoredDocument | None) -> str:
    """A digest of all that the contributor of a document can change; empty where there is none."""
    if stored is None:
        return ""
    state = json.dumps([_row_of(stored), stored.withdrawn_ms is not None], sort_keys=True)
    return hashlib.sha256(state.encode()).hexdigest()


def ensure_free(stored: StoredDocument | None, document: Document) -> None:
    """Refuse what may not take the place of the stored document.

    Raises:
        DocumentConflict: its id is another contributor's, or of a document that was withdrawn.
    """
    if stored is not None and stored.contributor != document.contributor:
        raise DocumentConflict(f"document id {document.id} is taken by another contributor")
    if stored is not None and stored.withdrawn_ms is not None:
        raise DocumentConflict(f"document {document.id} was withdrawn; bring it again under another id")


def _put(
    connection: sa.Connection,
    stored: StoredDocument | None,
    document: Document,
    prepared: Sequence[PreparedPassage] | None,
    at: _Moment,
    ages: Ages | None,
) -> Change:
    ensure_free(stored, document)
    row = _row(document)
    if stored is None:
        if prepared is None:
            raise DocumentError(f"document {document.id} disappeared while it was compared; try again")
        inserted = connection.execute(sa.insert(documents).values(**row, added_ms=at.now_ms, changed=at.epoch))
        (number,) = inserted.inserted_primary_key or (0,)
        versions.store(connection, document, at.now_ms)
        since = [at.now_ms] * len(prepared)
        stored_now = passage_table.store(connection, number, document.version, prepared, since, at.embedder)
        _mark(connection, stored_now, at.epoch)
        return "added"
    if stored.version != document.version:
        if prepared is None:
            raise DocumentError(f"document {document.id} changed while it was compared; try again")
        versions.store(connection, document, at.now_ms)
        _replace(connection, stored.number, document.id, document.version, prepared, at, ages)
    elif row == _row_of(stored):
        return "unchanged"
    connection.execute(sa.update(documents).where(documents.c.number == stored.number).values(**row, changed=at.epoch))
    return "updated" if stored.version == document.version else "replaced"


def _replace(
    connection: sa.Connection,
    number: int,
    document: str,
    version: str,
    prepared: Sequence[PreparedPassage],
    at: _Moment,
    ages: Ages | None = None,
) -> None:
    """Replace the passages of a document. A passage that an older version had keeps the date of that version."""
    since = versions.registered(connection, number, document, version, prepared, ages)
    orphaned = passage_table.remove(connection, number)
    changed = passage_table.store(connection, number, version, prepared, since, at.embedder)
    _mark(connection, changed | passage_table.mark_copies(connection, orphaned), at.epoch)


def _mark(connection: sa.Connection, numbers: Iterable[int], epoch: int) -> None:
    """Say that documents changed for retrieval: replicas take them in anew."""
    every = sorted(numbers)
    for i in range(0, len(every), _CHUNK):
        chosen = documents.c.number.in_(every[i : i + _CHUNK])
        connection.execute(sa.update(documents).where(chosen).values(changed=epoch))


def _row(document: Document) -> dict[str, object]:
    purposes = document.terms.purposes
    return {
        "id": document.id,
        "contributor": document.contributor,
        "version": document.version,
        "title": document.title,
        "url": document.url,
        "splits": json.dumps([[split.contributor, split.role, split.ppm] for split in document.effective_splits]),
        "purposes": None if purposes is None else json.dumps(sorted(set(purposes))),
        "floor": document.terms.floor,
        "terms_format": document.terms.format,
    }


def _row_of(stored: StoredDocument) -> dict[str, object]:
    return _row(
        Document(
            id=stored.id,
            title=stored.title,
            text="",
            contributor=stored.contributor,
            url=stored.url,
            splits=stored.splits,
            terms=stored.terms,
        )
    ) | {"version": stored.version}


def _document(row: sa.Row[tuple[object, ...]]) -> StoredDocument:
    return StoredDocument(
        number=row.number,
        id=row.id,
        contributor=row.contributor,
        version=row.version,
        title=row.title,
        url=row.url,
        splits=tuple(SplitShare(*split) for split in json.loads(row.splits)),
        terms=check_terms(
            Terms(None if row.purposes is None else tuple(json.loads(row.purposes)), row.floor, row.terms_format)
        ),
        added_ms=row.added_ms,
        withdrawn_ms=row.withdrawn_ms,
        changed=row.changed,
    )


def _by_id(connection: sa.Connection, ids: Sequence[str]) -> dict[str, StoredDocument]:
    found: dict[str, StoredDocument] = {}
    for i in range(0, len(ids), _CHUNK):
        query = sa.select(documents).where(documents.c.id.in_(ids[i : i + _CHUNK]))
        found |= {row.id: _document(row) for row in connection.execute(query)}
    return found


def _epoch(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(epoch_table.c.value).where(epoch_table.c.id == 1)).scalar_one())


def _advance(connection: sa.Connection) -> int:
    """Advance the epoch; the row's lock makes changes visible in the order of their numbers."""
    connection.execute(sa.update(epoch_table).where(epoch_table.c.id == 1).values(value=epoch_table.c.value + 1))
    return _epoch(connection)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
