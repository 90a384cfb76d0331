"""Pools: threads for one kind of work, in which callers take turns.

Work comes in pieces that are short, such as a text to embed, so whoever has little to do waits for a piece of each
other caller's and not for all that was there before. A piece that is not begun is forgotten with the task that waits.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Overloaded(RuntimeError):
    """There is too much to do already."""


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    work: Callable[[], Any]
    done: asyncio.Future[Any]


class Pool:
    """Some threads. Used from one event loop."""

    def __init__(self, name: str, threads: int, *, waiting_max: int) -> None:
        """``waiting_max`` is how many pieces of one caller may wait; ``name`` is what a refusal calls them."""
        self._name = name
        self._waiting_max = waiting_max
        self._free = self.size = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting: OrderedDict[str, deque[_Piece]] = OrderedDict()
        """By caller; whose turn is next comes first, and nobody is in it who has nothing to do."""

    @property
    def threads(self) -> Executor:
        """The threads, for what has had its turn already."""
        return self._threads

    async def run(self, caller: str, work: Callable[..., T], *args: Any) -> T:
        """Do a piece of work in its turn, and give its result.

        Raises:
            Overloaded: too much of this caller's waits already.
        """
        if len(self._waiting.get(caller, ())) >= self._waiting_max:
            raise Overloaded(f"too many {self._name} of yours wait already ({self._waiting_max})")
        return await self.run_promised(caller, work, *args)

    async def run_promised(self, caller: str, work: Callable[..., T], *args: Any) -> T:
        """As :meth:`run`, for what was promised: however much waits, it is not refused."""
        piece = _Piece(partial(work, *args), asyncio.get_running_loop().create_future())
        self._waiting.setdefault(caller, deque()).append(piece)
        self._start()
        try:
            result: T = await piece.done
        except asyncio.CancelledError:
            self._forget(caller, piece)
            raise
        return result

    def close(self) -> None:
        """End the threads, when what they do is done."""
        self._threads.shutdown()

    def _start(self) -> None:
        while self._free and self._waiting:
            caller, pieces = self._waiting.popitem(last=False)
            piece = pieces.popleft()
            if pieces:
                self._waiting[caller] = pieces
            self._free -= 1
            running = asyncio.get_running_loop().run_in_executor(self._threads, piece.work)
            running.add_done_callback(partial(self._ended, piece))

    def _ended(self, piece: _Piece, running: asyncio.Future[Any]) -> None:
        self._free += 1
        if running.cancelled():
            piece.done.cancel()
        elif (error := running.exception()) is not None:
            if not piece.done.done():
                piece.done.set_exception(error)
        elif not piece.done.done():
            piece.done.set_result(running.result())
        self._start()

    def _forget(self, caller: str, piece: _Piece) -> None:
        pieces = self._waiting.get(caller)
        if pieces is not None and piece in pieces:
            pieces.remove(piece)
            if not pieces:
                del self._waiting[caller]
