"""Closes and previews in their pool: they end when nobody waits for them any more."""

from __future__ import annotations

import threading
from typing import Protocol, TypeVar

from serving.answering.pools import Pool
from serving.closing.closing import ClosingError
from serving.closing.hourly_parts import Progress

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Computing(Protocol[T_co]):
    """A close or a preview, which says how far it is."""

    def __call__(self, *, progress: Progress) -> T_co:
        """Compute it."""
        ...


class Abandoned(ClosingError):
    """The one who asked has left, or the server is being stopped."""


async def in_pool(pool: Pool, caller: str, work: Computing[T], progress: Progress | None = None) -> T:
    """Compute in the pool, in the caller's turn; cancelled, it stops before the next hour of the period.

    What was computed stays on disk, so that whoever asks again goes on there.

    Raises:
        Overloaded: too much of this caller's waits already.
    """
    left = threading.Event()

    def say(done: int, total: int) -> None:
        if left.is_set():
            raise Abandoned("nobody waits for it any more; ask again, and it goes on")
        if progress is not None:
            progress(done, total)

    def compute() -> T:
        say(0, 0)
        return work(progress=say)

    try:
        return await pool.run(caller, compute)
    except BaseException:
        left.set()
        raise
