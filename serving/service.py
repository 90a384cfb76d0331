"""The service, opened: everything that answering paid queries takes. :mod:`serving.assembly` opens it."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval.embedding import Embedder
from retrieval.retriever import Retriever
from serving.answering import Answering
from serving.books import Books, Metering
from serving.earnings import Earnings
from serving.embeddings import Embeddings
from serving.till import Till
from serving.valuing.functions import Valuing


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that answering paid queries takes."""

    books: Books
    metering: Metering
    embedder: Embedder
    retriever: Retriever
    till: Till
    valuing: Valuing
    answering: Answering
    embeddings: Embeddings
    earnings: Earnings
