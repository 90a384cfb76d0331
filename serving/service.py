"""The service, opened: everything that answering paid queries takes. :mod:`serving.assembly` opens it."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval.embedding import Embedder
from retrieval.retriever import Retriever
from serving.answering.embeddings import Embeddings
from serving.answering.paid_calls import PaidCalls
from serving.answering.pipeline import Answering
from serving.answering.pools import Pool
from serving.books import Books, Metering
from serving.closing.earnings import Earnings
from serving.valuing.functions import Valuing


@dataclass(frozen=True, slots=True)
class Pools:
    """Threads by what they do, so that none of it takes those of the others; what is left has asyncio's own."""

    queries: Pool
    embeddings: Pool
    uploads: Pool
    earnings: Pool
    closing: Pool
    """One thread: of several closes of a month the first closes it, and the others are told so."""

    def close(self) -> None:
        """End all threads, when what they do is done."""
        for each in (self.queries, self.embeddings, self.uploads, self.earnings, self.closing):
            each.close()


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that answering paid queries takes."""

    books: Books
    metering: Metering
    embedder: Embedder
    retriever: Retriever
    paid_calls: PaidCalls
    valuing: Valuing
    answering: Answering
    embeddings: Embeddings
    earnings: Earnings
    pools: Pools
