"""Low balances and the outbox on both databases: an event whenever an account becomes low, until it is taken.

The endpoints are real servers on this machine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from metering.meter import Balance, MeterUnavailable
from serving.assembly import open_books
from serving.books import Books, Metering
from serving.notify import alerts, outbox
from serving.notify.balance_watch import BalanceWatch
from serving.notify.dispatcher import UNPROVED_AT_ONCE, Dispatcher
from serving.notify.outbox import FRESH_S, LEASE_S, WAITING_MAX, Event, deliveries, endpoints
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from tests.databases import new_data_dir

pytestmark = pytest.mark.anyio
DAY_MS = 24 * 3600 * 1000


class Rich:
    """A meter in which every account has the same left."""

    def __init__(self, left: int = 10**10) -> None:
        self.left = left
        self.broken: set[str] = set()
        self.away = False

    async def balance(self, account: str) -> Balance:
        if self.away:
            raise MeterUnavailable("it is away")
        if account in self.broken:
            raise ValueError(account)
        if account == "unopened":
            raise KeyError(account)
        return Balance(self.left, 0, 5)


class Charged:
    """A drain that has registered records of these accounts."""

    def __init__(self, *accounts: str) -> None:
        self.accounts = set(accounts)

    def take_charged(self) -> set[str]:
        taken, self.accounts = self.accounts, set()
        return taken


class Endpoint:
    """Answers every call with ``status``, or never."""

    def __init__(self, status: int | None) -> None:
        self.status = status
        self.refused: set[str] = set()
        self.ids: list[str] = []
        self.url = ""
        self.over = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        await reader.readexactly(int(fields["content-length"]))
        self.ids.append(fields["webhook-id"])
        if self.status is None:
            await self.over.wait()
        status = 500 if fields["webhook-id"] in self.refused else self.status or 500
        writer.write(f"HTTP/1.1 {status} Said\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@asynccontextmanager
async def endpoint(status: int | None = 204) -> AsyncIterator[Endpoint]:
    found = Endpoint(status)
    async with await asyncio.start_server(found.answer, "127.0.0.1", 0) as server:
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/low"
        yield found
        found.over.set()


@pytest.fixture(params=["sqlite", "postgresql"])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Books]:
    url = None if request.param == "sqlite" else request.getfixturevalue("new_postgres")
    settings = Settings(
        data_dir=new_data_dir(tmp_path / "data"), database_url=url, low_balance="1", webhook_private_hosts=True
    )
    with open_books(settings) as found:
        yield found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The time of the outbox: it stands still but where it is set forward, in milliseconds."""

    class Clock:
        now = outbox._now_ms()

        def forward(self, milliseconds: float) -> None:
            self.now += int(milliseconds)

    found = Clock()
    monkeypatch.setattr(outbox, "_now_ms", lambda: found.now)
    return found


def rows(books: Books) -> list[sa.Row[Any]]:
    with books.engine.connect() as connection:
        return list(connection.execute(sa.select(deliveries).order_by(deliveries.c.created_ms, deliveries.c.id)))


def state(books: Books, account: str) -> sa.Row[Any]:
    with books.engine.connect() as connection:
        return connection.execute(sa.select(endpoints).where(endpoints.c.account == account)).one()


async def choose(books: Books, account: str, url: str = "http://127.0.0.1:9/") -> str:
    found = await alerts.change(books, Rich(), account, {"webhook": url})
    return found["secret"]


def add(books: Books, account: str, *ids: str) -> None:
    for each in ids:
        with books.engine.begin() as connection:
            outbox.add(connection, Event(each, account, json.dumps({"id": each})))


async def dispatch(books: Books, metrics: Metrics | None = None) -> None:
    """Call everything that is due, and let the calls end."""
    dispatcher = Dispatcher(books, metrics or Metrics())
    await dispatcher.pass_once()
    await dispatcher.idle()
    await dispatcher.pass_once()
    await dispatcher.end()


@asynccontextmanager
async def dispatching(books: Books) -> AsyncIterator[None]:
    """A dispatcher at work, as in a server."""
    over = asyncio.Event()
    at_work = asyncio.create_task(Dispatcher(books, Metrics()).run(over))
    yield
    over.set()
    await at_work


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 # what is waited for is in another process or a database
            await asyncio.sleep(0.005)


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


async def test_what_cannot_be_looked_at_hides_no_other_account(books):
    """Not if it comes first, not in the pass after, and not while the meter is away."""
    meter, drain = Rich(0), Charged("aa", "bad", "zz")
    meter.broken = {"bad"}
    watch = BalanceWatch(books, Metering(books, meter, drain, (), None, None, None), Metrics())  # type: ignore[arg-type]
    meter.away = True
    with pytest.raises(MeterUnavailable):
        await watch.look()
    meter.away = False
    assert "bad" in await watch.look()
    assert sorted(alerts.low_accounts(books)) == ["aa", "zz"]
    drain.accounts = {"later"}
    assert await watch.look() == ""
    assert sorted(alerts.low_accounts(books)) == ["aa", "later", "zz"]


async def test_it_is_tried_again_later_and_later_and_given_up_after_three_days(books, clock):
    dispatcher, waits = Dispatcher(books, Metrics()), []
    async with endpoint(500) as failing:
        await choose(books, "acme", failing.url)
        add(books, "acme", "msg_1")
        while rows(books)[0].due_ms is not None:
            calls = len(failing.ids)
            await dispatcher.pass_once()
            await dispatcher.idle()
            (row,) = rows(books)
            assert (row.attempts, row.error, row.delivered_ms) == (calls + 1, "status 500", None)
            await dispatcher.pass_once()
            await dispatcher.idle()
            assert len(failing.ids) == calls + 1, "not before its time"
            if row.due_ms is not None:
                waits.append((state(books, "acme").next_ms - clock.now) / 1000)
                clock.forward(waits[-1] * 1000)
        await dispatcher.end()
    assert waits[:15] == [2**i for i in range(15)]
    assert set(waits[15:]) == {6 * 3600}
    assert 3 * 24 * 3600 < sum(waits) <= (3 * 24 + 6) * 3600
    assert outbox.counts(books.engine) == (0, {"delivered": 0, "failed": len(waits), "abandoned": 1})


async def test_what_was_taken_is_not_sent_again_and_what_was_removed_is_not_called(books):
    async with endpoint() as taking:
        await choose(books, "acme", taking.url)
        add(books, "acme", "msg_1")
        await dispatch(books)
        await dispatch(books)
        assert taking.ids == ["msg_1"]
        (row,) = rows(books)
        assert (row.due_ms, row.error, row.attempts) == (None, "", 1)
        assert row.delivered_ms is not None
        add(books, "acme", "msg_2")
        await alerts.change(books, Rich(), "acme", {"webhook": "none"})
        await dispatch(books)
        assert taking.ids == ["msg_1"]
    row = next(row for row in rows(books) if row.id == "msg_2")
    assert (row.due_ms, row.delivered_ms, row.error) == (None, None, "the account has no webhook any more")


async def test_an_endpoint_that_never_answers_has_one_call_however_much_waits_and_delays_nobody(books):
    async with endpoint(None) as silent, endpoint() as taking:
        await choose(books, "silent", silent.url)
        await choose(books, "acme", taking.url)
        add(books, "silent", *[f"msg_s{i}" for i in range(85)])
        async with dispatching(books):
            for i in range(3):
                add(books, "acme", f"msg_{i}")
                await until(lambda i=i: len(taking.ids) == i + 1)
            await until(lambda: silent.ids)
            assert len(silent.ids) == 1
            silent.over.set()


async def test_endpoints_that_never_answer_leave_places_for_those_that_do(books):
    async with endpoint(None) as silent, endpoint() as taking:
        await choose(books, "proved", taking.url)
        add(books, "proved", "msg_1")
        await dispatch(books)
        for i in range(UNPROVED_AT_ONCE + 4):
            await choose(books, f"silent{i}", silent.url)
            add(books, f"silent{i}", f"msg_s{i}")
        async with dispatching(books):
            await until(lambda: len(silent.ids) == UNPROVED_AT_ONCE)
            add(books, "proved", "msg_2")
            await until(lambda: taking.ids == ["msg_1", "msg_2"])
            assert len(silent.ids) == UNPROVED_AT_ONCE
            silent.over.set()


async def test_endpoints_that_failed_go_behind_those_that_are_new(books, clock):
    for account, failures in (("aa", 3), ("bb", 0), ("cc", 1)):
        add(books, account, f"msg_{account}")
        for _ in range(failures):
            event = outbox.claim(books.engine, account, "me")
            assert event is not None
            outbox.settle(books.engine, event, "me", "status 500")
            clock.now = max(clock.now, state(books, account).next_ms)
    assert outbox.due(books.engine, proved=False, limit=5) == ["bb", "cc", "aa"]
    assert outbox.due(books.engine, proved=True, limit=5) == []


async def test_an_event_that_is_not_taken_does_not_hold_up_those_that_are(books, clock):
    async with endpoint() as picky:
        picky.refused = {"msg_bad"}
        await choose(books, "acme", picky.url)
        add(books, "acme", "msg_bad")
        for _ in range(12):  # by now it rests for more than half an hour
            await dispatch(books)
            clock.now = state(books, "acme").next_ms
        await dispatch(books)
        add(books, "acme", "msg_good")
        clock.forward(1000 * FRESH_S)
        await dispatch(books)
        assert picky.ids.count("msg_good") == 1
        assert {row.id for row in rows(books) if row.due_ms is not None} == {"msg_bad"}


@pytest.mark.parametrize("url", ["http://a..b/", f"http://{'a' * 64}.org/", "http://[", "no url"])
async def test_a_url_that_an_older_version_took_fails_by_itself(books, url):
    async with endpoint() as taking:
        for account, chosen in (("aa", url), ("acme", taking.url)):
            await choose(books, account)
            with books.engine.begin() as connection:
                connection.execute(
                    sa.update(alerts.alerts).where(alerts.alerts.c.account == account).values(url=chosen)
                )
            add(books, account, f"msg_{account}")
        await dispatch(books)
        assert taking.ids == ["msg_acme"]
    assert {row.id: bool(row.error) for row in rows(books)} == {"msg_aa": True, "msg_acme": False}


async def test_a_secret_that_cannot_be_opened_fails_by_itself(books):
    async with endpoint() as taking:
        await choose(books, "aa", taking.url)
        await choose(books, "acme", taking.url)
        with books.engine.begin() as connection:
            sealed = sa.update(alerts.alerts).where(alerts.alerts.c.account == "aa").values(secret=b"x" * 40)
            connection.execute(sealed)
        add(books, "aa", "msg_aa")
        add(books, "acme", "msg_acme")
        await dispatch(books)
        assert taking.ids == ["msg_acme"]


async def test_so_many_events_of_an_account_wait_and_the_oldest_give_way(books, clock):
    for i in range(WAITING_MAX + 3):
        add(books, "acme", f"msg_{i:03}")
        clock.forward(1)
    assert [row.id for row in rows(books) if row.due_ms is None] == ["msg_000", "msg_001", "msg_002"]
    assert outbox.counts(books.engine) == (WAITING_MAX, {"delivered": 0, "failed": 0, "abandoned": 3})


async def test_what_is_over_is_deleted_after_its_time_in_batches_and_what_waits_is_not(books, clock, monkeypatch):
    monkeypatch.setattr(outbox, "PRUNED_AT_ONCE", 2)
    add(books, "acme", *[f"msg_{i}" for i in range(5)])
    outbox.abandon(books.engine, "acme", "because")
    add(books, "acme", "msg_waits")
    clock.forward(30 * DAY_MS - 1)
    assert outbox.prune(books.engine) == 0
    clock.forward(2)
    assert [outbox.prune(books.engine) for _ in range(4)] == [2, 2, 1, 0]
    assert [row.id for row in rows(books)] == ["msg_waits"]


async def test_a_claim_is_one_s_own_until_it_lapses_or_is_given_back(books, clock):
    await choose(books, "acme")
    add(books, "acme", "msg_1")
    assert outbox.claim(books.engine, "acme", "me") == Event("msg_1", "acme", '{"id": "msg_1"}')
    for _ in range(3):
        assert outbox.claim(books.engine, "acme", "other") is None
        clock.forward(1000 * LEASE_S - 1)
        outbox.renew(books.engine, "me")
    outbox.release(books.engine, "me")
    assert outbox.claim(books.engine, "acme", "other") is not None
    clock.forward(1000 * LEASE_S)
    assert outbox.claim(books.engine, "acme", "third") is not None
    # Who was too late says what came of its call, and leaves the claim to who has it.
    outbox.settle(books.engine, Event("msg_1", "acme", ""), "other", "status 500")
    assert state(books, "acme").claimed_by == "third"


async def test_the_counts_go_on_where_they_were_after_a_restart(books):
    async with endpoint() as taking, endpoint(500) as failing:
        await choose(books, "acme", taking.url)
        await choose(books, "aa", failing.url)
        add(books, "acme", "msg_1", "msg_2")
        add(books, "aa", "msg_3")
        await dispatch(books)
    metrics = Metrics()
    await dispatch(books, metrics)
    found = {result: metrics.webhooks.labels(result)._value.get() for result in ("delivered", "failed", "abandoned")}
    assert found == {"delivered": 2, "failed": 1, "abandoned": 0}
    assert metrics.webhooks_pending._value.get() == 1
