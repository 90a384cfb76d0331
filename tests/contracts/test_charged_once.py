"""An Idempotency-Key that was charged is never charged again, and nothing is computed for it again.

The ledger remembers it when the meter has forgotten.
"""

from __future__ import annotations

import msgspec
import pytest

from metering.pricing import Usage
from metering.redis import keys
from metering.redis.connection import connect
from metering.redis.server import RedisServer
from serving.answering.embeddings import NO_GAME
from serving.answering.paid_calls import AlreadyCharged, ReplayNotKept
from serving.assembly import open_books, open_service, provenance_of
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


def no_more_work(service, monkeypatch):
    """From here on nothing can be read, embedded or retrieved."""

    def refuse(*_):
        raise AssertionError("a replay was computed")

    for name in ("count_tokens", "embed_query"):
        monkeypatch.setattr(type(service.embedder), name, refuse)
    monkeypatch.setattr(type(service.retriever), "retrieve", refuse)


@pytest.mark.parametrize("retries", [None, 1], ids=["key", "library"])
async def test_a_replay_computes_nothing(service, monkeypatch, retries):
    caller = service.books.identities.find(EXPECTED["keys"]["acme"])
    query = Query("When was the Vellmar lighthouse built?", EXTRACTIVE, idempotency=Idempotency("a", "a", retries))
    few, many = Idempotency("few", "few", retries), Idempotency("many", "many", retries)

    async def embed(idempotency, texts):
        model = service.embeddings.model
        return await service.embeddings.embed(caller, model, texts, max_price=None, idempotency=idempotency)

    answer, vectors = await service.answering.answer(caller, query), await embed(few, ["spring", "neap"])
    large = await embed(many, ["tide"] * 43)
    left = await service.metering.meter.balance(caller.id)
    no_more_work(service, monkeypatch)

    assert await service.answering.answer(caller, query) == msgspec.structs.replace(answer, replayed=True)
    again = await embed(few, ["spring", "neap"])
    assert (again.paid.receipt, again.paid.charge) == (vectors.paid.receipt, vectors.paid.charge)
    assert [each.tolist() for each in again.vectors] == [each.tolist() for each in vectors.vectors]
    with pytest.raises(ReplayNotKept) as refused:
        await embed(many, ["tide"] * 43)
    assert refused.value.receipt == large.paid.receipt
    assert await service.metering.meter.balance(caller.id) == left


async def test_vectors_that_an_older_version_did_not_keep_are_not_computed_again(service):
    """A replay of embeddings kept what was paid, and computed the vectors again."""
    caller = service.books.identities.find(EXPECTED["keys"]["acme"])
    idempotency = Idempotency("old", "old")
    call = await service.paid_calls.open(
        caller, model=service.embeddings.model, purpose="embedding", most=Usage(5, 0, 0), idempotency=idempotency
    )
    record = call.record(
        Usage(5, 0, 0),
        value_function=NO_GAME,
        values=(0,),
        uses=(),
        provenance=provenance_of(service.books, service.embedder),
    )
    kept = msgspec.msgpack.encode({"receipt": record.id, "charge": record.charge, "tokens": 5, "free": 0})
    await service.paid_calls.charge(call, record, kept)
    with pytest.raises(ReplayNotKept):
        await service.embeddings.embed(
            caller, service.embeddings.model, ["a tide"], max_price=None, idempotency=idempotency
        )
