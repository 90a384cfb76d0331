"""Assembly: the only place that names concrete parts and puts them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import sqlalchemy as sa
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from attribution.likelihood import LikelihoodError, Scorer
from attribution.transparency import Signer
from metering import ledger
from metering.drain import Drain
from metering.meter import Funding
from metering.money import Currency
from metering.redis_meter import RedisMeter
from metering.redis_server import RedisServer
from metering.usage_log import UsageLog
from retrieval.catalogue import Catalogue
from retrieval.embedding import PACKAGED, Embedder, EmbedderError, MiniLMEmbedder
from retrieval.retriever import Retriever
from serving import deployment
from serving.answering import Answering
from serving.data_dir import DataDir
from serving.database import open_database, sqlite_url
from serving.dearer import Dearer, LogLikelihood, Rerun
from serving.deployment import Deployment
from serving.earnings import Earnings
from serving.identity import Identities
from serving.rulebook import Rulebook
from serving.samples import Samples
from serving.settings import Settings
from serving.vault import Vault


class AssemblyError(RuntimeError):
    """The settings do not fit together; the message names the one that is wrong."""


@dataclass(frozen=True, slots=True)
class Books:
    """Everything that needs no Redis and no model."""

    settings: Settings
    directory: DataDir
    engine: sa.Engine
    deployment: Deployment
    catalogue: Catalogue
    identities: Identities
    rulebook: Rulebook
    log: UsageLog
    vault: Vault
    samples: Samples

    @property
    def currency(self) -> Currency:
        """The deployment's currency."""
        return self.deployment.currency

    @property
    def signer(self) -> Signer:
        """The operator's signing key."""
        return self.directory.signer(self.deployment.origin)

    def embedder(self) -> Embedder:
        """The embedding model of the settings; takes a moment to load.

        Raises:
            EmbedderError: it cannot be loaded.
        """
        if self.settings.embedder == PACKAGED:
            return MiniLMEmbedder(self.settings.model_cache or self.directory.models)
        if find_spec("sentence_transformers") is None:
            raise EmbedderError(
                f"PATRONAGE_EMBEDDER={self.settings.embedder} needs the extra: "
                "pip install 'patronage[sentence-transformers]'"
            )
        from retrieval.sentence_transformers import SentenceTransformersEmbedder  # noqa: PLC0415 # an extra, with torch

        return SentenceTransformersEmbedder(self.settings.embedder)

    def dearer(self) -> Dearer:
        """The value function of the audit by ablation: a language model where the settings name one.

        Raises:
            AssemblyError: the settings do not fit together.
            LikelihoodError: the model cannot be loaded.
        """
        model, url = self.settings.likelihood_model, self.settings.likelihood_url
        if model is None and url is None:
            return Rerun()
        if model is None:
            raise AssemblyError("PATRONAGE_LIKELIHOOD_URL needs PATRONAGE_LIKELIHOOD_MODEL, the model's name there")
        return LogLikelihood(self._scorer(model, url))

    def _scorer(self, model: str, url: str | None) -> Scorer:
        tokens = self.settings.likelihood_batch_tokens
        if url is not None:
            from serving.likelihood.upstream import Upstream  # noqa: PLC0415 # a client that few need

            return Upstream(url, model, key=self.settings.likelihood_key, batch_tokens=tokens)
        if find_spec("transformers") is None or find_spec("torch") is None:
            raise LikelihoodError(
                f"PATRONAGE_LIKELIHOOD_MODEL={model} needs the extra: pip install 'patronage[sentence-transformers]'; "
                "or set PATRONAGE_LIKELIHOOD_URL to a server that has the model"
            )
        from serving.likelihood.causal_lm import CausalLM  # noqa: PLC0415 # an extra, with torch

        return CausalLM(model, batch_tokens=tokens)


@dataclass(frozen=True, slots=True)
class Metering:
    """The meter and its drain, on one Redis."""

    books: Books
    meter: RedisMeter
    drain: Drain

    async def catch_up(self) -> None:
        """Bring every account of the meter up to the ledger: a crash between the two loses no payment."""
        for customer in await asyncio.to_thread(self.books.identities.customers):
            await self.meter.fund(await asyncio.to_thread(self._funding, customer))

    def _funding(self, customer: str) -> Funding:
        with self.books.engine.connect() as connection:
            return ledger.funding(connection, customer)


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that answering paid queries takes."""

    books: Books
    metering: Metering
    embedder: Embedder
    retriever: Retriever
    answering: Answering
    earnings: Earnings


@contextmanager
def open_books(settings: Settings) -> Iterator[Books]:
    """The books of the data directory, made if it is new.

    Raises:
        DataDirError, DatabaseError, MoneyError: they cannot be opened.
    """
    directory = DataDir(settings.data_dir)
    with directory.opening():
        engine = open_database(settings.database_url or sqlite_url(directory.database))
        rulebook = Rulebook(engine)
        found = deployment.load(engine)
        if found is None:
            currency = Currency.of(settings.currency)
            rulebook.begin(currency)
            found = deployment.begin(engine, currency, settings.shards, directory.id)
            directory.signer(found.origin)  # now, so that every copy of the directory signs alike
            directory.encryption_key()
        elif found.directory != directory.id:
            engine.dispose()
            raise AssemblyError(
                f"the database belongs to another data directory than {directory.path}: its log and keys are there"
            )
    vault = Vault(directory.encryption_key())
    try:
        yield Books(
            settings=settings,
            directory=directory,
            engine=engine,
            deployment=found,
            catalogue=Catalogue(engine),
            identities=Identities(engine),
            rulebook=rulebook,
            log=UsageLog(directory.segments),
            vault=vault,
            samples=Samples(engine, vault, rulebook, settings.dispute_days),
        )
    finally:
        engine.dispose()


@asynccontextmanager
async def open_metering(books: Books) -> AsyncIterator[Metering]:
    """The meter of the books, on the embedded Redis or the one of the settings.

    Raises:
        RedisServerError: the embedded Redis cannot be started.
        MeterUnavailable: Redis does not answer.
        MeterLost: it answers, and has lost the books, or carries others.
    """
    settings, found = books.settings, books.deployment
    with ExitStack() as stack:
        url = settings.redis_url
        if url is None:
            server = RedisServer(books.directory.redis, fsync=settings.redis_fsync)
            url = (await asyncio.to_thread(stack.enter_context, server)).url
        # A query that cannot be paid must hear so soon: one retry, and no long waits.
        retry = Retry(ExponentialBackoff(cap=0.2, base=0.05), 1)
        try:
            client = Redis.from_url(url, socket_timeout=3, socket_connect_timeout=2, retry=retry)
        except ValueError as error:
            raise AssemblyError(f"PATRONAGE_REDIS_URL cannot be used: {error}") from error
        try:
            meter = RedisMeter(
                client,
                deployment=found.id,
                shards=found.shards,
                hold_ttl_ms=settings.hold_seconds * 1000,
                replay_ttl_ms=settings.replay_seconds * 1000,
            )
            await meter.claim(fresh=not deployment.meter_begun(books.engine))
            deployment.begin_meter(books.engine)
            drain = Drain(client, books.engine, books.log, deployment=found.id, shards=found.shards)
            metering = Metering(books, meter, drain)
            await metering.catch_up()
            try:
                yield metering
            finally:
                await drain.release()
        finally:
            await client.aclose()


@asynccontextmanager
async def open_service(books: Books) -> AsyncIterator[Service]:
    """Everything, with the model loaded and the index built."""
    embedder = await asyncio.to_thread(books.embedder)
    retriever = Retriever(books.catalogue, embedder)
    await asyncio.to_thread(retriever.refresh)
    async with open_metering(books) as metering:
        answering = Answering(
            meter=metering.meter,
            retriever=retriever,
            embedder=embedder,
            rulebook=books.rulebook,
            engine=books.engine,
            vault=books.vault,
            samples=books.samples,
            currency=books.currency,
            settings=books.settings,
        )
        earnings = Earnings(books.engine, books.log)
        try:
            yield Service(books, metering, embedder, retriever, answering, earnings)
        finally:
            answering.close()
