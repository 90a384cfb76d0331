"""Pools: turns, bounds, and what becomes of work that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from serving.answering.pools import Overloaded, Pool

pytestmark = pytest.mark.anyio


class Work:
    """Pieces that note their order; the first of them waits until it is let go."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._open = threading.Event()

    def first(self) -> None:
        assert self._open.wait(30)

    def piece(self, name: str) -> str:
        self.done.append(name)
        return name

    def let_go(self) -> None:
        self._open.set()


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def pool(work: Work) -> Iterator[Pool]:
    found = Pool("pieces", 1, waiting_max=8)
    yield found
    work.let_go()
    found.close()


def begin(pool: Pool, caller: str, do, *args) -> asyncio.Task[object]:
    return asyncio.create_task(pool.run(caller, do, *args))


async def test_callers_take_turns_whoever_came_first(pool: Pool, work: Work):
    tasks = [begin(pool, "busy", work.first)]
    await asyncio.sleep(0)
    tasks += [begin(pool, "busy", work.piece, f"busy {i}") for i in range(8)]
    await asyncio.sleep(0)
    tasks += [begin(pool, name, work.piece, f"{name} {i}") for name in ("ada", "bo") for i in range(2)]
    await asyncio.sleep(0)
    work.let_go()
    await asyncio.gather(*tasks)
    assert work.done[:6] == ["busy 0", "ada 0", "bo 0", "busy 1", "ada 1", "bo 1"]
    assert work.done[6:] == [f"busy {i}" for i in range(2, 8)]


async def test_a_caller_has_so_much_waiting_and_no_other_has_less(pool: Pool, work: Work):
    tasks = [begin(pool, "busy", work.first)]
    await asyncio.sleep(0)
    tasks += [begin(pool, "busy", work.piece, "busy") for _ in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match=r"too many pieces of yours wait already \(8\)"):
        await pool.run("busy", work.piece, "one more")
    tasks.append(begin(pool, "ada", work.piece, "ada"))
    await asyncio.sleep(0)
    work.let_go()
    await asyncio.gather(*tasks)
    assert work.done.count("busy") == 8
    assert "one more" not in work.done
    assert await pool.run("busy", work.piece, "again") == "again"


async def test_what_nobody_waits_for_is_not_begun_and_gives_its_place_back(pool: Pool, work: Work):
    first = begin(pool, "busy", work.first)
    await asyncio.sleep(0)
    for _ in range(3):
        left = [begin(pool, "busy", work.piece, "left") for _ in range(8)]
        await asyncio.sleep(0)
        for task in left:
            task.cancel()
        await asyncio.wait(left)
    after = begin(pool, "busy", work.piece, "after")
    await asyncio.sleep(0)
    work.let_go()
    await asyncio.gather(first, after)
    assert work.done == ["after"]


async def test_a_thread_is_free_again_after_a_piece_that_was_left_or_failed(pool: Pool, work: Work):
    first = begin(pool, "busy", work.first)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    work.let_go()
    with pytest.raises(ZeroDivisionError):
        await pool.run("ada", lambda: 1 // 0)
    assert await pool.run("ada", work.piece, "well") == "well"
