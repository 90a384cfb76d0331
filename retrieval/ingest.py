"""Ingest: from documents to the catalogue, in their order, embedding on every core, in short transactions.

Passages are embedded by themselves, so one large document keeps every core busy as well as many small ones, and a stop
waits for no more than the passages in hand. What is embedded is stored within a second, in the order in which it was
found, and no lock is held meanwhile: whoever stops it keeps what is done, and a second run goes on there.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, Self

from retrieval.catalogue import Catalogue, Guard, StoredDocument, ensure_free
from retrieval.chunking import PassageSpan, passages
from retrieval.documents import Document, DocumentConflict, DocumentError, check
from retrieval.embedding import Embedder
from retrieval.files import Skipped
from retrieval.passage_table import PreparedPassage
from retrieval.readers import Found, Rejection

BATCH_DOCUMENTS: Final = 64
BATCH_PASSAGES: Final = 128
"""What one transaction stores, at most: some 0.2 s of the database. A document is never divided."""
_READ_CHARS: Final = 2_000_000
_STORE_S: Final = 1.0
_SHOW_S: Final = 0.2
_AHEAD: Final = 4
"""How many passages wait to be embedded, for each core."""
EXAMPLES: Final = 10
"""How many of what was skipped for one reason are named."""


@dataclass(slots=True)
class SkippedFor:
    """How many files and folders were skipped for one reason, and the first of them."""

    count: int = 0
    paths: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What an ingest did."""

    documents: int = 0
    """Added, replaced or updated."""
    passages: int = 0
    unchanged: int = 0
    replaced: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    skipped: dict[str, SkippedFor] = field(default_factory=dict)
    """By reason."""
    embedded: int = 0
    """Passages that were embedded, also of documents that are not stored yet."""
    stopped: bool = False
    """Whether it was told to stop before it had seen everything."""

    def skip(self, each: Skipped) -> None:
        """Count something that was skipped."""
        found = self.skipped.setdefault(each.reason, SkippedFor())
        found.count += 1
        if len(found.paths) < EXAMPLES:
            found.paths.append(each.path)


Progress = Callable[[Report], None]


class Ingest:
    """Brings documents into the catalogue."""

    def __init__(
        self, catalogue: Catalogue, embedder: Embedder, *, create_contributors: bool = False, moved: bool = False
    ) -> None:
        """With ``create_contributors``, whoever a document names is registered; else the document is rejected.

        With ``moved``, a file may replace the document of its id that was read from another place.
        """
        self._catalogue = catalogue
        self._embedder = embedder
        self._create = create_contributors
        self._moved = moved
        self._contributors = set(catalogue.contributors())

    def run(
        self,
        found: Iterable[Found | Rejection | Skipped],
        progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> Report:
        """Take in everything that is found, in this order, until ``stop`` is set: then what is done is stored."""
        run = _Run(self._catalogue, self._embedder, progress or (lambda _: None), stop or threading.Event())
        with run:
            for batch in _batches(self._checked(found, run)):
                for each, stored in self._placed(batch, run):
                    run.begin(each, stored)
            run.finish()
        return run.report

    def add(self, document: Document) -> StoredDocument:
        """Take in one document and give its stored state.

        Raises:
            DocumentError: it was not taken.
        """
        spans = self.cut(document)
        parts = None if spans is None else [self._catalogue.prepared(document, each, self._embedder) for each in spans]
        return self.store(document, parts)

    def cut(self, document: Document) -> list[PassageSpan] | None:
        """What of a document is to be embedded; None where its text is stored already.

        Raises:
            DocumentError: it cannot be taken.
        """
        self.check(document)
        before = self._catalogue.get([document.id]).get(document.id)
        ensure_free(before, document)
        return None if before is not None and before.version == document.version else passages(document.text)

    def check(self, document: Document) -> None:
        """Refuse a document that cannot be taken, whatever is stored.

        Raises:
            DocumentError: why not.
        """
        self._know({document.contributor, *(split.contributor for split in check(document).splits)})

    def store(
        self, document: Document, parts: Sequence[PreparedPassage] | None, guard: Guard | None = None
    ) -> StoredDocument:
        """Store a document whose passages are embedded, and give its stored state.

        Raises:
            DocumentError: it was not taken. And whatever ``guard`` raises.
        """
        (change,) = self._catalogue.put([(document, parts)], self._embedder.name, guard=guard)
        if isinstance(change, DocumentError):
            raise change
        return self._catalogue.get([document.id])[document.id]

    def _checked(self, found: Iterable[Found | Rejection | Skipped], run: _Run) -> Iterator[Found]:
        report = run.report
        for each in found:
            if run.stopping():
                return
            if isinstance(each, Skipped):
                report.skip(each)
                continue
            if isinstance(each, Rejection):
                report.rejected.append(each)
                continue
            try:
                document = check(each.document)
                self._know({document.contributor, *(split.contributor for split in document.splits)})
            except DocumentError as error:
                report.rejected.append(Rejection(each.path, each.line, str(error)))
                continue
            yield each

    def _placed(self, batch: list[Found], run: _Run) -> Iterator[tuple[Found, StoredDocument | None]]:
        """The documents of a batch by the ids that they have or get, and what is stored of each."""
        paths = [each.source for each in batch if each.source is not None]
        ids = [each.document.id for each in batch]
        place_of, at = self._catalogue.sources(ids, paths) if paths else ({}, {})
        stored = self._catalogue.get([*ids, *(each for found in at.values() for each in found)])
        for each in batch:
            mine = [
                name
                for name in at.get(each.source or "", [])
                if stored[name].contributor == each.document.contributor and stored[name].withdrawn_ms is None
            ]
            name = each.document.id if each.document.id in mine or not mine else mine[0]
            found = replace(each, document=replace(each.document, id=name))
            before = stored.get(name)
            try:
                run.see(name, each.path if each.line is None else f"{each.path} line {each.line}")
                known = place_of.get(name, each.source)
                if before is not None and each.source not in (None, known) and not self._moved:
                    _ensure_same_file(found.document, before, known)
                    found = replace(found, source=None)  # a copy; the document stays that of the file it is known by
            except DocumentError as error:
                run.report.rejected.append(Rejection(each.path, each.line, str(error)))
                continue
            yield found, before

    def _know(self, contributors: set[str]) -> None:
        for contributor in sorted(contributors - self._contributors):
            if not self._create:
                raise DocumentError(f"unknown contributor {contributor}: it must be registered first")
            self._catalogue.add_contributor(contributor, contributor)
            self._contributors.add(contributor)


def _ensure_same_file(document: Document, before: StoredDocument, known: str | None) -> None:
    """Refuse another text from another file than the stored document's.

    Raises:
        DocumentConflict: with both ways out.
    """
    if before.version != document.version and before.contributor == document.contributor:
        raise DocumentConflict(
            f"document {document.id} was read from {known}, and this is another file: to have both, name a folder "
            "further up, so that its name is part of the id; if it is the same file in another place, pass --moved"
        )


@dataclass(slots=True)
class _Work:
    """A document on its way: its passages as they are embedded, or None where its text is stored already."""

    found: Found
    parts: list[Future[PreparedPassage]] | None
    is_cut: bool = False
    """Whether ``parts`` are all of its passages."""

    def is_done(self) -> bool:
        return self.parts is None or (
            self.is_cut and all(each.done() and not each.cancelled() for each in reversed(self.parts))
        )


class _Run:
    """One run: what is on its way, in order, and what came of the rest."""

    def __init__(self, catalogue: Catalogue, embedder: Embedder, progress: Progress, stop: threading.Event) -> None:
        self.report = Report()
        self._catalogue = catalogue
        self._embedder = embedder
        self._progress = progress
        self._stop = stop
        self._seen: dict[str, str] = {}
        cores = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(cores, thread_name_prefix="embed")
        self._places = threading.Semaphore(_AHEAD * cores)
        self._way: deque[_Work] = deque()
        self._batch: list[_Work] = []
        self._stored = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def stopping(self) -> bool:
        """Whether it was told to stop."""
        self.report.stopped = self.report.stopped or self._stop.is_set()
        return self.report.stopped

    def see(self, document: str, place: str) -> None:
        """Note where a document was found.

        Raises:
            DocumentError: it was found before.
        """
        if document in self._seen:
            raise DocumentError(f"document id {document} came before, in {self._seen[document]}")
        self._seen[document] = place

    def begin(self, found: Found, stored: StoredDocument | None) -> None:
        """Send a document on its way; waits while enough is under way."""
        document = found.document
        work = _Work(found, None if stored is not None and stored.version == document.version else [])
        self._way.append(work)
        if work.parts is not None:
            for passage in passages(document.text):
                while not self._places.acquire(timeout=_SHOW_S):
                    self._advance()
                if self.stopping():
                    self._places.release()
                    return
                part = self._pool.submit(self._catalogue.prepared, document, passage, self._embedder)
                part.add_done_callback(self._embedded)
                work.parts.append(part)
                self._advance()
            work.is_cut = True
        self._advance()

    def finish(self) -> None:
        """Wait for what is under way, or for what is in hand if it was told to stop, and store it."""
        while self._way and not self.stopping():
            left = [part for part in self._way[0].parts or () if not part.done()]
            wait(left, timeout=_SHOW_S, return_when=FIRST_COMPLETED)
            self._advance()
        self._pool.shutdown(cancel_futures=True)
        self._advance()
        self._store()
        self._progress(self.report)

    def _embedded(self, part: Future[PreparedPassage]) -> None:
        self._places.release()
        if not part.cancelled() and part.exception() is None:
            self.report.embedded += 1

    def _advance(self) -> None:
        """Take what is done from the head of the way, and store it when it is enough or has waited long enough."""
        while self._way and self._way[0].is_done():
            work = self._way.popleft()
            waiting = sum(len(each.parts or ()) for each in self._batch)
            if len(self._batch) == BATCH_DOCUMENTS or waiting + len(work.parts or ()) > BATCH_PASSAGES:
                self._store()
            self._batch.append(work)
        now = time.monotonic()
        if now - self._stored > _STORE_S:
            self._store()
        if now - self._shown > _SHOW_S:
            self._shown = now
            self._progress(self.report)

    def _store(self) -> None:
        batch, self._batch = self._batch, []
        self._stored = time.monotonic()
        if not batch:
            return
        prepared = [None if work.parts is None else [part.result() for part in work.parts] for work in batch]
        found = [work.found for work in batch]
        documents = [(each.document, parts) for each, parts in zip(found, prepared, strict=True)]
        places = {each.document.id: each.source for each in found if each.source is not None}
        changes = self._catalogue.put(documents, self._embedder.name, places)
        report = self.report
        for each, parts, change in zip(found, prepared, changes, strict=True):
            if isinstance(change, DocumentError):
                report.rejected.append(Rejection(each.path, each.line, str(change)))
            elif change == "unchanged":
                report.unchanged += 1
            else:
                report.documents += 1
                report.replaced += change == "replaced"
                report.passages += len(parts or ())


def _batches(found: Iterator[Found]) -> Iterator[list[Found]]:
    """Batches of a bounded number of documents and characters, so that memory is bounded too."""
    while batch := list(islice(found, 1)):
        chars = len(batch[0].document.text)
        while len(batch) < BATCH_DOCUMENTS and chars < _READ_CHARS:
            more = next(found, None)
            if more is None:
                break
            batch.append(more)
            chars += len(more.document.text)
        yield batch
