"""Ingest: from documents to the catalogue, embedding on every core, in batches that are each safe once stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from retrieval.catalogue import Catalogue, Change, StoredDocument, prepare
from retrieval.documents import Document, DocumentError, check
from retrieval.embedding import Embedder
from retrieval.passage_table import PreparedPassage
from retrieval.readers import Found, Rejection

BATCH_DOCUMENTS: Final = 64
_BATCH_CHARS: Final = 2_000_000


@dataclass(slots=True)
class Report:
    """What an ingest did."""

    documents: int = 0
    """Added, replaced or updated."""
    passages: int = 0
    unchanged: int = 0
    replaced: int = 0
    rejected: list[Rejection] = field(default_factory=list)


Progress = Callable[[Report], None]
_Batch = list[tuple[Found, Future[list[PreparedPassage] | None]]]


class Ingest:
    """Brings documents into the catalogue."""

    def __init__(self, catalogue: Catalogue, embedder: Embedder, *, create_contributors: bool = False) -> None:
        """With ``create_contributors``, whoever a document names is registered; else the document is rejected."""
        self._catalogue = catalogue
        self._embedder = embedder
        self._create = create_contributors
        self._contributors = set(catalogue.contributors())

    def run(self, found: Iterable[Found | Rejection], progress: Progress | None = None) -> Report:
        """Take in everything that is found; what is stored stays stored if this is interrupted."""
        report = Report()
        seen: dict[str, str] = {}
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="embed") as pool:
            before: _Batch | None = None
            for found_batch in _batches(self._checked(found, seen, report)):
                batch = self._prepare(found_batch, pool)  # embeds while the batch before is stored
                self._store(before, report, progress)
                before = batch
            self._store(before, report, progress)
        return report

    def add(self, document: Document) -> StoredDocument:
        """Take in one document and give its stored state.

        Raises:
            DocumentError: it was not taken.
        """
        self._know({document.contributor, *(split.contributor for split in check(document).splits)})
        before = self._catalogue.get([document.id]).get(document.id)
        same = before is not None and before.version == document.version
        parts = None if same else prepare(document, self._embedder)
        (change,) = self._catalogue.put([(document, parts)], self._embedder.name)
        if isinstance(change, DocumentError):
            raise change
        return self._catalogue.get([document.id])[document.id]

    def _checked(self, found: Iterable[Found | Rejection], seen: dict[str, str], report: Report) -> Iterator[Found]:
        for each in found:
            if isinstance(each, Rejection):
                report.rejected.append(each)
                continue
            place = each.path if each.line is None else f"{each.path} line {each.line}"
            try:
                document = check(each.document)
                if document.id in seen:
                    raise DocumentError(f"document id {document.id} came before, in {seen[document.id]}")
                self._know({document.contributor, *(split.contributor for split in document.splits)})
            except DocumentError as error:
                report.rejected.append(Rejection(each.path, each.line, str(error)))
                continue
            seen[document.id] = place
            yield each

    def _know(self, contributors: set[str]) -> None:
        for contributor in sorted(contributors - self._contributors):
            if not self._create:
                raise DocumentError(f"unknown contributor {contributor}: it must be registered first")
            self._catalogue.add_contributor(contributor, contributor)
            self._contributors.add(contributor)

    def _prepare(self, batch: list[Found], pool: ThreadPoolExecutor) -> _Batch:
        stored = self._catalogue.get([each.document.id for each in batch])

        def prepared(each: Found) -> list[PreparedPassage] | None:
            before = stored.get(each.document.id)
            unchanged = before is not None and before.version == each.document.version
            return None if unchanged else prepare(each.document, self._embedder)

        return [(each, pool.submit(prepared, each)) for each in batch]

    def _store(self, batch: _Batch | None, report: Report, progress: Progress | None) -> None:
        if batch is None:
            return
        passages = [prepared.result() for _, prepared in batch]
        changes: list[Change | DocumentError] = self._catalogue.put(
            [(each.document, parts) for (each, _), parts in zip(batch, passages, strict=True)], self._embedder.name
        )
        for (each, _), parts, change in zip(batch, passages, changes, strict=True):
            if isinstance(change, DocumentError):
                report.rejected.append(Rejection(each.path, each.line, str(change)))
            elif change == "unchanged":
                report.unchanged += 1
            else:
                report.documents += 1
                report.replaced += change == "replaced"
                report.passages += len(parts or ())
        if progress:
            progress(report)


def _batches(found: Iterator[Found]) -> Iterator[list[Found]]:
    """Batches of a bounded number of documents and characters, so that memory is bounded too."""
    while batch := list(islice(found, 1)):
        chars = len(batch[0].document.text)
        while len(batch) < BATCH_DOCUMENTS and chars < _BATCH_CHARS:
            more = next(found, None)
            if more is None:
                break
            batch.append(more)
            chars += len(more.document.text)
        yield batch
