"""Group commit: where many paid calls run, they are sent to Redis together; each is admitted and charged by itself."""

from __future__ import annotations

import asyncio

import pytest
from redis import Redis

from metering.redis.server import RedisServer
from serving.answering.paid_calls import GROUP_COMMIT_FROM
from serving.assembly import open_books, open_service
from serving.generators.query import Query
from serving.rules.rulebook import EXTRACTIVE
from serving.settings import Settings
from tests.faults.conftest import QUESTIONS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"]),
]
MANY = 4 * GROUP_COMMIT_FROM


@pytest.fixture
async def service(data_dir, model_cache):
    with open_books(Settings(data_dir=data_dir, model_cache=model_cache)) as books:
        async with open_service(books) as found:
            yield found


@pytest.fixture
def ask(service, key):
    caller = service.books.identities.find(key)

    def asked(number):
        return service.answering.answer(caller, Query(QUESTIONS[number % len(QUESTIONS)], EXTRACTIVE))

    asked.account = caller.id
    return asked


async def test_many_are_sent_in_groups(service, ask, data_dir, monkeypatch):
    monkeypatch.setattr("serving.answering.paid_calls.GROUP_COMMIT_S", 3)
    meter = service.metering.meter
    await ask(0)  # Redis has the scripts
    before = await meter.balance(ask.account)
    with Redis(unix_socket_path=str(RedisServer(data_dir / "redis", fsync="always").socket)) as redis:

        def reads():
            return redis.info("stats")["total_reads_processed"]

        begun = reads()
        tasks = [asyncio.create_task(ask(number)) for number in range(MANY)]
        await asyncio.sleep(0)
        tasks[-1].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        # Two scripts each. Those that are left when few run go alone.
        assert reads() - begun < MANY / 2

    answers = found[:-1]
    assert isinstance(found[-1], asyncio.CancelledError)
    assert len({each.id for each in answers}) == MANY - 1
    after = await meter.balance(ask.account)
    assert after.spent - before.spent == sum(each.charge for each in answers)
    assert after.held == 0


async def test_who_is_alone_waits_for_nobody(ask, monkeypatch):
    monkeypatch.setattr("serving.answering.paid_calls.GROUP_COMMIT_S", 3_600)
    found = await asyncio.gather(*(ask(number) for number in range(GROUP_COMMIT_FROM - 1)))
    assert len({each.id for each in found}) == GROUP_COMMIT_FROM - 1
