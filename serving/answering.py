"""Answering: the one use case. Authorize, retrieve, generate, value, capture, answer.

Two round trips to Redis, and nothing is held across the model but money. Whatever fails before the capture voids the
hold, so a failure charges nothing; the capture charges and logs in one step, so an answer is charged exactly
once, and only if its usage record is in the log.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import msgspec
import sqlalchemy as sa

from attribution.run import shares
from attribution.values import counterfactual
from metering import ledger
from metering.meter import Hold, Meter, Replay, Request
from metering.money import Currency
from metering.pricing import ModelPrice, Usage
from metering.records import SCORE_ONE, Split, UsageRecord, Use, fingerprint
from retrieval.embedding import Embedder
from retrieval.retriever import Retrieval, Retriever
from serving.generators import extractive
from serving.identity import Caller
from serving.rulebook import Rulebook
from serving.samples import Samples
from serving.settings import Settings
from serving.vault import Vault

TOP_K_DEFAULT: Final = 5
TOP_K_MAX: Final = 50
PURPOSE_DEFAULT: Final = "answer"
_PURPOSE: Final = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,63}", re.ASCII)


class QueryError(ValueError):
    """A query that cannot be answered as it was asked; nothing was charged."""

    def __init__(self, message: str, param: str = "question") -> None:
        """``param`` names the part of the query that is wrong."""
        super().__init__(message)
        self.param = param


class QuestionTooLong(QueryError):
    """The question is above the limit."""


class MaxPriceExceeded(QueryError):
    """The query may cost more than its ``max_price``."""

    def __init__(self, ceiling: str) -> None:
        """``ceiling`` as an amount."""
        super().__init__(f"the query may cost up to {ceiling}, which is more than max_price", "max_price")


class Overloaded(RuntimeError):
    """Too many queries are in progress in this process."""


class AlreadyCharged(RuntimeError):
    """The Idempotency-Key was charged before, and its response is no longer kept."""

    def __init__(self, receipt: str) -> None:
        """``receipt`` is the id of the receipt of the charge."""
        super().__init__(f"this Idempotency-Key was charged with receipt {receipt}, whose response is no longer kept")
        self.receipt = receipt


@dataclass(frozen=True, slots=True)
class Query:
    """A paid query."""

    question: str
    model: str
    top_k: int = TOP_K_DEFAULT
    purpose: str = PURPOSE_DEFAULT
    max_price: int | None = None
    """Units."""
    idempotency_key: str = ""
    body_hash: str = ""
    """Fingerprint of the request, compared when the Idempotency-Key comes again."""

    def __post_init__(self) -> None:
        """Refuse what is no query.

        Raises:
            QueryError: with the part that is wrong.
        """
        if not self.question.strip():
            raise QueryError("the question is blank")
        try:
            self.question.encode()
        except UnicodeEncodeError:
            raise QueryError("the question is not valid Unicode") from None
        if _PURPOSE.fullmatch(self.purpose) is None:
            raise QueryError("the purpose must be a word such as answer or research", "purpose")
        if not 1 <= self.top_k <= TOP_K_MAX:
            raise QueryError(f"top_k must be between 1 and {TOP_K_MAX}", "top_k")


class Source(msgspec.Struct, frozen=True):
    """A retrieved document, as the customer sees it."""

    document_id: str
    version: str
    title: str
    contributor: str
    url: str | None
    score: float
    share: float
    cited: bool


class Citation(msgspec.Struct, frozen=True):
    """A quotation in the answer. Spans are code points, end exclusive."""

    source: int
    quote: str
    passage: tuple[int, int]
    answer_span: tuple[int, int]


class Answered(msgspec.Struct, frozen=True):
    """An answered query, with everything that any of the interfaces shows of it."""

    id: str
    created_ms: int
    model: str
    answer: str
    sources: tuple[Source, ...]
    citations: tuple[Citation, ...]
    model_residual: float
    charge: int
    input_tokens: int
    output_tokens: int
    price_version: int
    policy_version: int


_ANSWERED = msgspec.msgpack.Decoder(Answered)


class Answering:
    """Answers paid queries."""

    def __init__(
        self,
        *,
        meter: Meter,
        retriever: Retriever,
        embedder: Embedder,
        rulebook: Rulebook,
        engine: sa.Engine,
        vault: Vault,
        samples: Samples,
        currency: Currency,
        settings: Settings,
    ) -> None:
        """The parts are owned by the caller; :meth:`close` ends the worker threads."""
        self._meter = meter
        self._retriever = retriever
        self._embedder = embedder
        self._rulebook = rulebook
        self._engine = engine
        self._vault = vault
        self._samples = samples
        self._currency = currency
        self._settings = settings
        self._running = 0
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="answer")

    def close(self) -> None:
        """End the worker threads."""
        self._pool.shutdown()

    @property
    def running(self) -> int:
        """Queries in progress."""
        return self._running

    async def answer(self, caller: Caller, query: Query) -> Answered:
        """Answer a query and charge the caller's account for it.

        Raises:
            QueryError: the query is not acceptable.
            PriceError: the model is not priced.
            MeterError: the meter refused; see :mod:`metering.meter`.
            AlreadyCharged, Overloaded: as they say.
        """
        if len(query.question) > self._settings.question_chars:
            raise QuestionTooLong(
                f"the question has {len(query.question)} characters; the limit is {self._settings.question_chars}"
            )
        if self._running >= self._settings.concurrent_queries:
            raise Overloaded("too many queries in progress")
        self._running += 1
        try:
            return await self._authorized(caller, query)
        finally:
            self._running -= 1

    async def _authorized(self, caller: Caller, query: Query) -> Answered:
        started = time.time_ns()
        prices = self._rulebook.prices
        price = prices.price(query.model)
        tokens = self._embedder.count_tokens(query.question)
        ceiling = price.charge(Usage(tokens, extractive.ANSWER_TOKENS_MAX, query.top_k))
        if query.max_price is not None and ceiling > query.max_price:
            raise MaxPriceExceeded(self._currency.format(ceiling))
        request = Request(
            hold=f"{started // 1_000_000:012x}{secrets.token_hex(8)}",
            account=caller.id,
            key=caller.key,
            ceiling=ceiling,
            requests_per_minute=self._settings.requests_per_minute,
            idempotency_key=query.idempotency_key,
            fingerprint=query.body_hash,
        )
        hold = await self._meter.authorize(request)
        if isinstance(hold, Replay):
            return _ANSWERED.decode(self._vault.open(hold.response, caller.id))
        try:
            if query.idempotency_key:
                await asyncio.to_thread(self._refuse_charged, request)
            work = _Work(query, price, tokens, prices.version, started)
            answered, record = await asyncio.get_running_loop().run_in_executor(
                self._pool, self._produce, work, request
            )
            response = b""
            if query.idempotency_key:
                response = self._vault.seal(msgspec.msgpack.encode(answered), caller.id)
        except BaseException:
            await self._release(hold)
            raise
        await self._meter.capture(hold, record, response)
        return answered

    async def _release(self, hold: Hold) -> None:
        """Void, also when this task is being cancelled; if it fails, the hold lapses by itself."""
        await asyncio.shield(asyncio.ensure_future(self._meter.void(hold)))

    def _refuse_charged(self, request: Request) -> None:
        """The meter forgets an Idempotency-Key after a while; the ledger never does."""
        table = ledger.idempotency
        known = sa.select(table.c.record).where(
            table.c.account == request.account,
            table.c.fingerprint == fingerprint(request.idempotency_key),
        )
        with self._engine.connect() as connection:
            receipt = connection.execute(known).scalar_one_or_none()
        if receipt is not None:
            raise AlreadyCharged(receipt)

    def _produce(self, work: _Work, request: Request) -> tuple[Answered, UsageRecord]:
        """Retrieve, generate, value. Runs in a worker thread."""
        query = work.query
        retrieval = self._retriever.retrieve(
            query.question,
            top_k=query.top_k,
            purpose=query.purpose,
            price=work.price.charge(Usage(work.input_tokens, 0, 0)),
        )
        answer = extractive.answer(retrieval)
        tokens = min(self._embedder.count_tokens(answer.text), extractive.ANSWER_TOKENS_MAX)
        usage = Usage(work.input_tokens, tokens, len(retrieval.documents))
        record = self._record(work, request, retrieval, answer, usage)
        self._samples.keep(record, retrieval, answer.text)
        return _answered(record, retrieval, answer), record

    def _record(
        self, work: _Work, request: Request, retrieval: Retrieval, answer: extractive.Answer, usage: Usage
    ) -> UsageRecord:
        policy = self._rulebook.policy
        charge, cost = work.price.charge(usage), work.price.cost(usage)
        platform, royalty = policy.divide(charge, cost)
        cited = {citation.source for citation in answer.citations}
        return UsageRecord(
            id=request.hold,
            account=request.account,
            key=request.key,
            model=work.query.model,
            purpose=work.query.purpose,
            started_ms=work.started_ns // 1_000_000,
            finished_ms=time.time_ns() // 1_000_000,
            price_version=work.price_version,
            policy_version=policy.version,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            passages=usage.passages,
            charge=charge,
            cost=cost,
            platform=platform,
            royalty=royalty,
            value_function=policy.value_function,
            values=tuple(counterfactual(answer.worths, answer.slots).tolist()),
            uses=tuple(
                Use(
                    document=found.document.id,
                    version=found.document.version,
                    contributor=found.document.contributor,
                    splits=tuple(Split(each.contributor, each.role, each.ppm) for each in found.document.splits),
                    score=round(found.score * SCORE_ONE),
                    cited=index in cited,
                )
                for index, found in enumerate(retrieval.documents)
            ),
            idempotency=fingerprint(request.idempotency_key) if request.idempotency_key else "",
        )


@dataclass(frozen=True, slots=True)
class _Work:
    query: Query
    price: ModelPrice
    input_tokens: int
    price_version: int
    started_ns: int


def _answered(record: UsageRecord, retrieval: Retrieval, answer: extractive.Answer) -> Answered:
    weights, residual = shares(record)
    return Answered(
        id=record.id,
        created_ms=record.finished_ms,
        model=record.model,
        answer=answer.text,
        sources=tuple(
            Source(
                document_id=found.document.id,
                version=found.document.version,
                title=found.document.title,
                contributor=found.document.contributor,
                url=found.document.url,
                score=use.score / SCORE_ONE,
                share=weight,
                cited=use.cited,
            )
            for found, use, weight in zip(retrieval.documents, record.uses, weights, strict=True)
        ),
        citations=tuple(Citation(each.source, each.quote, each.passage, each.answer_span) for each in answer.citations),
        model_residual=residual,
        charge=record.charge,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        price_version=record.price_version,
        policy_version=record.policy_version,
    )
