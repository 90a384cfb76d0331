"""Taking in a document, a passage at a time, so that uploads take turns and whoever leaves stops theirs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from retrieval.catalogue import Guard, StoredDocument
from retrieval.documents import Document
from retrieval.ingest import Ingest
from retrieval.passage_table import PreparedPassage
from serving.service import Service

Progress = Callable[[int, int], Awaitable[None]]
"""Is told how many passages of how many are embedded."""


async def take_in(
    service: Service, document: Document, *, progress: Progress | None = None, guard: Guard | None = None
) -> StoredDocument:
    """Embed a document and store it, whole or not at all; ``guard`` has the last word in that transaction.

    A caller who waits has no ``guard``. What has one was promised, and is not refused for what came after it.

    Raises:
        DocumentError: it cannot be taken.
        Overloaded: too many uploads of its contributor wait already, and nothing was promised.
    """
    uploads = service.pools.uploads
    run = partial(uploads.run if guard is None else uploads.run_promised, document.contributor)
    ingest = await run(Ingest, service.books.catalogue, service.embedder)
    spans = await run(ingest.cut, document)
    parts: list[PreparedPassage] | None = None
    if spans is not None:
        parts = []
        for each in spans:
            if progress is not None:
                await progress(len(parts), len(spans))
            parts.append(await run(service.books.catalogue.prepared, document, each, service.embedder))
    return await run(ingest.store, document, parts, guard)
