"""Answering: the one use case. Authorize, retrieve, generate, value, capture, answer.

Two round trips to Redis, one more to look for a replay where the call has an Idempotency-Key, and nothing is held
across the model but money. Whatever fails before the capture voids the hold, so a failure charges nothing; the capture
charges and logs in one step, so an answer is charged exactly once, and only if its usage record is in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

import msgspec

from attribution.agreement import drawn
from attribution.runs.run import shares
from metering.meter import Replay
from metering.pricing import UnknownModel, Usage
from metering.records import SCORE_ONE, Provenance, Split, UsageRecord, Use
from retrieval.embedding import Embedder
from retrieval.retriever import Retrieval, Retriever
from serving.answering.answered import Answered, Source
from serving.answering.delivery import Delivery
from serving.answering.paid_calls import PaidCall, PaidCalls
from serving.answering.pools import Pool
from serving.answering.sampled_texts import Samples
from serving.generators.generator import Delivered, Generation, Generator, Transcript
from serving.generators.grounded_answer import GroundedAnswer
from serving.generators.query import Query, QuestionTooLong
from serving.people.identity import Caller
from serving.settings import Settings
from serving.valuing.functions import Valuing, waits

_SHORT_CHARS = 1_000
"""Up to here counting tokens takes less than handing it to a thread."""
_ANSWERED = msgspec.msgpack.Decoder(Answered)


class Answering:
    """Answers paid queries."""

    def __init__(
        self,
        *,
        paid_calls: PaidCalls,
        retriever: Retriever,
        embedder: Embedder,
        generators: Mapping[str, Generator],
        valuing: Valuing,
        samples: Samples,
        provenance: Provenance,
        pool: Pool,
        waiters: Executor,
        settings: Settings,
    ) -> None:
        """The parts are owned by the caller; ``generators`` are by the name of the model that is sold.

        ``provenance`` is what all answers of this process have in common.

        ``pool`` computes; ``waiters`` are for answers that wait for a model which says what they are worth, or for the
        disk that keeps those which are drawn.
        """
        self._paid_calls = paid_calls
        self._retriever = retriever
        self._embedder = embedder
        self._generators = generators
        self._valuing = valuing
        self._samples = samples
        self._provenance = provenance
        self._pool = pool
        self._waiters = waiters
        self._settings = settings

    @property
    def models(self) -> frozenset[str]:
        """The models that answer."""
        return frozenset(self._generators)

    async def answer(self, caller: Caller, query: Query) -> Answered:
        """Answer a query as a whole and charge the caller's account for it.

        Raises:
            QueryError: the query is not acceptable.
            PriceError: the model is not priced, or does not answer.
            MeterError: the meter refused; see :mod:`metering.meter`.
            GeneratorError: the model gave no whole answer; nothing was charged.
            NotValued: the answer cannot be valued; nothing was charged.
            AlreadyCharged, ReplayNotKept, Overloaded: as they say.
        """
        found = await self.begin(caller, query)
        return found if isinstance(found, Answered) else await found.whole()

    async def begin(self, caller: Caller, query: Query) -> Answered | Delivery:
        """Begin to answer a query: an answer that is there at once is charged, of another the delivery must be ended.

        Raises:
            QueryError, PriceError, MeterError, NotValued, AlreadyCharged, ReplayNotKept, Overloaded: as
                :meth:`answer`.
        """
        generator = self._generators.get(query.model)
        if generator is None:
            raise UnknownModel(f"there is no model {query.model!r} that answers")
        self._check_length(query)
        if (replay := await self._paid_calls.find_replay(caller, query.idempotency)) is not None:
            return _again(replay)
        read = generator.reads(query)
        if len(read) < _SHORT_CHARS:
            tokens = self._embedder.count_tokens(read)
        else:
            tokens = await self._pool.run(caller.id, self._embedder.count_tokens, read)
        most = Usage(tokens, generator.tokens_max(query), query.top_k)
        call = await self._paid_calls.open(
            caller,
            model=query.model,
            purpose=query.purpose,
            most=most,
            max_price=query.max_price,
            idempotency=query.idempotency,
        )
        if isinstance(call, Replay):
            return _again(call)
        values_by = call.policy.values_by(generated=generator.generated)
        workers = self._waiters if waits(values_by) else self._pool.threads
        try:
            make = partial(self._make, generator, query, call, most, values_by)
            if workers is self._waiters:
                retrieval, made = await asyncio.get_running_loop().run_in_executor(workers, make)
            else:
                retrieval, made = await self._pool.run(caller.id, make)
            if not isinstance(made, tuple):
                return self._deliver(call, retrieval, made, most, values_by, workers)
            grounded, answered, record = made
            await self._keep(call, record, grounded, sent=False)
            response = msgspec.msgpack.encode(answered) if query.idempotency.key else b""
        except BaseException:
            await self._paid_calls.void(call)
            raise
        await self._paid_calls.charge(call, record, response)
        return msgspec.structs.replace(answered, quota=call.hold.quota)

    def _check_length(self, query: Query) -> None:
        characters, limit = len(query.question), self._settings.question_chars
        if characters > limit:
            raise QuestionTooLong(f"the question has {characters} characters; the limit is {limit}")
        characters = sum(len(message.text) for message in query.conversation)
        limit = self._settings.conversation_chars
        if characters > limit:
            raise QuestionTooLong(f"the conversation has {characters} characters; the limit is {limit}", "messages")

    def _deliver(
        self,
        call: PaidCall,
        retrieval: Retrieval,
        generation: Generation,
        most: Usage,
        values_by: str,
        workers: Executor,
    ) -> Delivery:
        def conclude(delivered: Delivered, interrupted: str, sent: bool) -> tuple[Answered, UsageRecord]:  # noqa: FBT001 # see Conclude
            return self._conclude(call, retrieval, delivered, most, values_by, interrupted=interrupted, sent=sent)

        return Delivery(
            call,
            generation,
            Transcript(self._embedder.count_tokens, most.output_tokens),
            paid_calls=self._paid_calls,
            conclude=conclude,
            keep=self._keep,
            workers=workers,
            timeout_s=min(self._settings.answer_seconds, self._settings.hold_seconds),
        )

    def _make(
        self, generator: Generator, query: Query, call: PaidCall, most: Usage, values_by: str
    ) -> tuple[Retrieval, Generation | tuple[GroundedAnswer, Answered, UsageRecord]]:
        """Retrieve, and generate and value what is there at once. Runs in a worker thread."""
        self._valuing.ensure_available(values_by)
        retrieval = self._retriever.retrieve(
            query.question,
            top_k=query.top_k,
            purpose=query.purpose,
            price=call.price.charge(replace(most, output_tokens=0, passages=0)),
        )
        made = generator.begin(query, retrieval)
        if not isinstance(made, Delivered):
            return retrieval, made
        return retrieval, (made.grounded, *self._conclude(call, retrieval, made, most, values_by))

    async def _keep(self, call: PaidCall, record: UsageRecord, grounded: GroundedAnswer, *, sent: bool) -> None:
        """Keep what is drawn for the audit. It waits for the disk where nobody else's answer waits behind it."""
        if drawn(record, call.policy.ablation_ppm):
            keep = partial(self._samples.keep, record.id, record.finished_ms, grounded, sent=sent)
            await asyncio.get_running_loop().run_in_executor(self._waiters, keep)

    def _conclude(
        self,
        call: PaidCall,
        retrieval: Retrieval,
        delivered: Delivered,
        most: Usage,
        values_by: str,
        *,
        interrupted: str = "",
        sent: bool = False,
    ) -> tuple[Answered, UsageRecord]:
        """What the customer is shown, and what is logged. Runs in a worker thread."""
        value_function, values = self._valuing.value(values_by, delivered.grounded, sent=sent)
        tokens = min(self._embedder.count_tokens(delivered.text), most.output_tokens)
        record = call.record(
            Usage(most.input_tokens, tokens, len(retrieval.documents)),
            value_function=value_function,
            values=values.tolist(),
            uses=_uses(retrieval, {citation.source for citation in delivered.citations}),
            provenance=msgspec.structs.replace(
                self._provenance, answered=bool(delivered.grounded.answer.strip()), epoch=retrieval.epoch
            ),
        )
        return _answered(record, retrieval, delivered, interrupted), record


def _again(replay: Replay) -> Answered:
    return msgspec.structs.replace(_ANSWERED.decode(replay.response), quota=replay.quota, replayed=True)


def _uses(retrieval: Retrieval, cited: set[int]) -> list[Use]:
    return [
        Use(
            document=found.document.id,
            version=found.document.version,
            contributor=found.document.contributor,
            splits=tuple(Split(each.contributor, each.role, each.ppm) for each in found.document.splits),
            score=round(found.score * SCORE_ONE),
            cited=index in cited,
            registered_ms=found.registered_ms,
        )
        for index, found in enumerate(retrieval.documents)
    ]


def _answered(record: UsageRecord, retrieval: Retrieval, delivered: Delivered, interrupted: str) -> Answered:
    weights, residual = shares(record)
    return Answered(
        id=record.id,
        created_ms=record.finished_ms,
        model=record.model,
        answer=delivered.text,
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
        citations=delivered.citations,
        model_residual=residual,
        charge=record.charge,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        price_version=record.price_version,
        policy_version=record.policy_version,
        free=record.free,
        finish=delivered.finish,
        interrupted=interrupted,
    )
