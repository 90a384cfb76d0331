"""The delivery: an answer on its way to the customer, in pieces, and what is paid for it.

The taker of the pieces ends with exactly one of :meth:`Delivery.paid`, :meth:`Delivery.whole` and
:meth:`Delivery.leave`. The customer pays for the pieces that were taken; a whole answer that fails is void.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final, Protocol, Self

import msgspec

from metering.meter import Quota
from metering.records import UsageRecord
from serving.answering.answered import Answered
from serving.answering.paid_calls import PaidCall, PaidCalls
from serving.generators.generator import AnswerTimeout, Delivered, Generation, GeneratorError, Transcript
from serving.generators.grounded_answer import GroundedAnswer

CLIENT_LEFT: Final = "client_left"
"""How an answer is marked that its customer did not wait for."""

Conclude = Callable[[Delivered, str, bool], tuple[Answered, UsageRecord]]
"""From what was delivered, the code of what broke it off, and whether the customer has it, to the two views of it.

Computes. It may refuse only what the customer does not have yet.
"""


class Keep(Protocol):
    """Keeps the text of an answer whose record is drawn for the audit."""

    def __call__(self, call: PaidCall, record: UsageRecord, grounded: GroundedAnswer, *, sent: bool) -> Awaitable[None]:
        """Keep it, if it is drawn; ``sent`` says that the customer has it.

        Raises:
            SampleNotKept: the disk refuses, and the answer was not sent.
        """


class Delivery:
    """An answer on its way. Iterating takes its pieces, and raises ``GeneratorError`` where the model breaks off."""

    def __init__(
        self,
        call: PaidCall,
        generation: Generation,
        transcript: Transcript,
        *,
        paid_calls: PaidCalls,
        conclude: Conclude,
        keep: Keep,
        workers: Executor,
        timeout_s: float,
    ) -> None:
        """The time-out is for the whole answer, and begins now."""
        self._call = call
        self._generation = generation
        self._transcript = transcript
        self._paid_calls = paid_calls
        self._conclude = conclude
        self._keep = keep
        self._workers = workers
        self._timeout_s = timeout_s
        self._deadline = asyncio.get_running_loop().time() + timeout_s
        self._pieces = generation.pieces()
        self._ahead = ""
        self._ending: asyncio.Task[Answered | None] | None = None

    @property
    def receipt(self) -> str:
        """The id of the receipt."""
        return self._call.receipt

    @property
    def quota(self) -> Quota | None:
        """What the limits of the customer's key leave."""
        return self._call.hold.quota

    @property
    def model(self) -> str:
        """The model that answers."""
        return self._call.model

    @property
    def started_ms(self) -> int:
        """When the query was admitted."""
        return self._call.started_ms

    def __aiter__(self) -> Self:
        """The delivery itself: there is one taker."""
        return self

    async def __anext__(self) -> str:
        """The next piece."""
        piece, self._ahead = self._ahead, ""
        return piece or await self._next()

    async def begun(self) -> None:
        """Wait for the first piece, which stays to be taken; until then a failure costs nothing.

        Raises:
            GeneratorError: there is none.
        """
        try:
            self._ahead = await self._next()
        except StopAsyncIteration:
            raise GeneratorError("the model gave no answer") from None
        finally:
            if not self._ahead:
                await self.leave()

    async def whole(self) -> Answered:
        """Take the whole answer. A non-streaming answer is all or nothing: a failure voids its hold.

        Raises:
            GeneratorError: the model breaks off; nothing is charged.
            NotValued: the answer cannot be valued; nothing is charged.
            MeterError: as :meth:`serving.answering.paid_calls.PaidCalls.charge`.
        """
        try:
            async for _ in self:
                pass
            if not self._transcript.text:
                raise GeneratorError("the model gave no answer")
        except BaseException:
            await self._end(charged=False)
            raise
        return await self._paid("", sent=False)

    async def paid(self, interrupted: str = "") -> Answered:
        """Charge for what was taken. ``interrupted`` is the code of the error that broke it off.

        Raises:
            MeterError: as :meth:`serving.answering.paid_calls.PaidCalls.charge`.
        """
        return await self._paid(interrupted, sent=True)

    async def leave(self) -> None:
        """End it, unless it has ended: the customer is gone, or was never there. What was taken is charged."""
        await self._end(charged=bool(self._transcript.text))

    async def _next(self) -> str:
        while not self._transcript.full:
            try:
                async with asyncio.timeout_at(self._deadline):
                    piece = await anext(self._pieces)
            except TimeoutError:
                raise AnswerTimeout(f"the answer took longer than {self._timeout_s:g} s") from None
            taken = self._transcript.take(piece)
            if taken:
                return taken
        raise StopAsyncIteration

    async def _paid(self, interrupted: str, *, sent: bool) -> Answered:
        found = await asyncio.shield(self._start(charged=True, interrupted=interrupted, sent=sent))
        if found is None:
            raise GeneratorError("nothing was delivered")
        return found

    async def _end(self, *, charged: bool) -> None:
        await asyncio.wait({self._start(charged=charged, interrupted=CLIENT_LEFT, sent=True)})

    def _start(self, *, charged: bool, interrupted: str, sent: bool) -> asyncio.Task[Answered | None]:
        if self._ending is None:
            work = self._charge(interrupted, sent=sent) if charged else self._void()
            self._ending = self._paid_calls.start(work)
        return self._ending

    async def _charge(self, interrupted: str, *, sent: bool) -> Answered:
        try:
            await self._close()
            finish = "length" if self._transcript.full else self._generation.finish
            loop = asyncio.get_running_loop()
            made = loop.run_in_executor(self._workers, self._concluded, finish, interrupted, sent)
            grounded, (answered, record) = await made
            await self._keep(self._call, record, grounded, sent=sent)
        except BaseException:
            await self._paid_calls.void(self._call)
            raise
        # A library's retry of half an answer gets a new one.
        response = b"" if interrupted and self._call.retried else msgspec.msgpack.encode(answered)
        await self._paid_calls.charge(self._call, record, response)
        return answered

    async def _void(self) -> None:
        await self._close()
        await self._paid_calls.void(self._call)

    async def _close(self) -> None:
        with suppress(GeneratorError):  # it is over for us
            await self._pieces.aclose()

    def _concluded(
        self,
        finish: str,
        interrupted: str,
        sent: bool,  # noqa: FBT001 # passed on
    ) -> tuple[GroundedAnswer, tuple[Answered, UsageRecord]]:
        delivered = self._generation.delivered(self._transcript.text, finish)
        return delivered.grounded, self._conclude(delivered, interrupted, sent)
