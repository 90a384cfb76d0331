"""Embeddings: vectors of texts, paid by the token. They use no document, so nobody's documents earn from them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from metering.meter import Quota, Replay
from metering.pricing import UnknownModel, Usage
from metering.records import Provenance
from retrieval.embedding import Embedder, Vector
from serving.answering.paid_calls import PaidCalls, ReplayNotKept
from serving.generators.query import Idempotency, QueryError
from serving.people.identity import Caller

TEXTS_MAX: Final = 2_048
PURPOSE: Final = "embedding"
NO_GAME: Final = "none"
"""Recorded as the value function of what uses no document."""


class Paid(msgspec.Struct, frozen=True):
    """What was paid for embeddings."""

    receipt: str
    charge: int
    tokens: int
    free: int = 0
    """The part of the charge that the operator pays."""


class _Kept(Paid, frozen=True):
    """What a replay gives again."""

    vectors: tuple[bytes, ...] = ()
    """Little-endian 32-bit floats. Versions that kept what was paid and no vectors left none."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of some texts, in their order, and what was paid for them."""

    vectors: tuple[Vector, ...]
    paid: Paid
    quota: Quota | None
    """What the key's limits leave now."""


_KEPT = msgspec.msgpack.Decoder(_Kept)


class Embeddings:
    """Sells embeddings."""

    def __init__(
        self, *, paid_calls: PaidCalls, embedder: Embedder, model: str, provenance: Provenance, workers: Executor
    ) -> None:
        """``model`` is the name under which the embedder is sold; ``provenance`` is that of every record."""
        self._paid_calls = paid_calls
        self._embedder = embedder
        self.model = model
        self._provenance = provenance
        self._workers = workers

    @property
    def dimension(self) -> int:
        """The length of every vector."""
        return self._embedder.dimension

    async def embed(
        self,
        caller: Caller,
        model: str,
        texts: Sequence[str],
        *,
        max_price: int | None,
        idempotency: Idempotency,
    ) -> Embedded:
        """Embed some texts and charge the caller's account for their tokens.

        Raises:
            QueryError: a text is empty or longer than the model reads, or there are too many.
            PriceError: the model is not priced, or does not embed.
            MaxPriceExceeded, MeterError, AlreadyCharged, ReplayNotKept, Overloaded: as
                :meth:`serving.answering.paid_calls.PaidCalls.open`.
        """
        if model != self.model:
            raise UnknownModel(f"there is no model {model!r} that embeds")
        if not 1 <= len(texts) <= TEXTS_MAX:
            raise QueryError(f"input must have 1 to {TEXTS_MAX} texts", "input")
        if (replay := await self._paid_calls.find_replay(caller, idempotency)) is not None:
            return _again(replay)
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._workers, self._tokens, texts)
        usage = Usage(tokens, 0, 0)
        call = await self._paid_calls.open(
            caller, model=model, purpose=PURPOSE, most=usage, max_price=max_price, idempotency=idempotency
        )
        if isinstance(call, Replay):
            return _again(call)
        try:
            vectors = await self._vectors(texts)
            record = call.record(usage, value_function=NO_GAME, values=(0,), uses=(), provenance=self._provenance)
            paid = Paid(record.id, record.charge, tokens, record.free)
            response = _kept(paid, vectors) if idempotency.key else b""
        except BaseException:
            await self._paid_calls.void(call)
            raise
        await self._paid_calls.charge(call, record, response)
        return Embedded(vectors, paid, call.hold.quota)

    async def _vectors(self, texts: Sequence[str]) -> tuple[Vector, ...]:
        """Each text is a job of its own, so that a long list does not hold up others."""
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._workers, self._embedder.embed_query, text) for text in texts]
        return tuple(await asyncio.gather(*jobs))

    def _tokens(self, texts: Sequence[str]) -> int:
        total = 0
        for number, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise QueryError(f"input {number} is not valid Unicode", "input") from None
            tokens = self._embedder.count_tokens(text)
            if not tokens:
                raise QueryError(f"input {number} is empty", "input")
            if tokens > self._embedder.tokens_max:
                raise QueryError(
                    f"input {number} has {tokens} tokens; the model reads {self._embedder.tokens_max}", "input"
                )
            total += tokens
        return total


def _kept(paid: Paid, vectors: Sequence[Vector]) -> bytes:
    return msgspec.msgpack.encode(
        _Kept(
            paid.receipt, paid.charge, paid.tokens, paid.free, tuple(each.astype("<f4").tobytes() for each in vectors)
        )
    )


def _again(replay: Replay) -> Embedded:
    kept = _KEPT.decode(replay.response)
    if not kept.vectors:
        raise ReplayNotKept(kept.receipt)
    return Embedded(tuple(np.frombuffer(each, "<f4") for each in kept.vectors), kept, replay.quota)
