"""Assembly: the only place that names concrete parts and puts them together."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from threading import TIMEOUT_MAX
from typing import Final

import httpx
import sqlalchemy as sa

from attribution.games.values import COUNTERFACTUAL
from attribution.value_functions.likelihood import LOG_LIKELIHOOD, LikelihoodError, Scorer
from attribution.value_functions.support import SUPPORT
from metering import usage_index
from metering.drain import Drain
from metering.money import Currency
from metering.processes import Processes
from metering.records import Provenance
from metering.redis import connection as redis_connection
from metering.redis.connection import Client, Server
from metering.redis.instance import InstanceMark
from metering.redis.meter import RedisMeter
from metering.redis.server import RedisServer
from metering.settling import Settling
from metering.spool import Spool
from metering.usage_log import UsageLog
from retrieval.catalogue import Catalogue
from retrieval.embedding import PACKAGED, Embedder, EmbedderError, MiniLMEmbedder
from retrieval.retriever import Retriever
from serving import __version__
from serving.answering.embeddings import Embeddings
from serving.answering.paid_calls import PaidCalls
from serving.answering.pipeline import Answering
from serving.answering.pools import Pool
from serving.answering.sampled_texts import Samples
from serving.books import Books, Metering
from serving.closing.earnings import Earnings
from serving.generators.extractive import Extractive
from serving.generators.generator import Generator
from serving.generators.upstream import TIMEOUT, Upstream
from serving.people.identity import Identities
from serving.rules import limits
from serving.rules.rulebook import EXTRACTIVE, Rulebook
from serving.service import Pools, Service
from serving.settings import Settings
from serving.store import deployment
from serving.store.data_dir import DataDir
from serving.store.database import open_database, sqlite_url
from serving.store.encryption import Encryption
from serving.store.instance import InstanceError
from serving.store.jobs import Jobs
from serving.store.leases import Lease, refuse_living_server
from serving.valuing.functions import Counterfactual, LogLikelihood, Rerun, Support, ValueFunction, Valuing
from serving.valuing.text_analyzer import EmbeddingAnalyzer

# As many streams as queries may be in progress; no connection waits for another.
_UPSTREAM_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)

_BOOKS_WAITING_MAX: Final = 16

TORCH_ADVICE: Final = "run `make torch` in the checkout"
"""How to get what models other than the packaged one need."""


class AssemblyError(RuntimeError):
    """The settings do not fit together; the message names the one that is wrong."""


def open_valuing(settings: Settings, embedder: Callable[[], Embedder]) -> Valuing:
    """The value functions that policies can name; each is loaded when it is first needed."""
    return Valuing(
        {
            COUNTERFACTUAL: Counterfactual,
            SUPPORT: lambda: Support(EmbeddingAnalyzer(embedder())),
            LOG_LIKELIHOOD: lambda: LogLikelihood(open_scorer(settings, settings.value_seconds)),
        }
    )


def open_ablation_function(settings: Settings) -> ValueFunction:
    """The value function of the audit by ablation: a language model where the settings name one.

    Raises:
        LikelihoodError: the settings do not fit together, or the model cannot be loaded.
    """
    if settings.likelihood_model is None and settings.likelihood_url is None:
        return Rerun()
    return LogLikelihood(open_scorer(settings, TIMEOUT_MAX))


def open_scorer(settings: Settings, seconds: float) -> Scorer:
    """The language model of the settings, with so many seconds for a case.

    Raises:
        LikelihoodError: the settings name none or do not fit together, or the model cannot be loaded.
    """
    model, url = settings.likelihood_model, settings.likelihood_url
    if model is None:
        raise LikelihoodError(
            "it needs PATRONAGE_LIKELIHOOD_MODEL, a causal language model, and PATRONAGE_LIKELIHOOD_URL if that is at "
            "a server"
        )
    tokens = settings.likelihood_batch_tokens
    if url is not None:
        from serving.valuing.scoring_server import ScoringServer  # noqa: PLC0415 # a client that few need

        return ScoringServer(url, model, key=settings.likelihood_key, batch_tokens=tokens, seconds=seconds)
    if find_spec("transformers") is None or find_spec("torch") is None:
        raise LikelihoodError(
            f"PATRONAGE_LIKELIHOOD_MODEL={model} needs torch: {TORCH_ADVICE}; "
            "or set PATRONAGE_LIKELIHOOD_URL to a server that has the model"
        )
    from serving.valuing.causal_lm import CausalLM  # noqa: PLC0415 # an extra, with torch

    return CausalLM(model, batch_tokens=tokens, seconds=seconds)


def open_embedder(settings: Settings, directory: DataDir) -> Embedder:
    """The embedding model of the settings; takes a moment to load.

    Raises:
        EmbedderError: it cannot be loaded.
    """
    if settings.embedder == PACKAGED:
        return MiniLMEmbedder(settings.model_cache or directory.models)
    if find_spec("sentence_transformers") is None:
        raise EmbedderError(f"PATRONAGE_EMBEDDER={settings.embedder} needs torch: {TORCH_ADVICE}")
    from retrieval.sentence_transformers import SentenceTransformersEmbedder  # noqa: PLC0415 # an extra, with torch

    return SentenceTransformersEmbedder(settings.embedder)


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
            with engine.begin() as connection:  # at once: what is killed here begins anew, and is not half begun
                rulebook.begin(connection, currency, settings.embedding_model)
                found = deployment.begin(connection, currency, settings.shards, directory.id)
            directory.signer(found.origin)  # now, so that every copy of the directory signs alike
            directory.encryption_key()
        elif found.directory != directory.id:
            engine.dispose()
            raise AssemblyError(
                f"the database belongs to another data directory than {directory.path}: its log and keys are there"
            )
    encryption = Encryption(directory.encryption_key())
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
            limits=limits.defaults(settings, found.currency),
            low_balance=limits.parse_amount("PATRONAGE_LOW_BALANCE", settings.low_balance, found.currency) or 0,
            encryption=encryption,
            samples=Samples(engine, encryption, settings.dispute_days, directory.samples),
            jobs=Jobs(engine, settings.job_days),
        )
    finally:
        engine.dispose()


@asynccontextmanager
async def open_metering(books: Books, *, serving: bool = False) -> AsyncIterator[Metering]:
    """The meter of the books, on the embedded Redis or the one of the settings; ``serving`` takes the server's lease.

    Raises:
        InstanceError: the books are used from another place, or do not belong together.
        RedisServerError, RedisUnfit, MeterUnavailable: as :func:`open_redis`.
        MeterLost: it answers, and has lost the books, or carries others.
    """
    processes = Processes(books.directory.processes)
    # First, because an embedded Redis must not be started where one on another machine writes to the same folder.
    await asyncio.to_thread(refuse_living_server, books.engine, books.directory)
    async with open_redis(books) as (client, servers):
        if not await asyncio.to_thread(deployment.meter_begun, books.engine):
            await metering_on(client, books, books.deployment.meter, servers).meter.claim(fresh=True)
            await asyncio.to_thread(deployment.begin_meter, books.engine)
        lease = lease_on(client, books)
        books = replace(books, deployment=await lease.take(books.deployment, serving=serving))
        with processes.register() as process:
            metering = metering_on(client, books, books.deployment.meter, servers, process, lease)
            renewing = asyncio.create_task(lease.run())
            try:
                await metering.meter.claim(fresh=False)
                await metering.catch_up()
                yield metering
            finally:
                renewing.cancel()
                with suppress(asyncio.CancelledError):
                    await renewing
                await metering.drain.release()
                await lease.release()
                if not metering.settling.waiting:
                    processes.forget(process)


def lease_on(client: Client, books: Books) -> Lease:
    """The lease of the books in this Redis. Nothing is sent yet."""

    def moving(connection: sa.Connection) -> None:
        for name in usage_index.newest_segments(connection):
            if not books.log.path(name).exists():
                raise InstanceError(
                    f"the data directory {books.directory.path} lacks segment {name}, which the database has: it is "
                    "an older copy. Use the directory that was used last, or restore both of the same moment"
                )

    return Lease(books.engine, books.directory, InstanceMark(client, books.deployment.shards), moving)


def metering_on(
    client: Client,
    books: Books,
    deployment_id: str,
    servers: tuple[Server, ...],
    process: str = "",
    lease: Lease | None = None,
) -> Metering:
    """A meter and a drain for the books in Redis that carry the id ``deployment_id``. Nothing is sent yet.

    ``process`` is the id of this process, where it answers queries; ``lease`` is the one that it has taken.
    """
    settings, shards = books.settings, books.deployment.shards
    meter = RedisMeter(
        client,
        deployment=deployment_id,
        shards=shards,
        hold_ttl_ms=settings.hold_seconds * 1000,
        replay_ttl_ms=settings.replay_seconds * 1000,
        retry_ttl_ms=settings.retry_seconds * 1000,
        process=process,
        ack=settings.redis_ack,
    )
    spool = Spool(books.directory.spool, books.engine)

    def owns(connection: sa.Connection) -> bool:
        return deployment.fence(connection) == books.deployment.fence

    drain = Drain(client, books.engine, books.log, deployment=deployment_id, shards=shards, owns=owns)
    settling = Settling(meter, spool, Processes(books.directory.processes))
    return Metering(books, meter, drain, servers, spool, settling, lease or lease_on(client, books))


@asynccontextmanager
async def open_redis(books: Books) -> AsyncIterator[tuple[Client, tuple[Server, ...]]]:
    """A client of the embedded Redis or of the one of the settings, and what its masters say of themselves.

    Raises:
        RedisServerError: the embedded Redis cannot be started.
        RedisUnfit: a master must not carry money as it is set up.
        MeterUnavailable: Redis does not answer.
    """
    settings = books.settings
    with ExitStack() as stack:
        url = settings.redis_url
        if url is None:
            server = RedisServer(books.directory.redis, fsync=settings.redis_fsync)
            url = (await asyncio.to_thread(stack.enter_context, server)).url
        try:
            client = redis_connection.connect(url, settings.redis_seconds)
        except ValueError as error:
            raise AssemblyError(f"PATRONAGE_REDIS_URL cannot be used: {error}") from error
        try:
            servers = await redis_connection.examine(client)
            redis_connection.ensure_fit(servers, settings.redis_ack)
            yield client, tuple(servers)
        finally:
            await client.aclose()


@asynccontextmanager
async def open_service(books: Books, *, serving: bool = False) -> AsyncIterator[Service]:
    """Everything, with the model loaded and the index built; ``serving`` takes the server's lease.

    Raises:
        NotComputable: the policy in force cannot be computed here.
        EmbedderError, InstanceError, RedisServerError, RedisUnfit, MeterUnavailable, MeterLost, AssemblyError: as they
            say.
    """
    await asyncio.to_thread(refuse_living_server, books.engine, books.directory)  # before what takes long
    embedder = await asyncio.to_thread(open_embedder, books.settings, books.directory)
    valuing = open_valuing(books.settings, lambda: embedder)
    await asyncio.to_thread(valuing.load, books.rulebook.policy)
    retriever = Retriever(books.catalogue, embedder)
    await asyncio.to_thread(retriever.refresh)
    async with (
        open_metering(books, serving=serving) as metering,
        httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, limits=_UPSTREAM_LIMITS) as client,
    ):
        paid_calls = PaidCalls(
            meter=metering.meter,
            settling=metering.settling,
            lease=metering.lease,
            rulebook=books.rulebook,
            engine=books.engine,
            encryption=books.encryption,
            currency=books.currency,
            settings=books.settings,
            limits=books.limits,
        )
        pools = _pools(books.settings)
        # One for each query that may wait; they are started as they are needed.
        waiters = ThreadPoolExecutor(books.settings.concurrent_queries, thread_name_prefix="wait")
        answering = Answering(
            paid_calls=paid_calls,
            retriever=retriever,
            embedder=embedder,
            generators=_generators(books.settings, client),
            valuing=valuing,
            samples=books.samples,
            provenance=provenance_of(books, embedder),
            pool=pools.queries,
            waiters=waiters,
            settings=books.settings,
        )
        try:
            yield _service(books, metering, retriever, paid_calls, answering, valuing, embedder, pools)
        finally:
            await paid_calls.finish()
            pools.close()
            waiters.shutdown()


def _service(
    books: Books,
    metering: Metering,
    retriever: Retriever,
    paid_calls: PaidCalls,
    answering: Answering,
    valuing: Valuing,
    embedder: Embedder,
    pools: Pools,
) -> Service:
    return Service(
        books=books,
        metering=metering,
        embedder=embedder,
        retriever=retriever,
        paid_calls=paid_calls,
        valuing=valuing,
        answering=answering,
        embeddings=Embeddings(
            paid_calls=paid_calls,
            embedder=embedder,
            model=books.settings.embedding_model,
            provenance=provenance_of(books, embedder),
            pool=pools.embeddings,
            chars_max=books.settings.embedding_chars,
        ),
        earnings=Earnings(books.engine, books.log),
        pools=pools,
    )


def _pools(settings: Settings) -> Pools:
    cores = os.cpu_count() or 1
    few = max(1, cores // 2)
    return Pools(
        queries=Pool("queries", cores, waiting_max=settings.concurrent_queries),
        embeddings=Pool("embeddings", few, waiting_max=settings.concurrent_queries * few),
        uploads=Pool("uploads", few, waiting_max=settings.concurrent_uploads),
        earnings=Pool("requests for earnings", few, waiting_max=_BOOKS_WAITING_MAX),
        closing=Pool("requests to close", 1, waiting_max=_BOOKS_WAITING_MAX),
    )


def provenance_of(books: Books, embedder: Embedder) -> Provenance:
    """What every record says of the process that made it."""
    return Provenance(
        answered=True,
        epoch=0,
        snapshot="",
        embedder=embedder.name,
        engine=__version__,
        counted_by=embedder.name,
        tokenizer=embedder.tokenizer,
        machine=books.encryption.pseudonym(platform.node()),
        tags=(),
    )


def _generators(settings: Settings, client: httpx.AsyncClient) -> dict[str, Generator]:
    """The models that answer, by the name under which they are sold."""
    found: dict[str, Generator] = {EXTRACTIVE: Extractive()}
    if (upstream := upstream_of(settings)) is not None:
        model, url = upstream
        found[model] = Upstream(
            client,
            url=url,
            key=settings.upstream_key,
            model=model,
            tokens_max=settings.answer_tokens,
            context_chars=settings.upstream_context_chars,
        )
    return found


def upstream_of(settings: Settings) -> tuple[str, str] | None:
    """The upstream's model, by the name under which it is sold, and the address of its server; None without one.

    Raises:
        AssemblyError: the settings of the upstream do not fit together.
    """
    model, url = settings.upstream_model, settings.upstream_url
    if url is None:
        return None
    if not url.startswith(("http://", "https://")):
        raise AssemblyError("PATRONAGE_UPSTREAM_URL must be an address such as http://host:8000/v1")
    if not model or model in (EXTRACTIVE, settings.embedding_model):
        raise AssemblyError("PATRONAGE_UPSTREAM_MODEL must name the upstream's model, by a name of its own")
    return model, url
