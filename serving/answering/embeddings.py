"""Embeddings: vectors of texts, paid by the token. They use no document, so nobody's documents earn from them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import numpy as np

from metering.meter import Quota, Replay
from metering.pricing import UnknownModel, Usage
from metering.records import Provenance
from retrieval.embedding import Embedder, Vector
from serving.answering.paid_calls import PaidCalls, ReplayNotKept
from serving.answering.pools import Pool
from serving.generators.query import Idempotency, InputTooLong, QueryError
from serving.people.identity import Caller

S = TypeVar("S")
T = TypeVar("T")

TEXTS_MAX: Final = 2_048
TEXT_CHARS_MAX: Final = 50_000
"""The longest text that is tokenized to see whether the model reads it: a hundred characters for each token."""
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
    replayed: bool = False
    """Whether they were paid for before, and are given again."""


_KEPT = msgspec.msgpack.Decoder(_Kept)


class Embeddings:
    """Sells embeddings."""

    def __init__(
        self,
        *,
        paid_calls: PaidCalls,
        embedder: Embedder,
        model: str,
        provenance: Provenance,
        pool: Pool,
        chars_max: int,
    ) -> None:
        """``model`` is the name under which the embedder is sold; ``provenance`` is that of every record.

        ``chars_max`` is how much text one call may have. The pool is owned by the caller.
        """
        self._paid_calls = paid_calls
        self._embedder = embedder
        self.model = model
        self._provenance = provenance
        self._pool = pool
        self._chars_max = chars_max

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
            QueryError: a text is empty or longer than the model reads, or there are too many, or too much of them.
            PriceError: the model is not priced, or does not embed.
            MaxPriceExceeded, MeterError, AlreadyCharged, ReplayNotKept, Overloaded: as
                :meth:`serving.answering.paid_calls.PaidCalls.open`.
        """
        if model != self.model:
            raise UnknownModel(f"there is no model {model!r} that embeds")
        if not 1 <= len(texts) <= TEXTS_MAX:
            raise QueryError(f"input must have 1 to {TEXTS_MAX} texts", "input")
        chars = sum(map(len, texts))
        if chars > self._chars_max:
            raise InputTooLong(
                f"input has {chars} characters in all; the limit is {self._chars_max}: send it in several calls",
                "input",
            )
        longest = max(range(len(texts)), key=lambda number: len(texts[number]))
        if len(texts[longest]) > TEXT_CHARS_MAX:
            raise InputTooLong(
                f"input {longest} has {len(texts[longest])} characters; the limit for one text is {TEXT_CHARS_MAX}",
                "input",
            )
        if (replay := await self._paid_calls.find_replay(caller, idempotency)) is not None:
            return _again(replay)
        tokens = sum(await self._each(caller, self._tokens, list(enumerate(texts))))
        usage = Usage(tokens, 0, 0)
        call = await self._paid_calls.open(
            caller, model=model, purpose=PURPOSE, most=usage, max_price=max_price, idempotency=idempotency
        )
        if isinstance(call, Replay):
            return _again(call)
        try:
            vectors = tuple(await self._each(caller, self._embedder.embed_query, texts))
            record = call.record(usage, value_function=NO_GAME, values=(0,), uses=(), provenance=self._provenance)
            paid = Paid(record.id, record.charge, tokens, record.free)
            response = _kept(paid, vectors) if idempotency.key else b""
        except BaseException:
            await self._paid_calls.void(call)
            raise
        await self._paid_calls.charge(call, record, response)
        return Embedded(vectors, paid, call.hold.quota)

    async def _each(self, caller: Caller, work: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """The results for some items, in their order: each is a piece of its own, and few wait at a time.

        It ends with the task that waits for it, but for the pieces in hand.
        """
        found: dict[int, T] = {}

        async def take(left: Iterator[tuple[int, S]]) -> None:
            for number, item in left:
                found[number] = await self._pool.run(caller.id, work, item)

        left = iter(enumerate(items))
        taking = [asyncio.create_task(take(left)) for _ in range(min(self._pool.size, len(items)))]
        try:
            await asyncio.gather(*taking)
        finally:
            for task in taking:
                task.cancel()
            await asyncio.wait(taking)
        return [found[number] for number in range(len(items))]

    def _tokens(self, numbered: tuple[int, str]) -> int:
        number, text = numbered
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
        return tokens


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
    return Embedded(tuple(np.frombuffer(each, "<f4") for each in kept.vectors), kept, replay.quota, replayed=True)
