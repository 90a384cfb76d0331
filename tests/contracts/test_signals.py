"""The outbox of low-balance events on both databases: one event whenever an account becomes low, until it is taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from metering.meter import Balance
from serving.assembly import open_books
from serving.books import Books, Metering
from serving.notify import alerts, outbox
from serving.notify.alerts import deliveries
from serving.notify.outbox import ATTEMPTS_MAX, Signals
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from tests.databases import new_data_dir

pytestmark = pytest.mark.anyio
SIX_HOURS_MS = 6 * 3600 * 1000


class Rich:
    """A meter in which every account has the same left."""

    def __init__(self, left: int) -> None:
        self.left = left

    async def balance(self, account: str) -> Balance:
        if account == "unopened":
            raise KeyError(account)
        return Balance(self.left, 0, 5)


@pytest.fixture(params=["sqlite", "postgresql"])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Books]:
    url = None if request.param == "sqlite" else request.getfixturevalue("new_postgres")
    settings = Settings(
        data_dir=new_data_dir(tmp_path / "data"), database_url=url, low_balance="1", webhook_private_hosts=True
    )
    with open_books(settings) as found:
        yield found


def rows(books: Books) -> list[sa.Row]:
    with books.engine.connect() as connection:
        return list(connection.execute(sa.select(deliveries).order_by(deliveries.c.created_ms)))


async def choose(books: Books, account: str) -> str:
    found = await alerts.change(books, Rich(10**10), account, {"webhook": "http://127.0.0.1:9/"})
    return found["secret"]


async def test_however_many_see_an_account_become_low_it_is_told_once(books):
    await choose(books, "acme")
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: alerts._mark(books, "acme", 999_999_999), range(8)))
        assert alerts.low_accounts(books) == ["acme"]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: alerts._mark(books, "acme", 10**9), range(8)))
        assert alerts.low_accounts(books) == []
    assert len(rows(books)) == len({row.id for row in rows(books)}) == 3


async def test_what_is_left_is_compared_with_the_threshold_and_holds_do_not_count(books):
    await alerts.check(books, Rich(10**9 - 1), ["acme", "unopened"])
    assert alerts.low_accounts(books) == ["acme"]
    await alerts.check(books, Rich(10**9), ["acme"])
    assert alerts.low_accounts(books) == []
    assert rows(books) == [], "an account without a webhook is only counted"


async def deliver(books: Books, status: int, *, due: bool = True) -> list[httpx.Request]:
    """One pass of the delivery, over a transport that answers with ``status``; what was sent."""
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(status)

    if due:
        with books.engine.begin() as connection:
            connection.execute(sa.update(deliveries).where(deliveries.c.due_ms.is_not(None)).values(due_ms=1))
    metering = Metering(books, Rich(0), None, (), None)  # type: ignore[arg-type] # nothing is drained here
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        await Signals(books, metering, Metrics()).deliver(client)
    return sent


async def test_it_is_tried_again_later_and_later_and_given_up_at_last(books, monkeypatch):
    await choose(books, "acme")
    alerts._mark(books, "acme", 0)
    now = outbox._now_ms()
    monkeypatch.setattr(outbox, "_now_ms", lambda: now)
    waits = []
    for attempt in range(1, ATTEMPTS_MAX + 1):
        assert len(await deliver(books, 500)) == 1
        (row,) = rows(books)
        assert (row.attempts, row.error, row.delivered_ms) == (attempt, "status 500", None)
        assert await deliver(books, 200, due=False) == [], "not before its time"
        waits.append(None if row.due_ms is None else row.due_ms - row.created_ms)
    assert waits[-1] is None
    assert all(earlier < later + 60_000 for earlier, later in itertools.pairwise(waits[:-1]))
    assert 500 <= waits[0] <= 60_000
    assert SIX_HOURS_MS - 1_000 <= waits[-2] <= SIX_HOURS_MS + 60_000
    assert await deliver(books, 200) == []


async def test_what_was_taken_is_not_sent_again(books):
    await choose(books, "acme")
    alerts._mark(books, "acme", 0)
    (request,) = await deliver(books, 204)
    assert await deliver(books, 204) == []
    (row,) = rows(books)
    assert row.delivered_ms is not None
    assert request.headers["webhook-id"] == row.id


async def test_a_webhook_that_was_removed_is_not_called(books):
    await choose(books, "acme")
    alerts._mark(books, "acme", 0)
    await alerts.change(books, Rich(0), "acme", {"webhook": "none"})
    assert await deliver(books, 204) == []
    (row,) = rows(books)
    assert (row.due_ms, row.delivered_ms, row.error) == (None, None, "the account has no webhook any more")
