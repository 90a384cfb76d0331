"""Re-embedding: the passages of every document, made anew with another model."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from retrieval.catalogue import prepare
from retrieval.documents import Document
from retrieval.embedding import Embedder
from serving.books import Books

_PAGE = 64


def reembed(books: Books, embedder: Embedder, progress: Callable[[int], None]) -> int:
    """Replace every passage, page by page; what is done stays done. Gives the number of documents."""
    done, after = 0, ""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while page := books.catalogue.page(after=after, limit=_PAGE):
            after = page[-1].id
            live = [each for each in page if each.withdrawn_ms is None]
            texts = [books.catalogue.text(each.id, each.version) or "" for each in live]
            documents = [
                Document(each.id, each.title, text, each.contributor, each.url, each.splits, each.terms)
                for each, text in zip(live, texts, strict=True)
            ]
            parts = list(pool.map(lambda document: prepare(document, embedder), documents))
            books.catalogue.replace_passages(list(zip(live, parts, strict=True)), embedder.name)
            done += len(live)
            progress(done)
    return done
