"""An Idempotency-Key that was charged is never charged again: the ledger remembers it when the meter has forgotten."""

from __future__ import annotations

import pytest

from metering.redis import keys
from metering.redis.connection import connect
from metering.redis.server import RedisServer
from serving.answering.paid_calls import AlreadyCharged
from serving.assembly import open_books, open_service
from serving.generators.query import Idempotency, Query
from serving.rules.rulebook import EXTRACTIVE
from serving.settings import Settings
from tests.contracts.test_format_1 import EXPECTED, unpacked

pytestmark = pytest.mark.anyio


@pytest.fixture
async def service(tmp_path, model_cache):
    """A service over the documents of the fixture, which an older version took in."""
    with open_books(Settings(data_dir=unpacked(tmp_path), model_cache=model_cache)) as books:
        async with open_service(books) as found:
            yield found


async def forget(books, account, key):
    client = connect(RedisServer(books.directory.redis, fsync="always").url)
    assert await client.delete(keys.idempotency(keys.shard_of(account, books.deployment.shards), account, key)) == 1
    await client.aclose()


async def test_a_key_that_the_meter_forgot_is_refused_and_charged_nothing(service):
    caller = service.books.identities.find(EXPECTED["keys"]["acme"])
    question = "When was the Vellmar lighthouse built?"
    query = Query(question, EXTRACTIVE, idempotency=Idempotency("order-7", "body"))
    first = await service.answering.answer(caller, query)
    await service.metering.drain.flush()
    await forget(service.books, caller.id, "order-7")
    before = await service.metering.meter.balance(caller.id)

    with pytest.raises(AlreadyCharged) as refused:
        await service.answering.answer(caller, query)
    assert refused.value.receipt == first.id
    assert await service.metering.meter.balance(caller.id) == before, "and the hold was released"

    other = await service.answering.answer(caller, Query(question, EXTRACTIVE, idempotency=Idempotency("order-8", "b")))
    assert other.id != first.id
