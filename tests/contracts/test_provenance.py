"""What a record says of how its answer came about is true, and stays between the operator and the payer."""

from __future__ import annotations

import platform

import pytest

from metering.records import FORMAT
from serving import __version__
from serving.assembly import open_books, open_service
from serving.closing import lookup
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


async def recorded(service, receipt):
    await service.metering.drain.flush()
    record = lookup.find(service.books, receipt).record
    assert record.format == FORMAT
    return record.provenance


async def test_an_answer_says_what_it_was_made_with(service):
    caller = service.books.identities.find(EXPECTED["keys"]["acme"])
    asked = [
        await service.answering.answer(caller, Query(question, EXTRACTIVE))
        for question in ("When was the Vellmar lighthouse built?", "Which quantum algorithm factors integers?")
    ]
    answered, refused = [await recorded(service, each.id) for each in asked]

    assert (answered.answered, refused.answered) == (True, False)
    assert answered.epoch == refused.epoch == service.books.catalogue.epoch() > 0
    assert answered.engine == __version__
    assert answered.embedder == answered.counted_by == service.embedder.name
    assert answered.tokenizer == service.embedder.tokenizer
    assert (answered.snapshot, answered.tags) == ("", ())
    assert answered.machine == service.books.encryption.pseudonym(platform.node())
    assert platform.node() not in answered.machine


async def test_the_epoch_is_that_of_the_retrieval(service):
    caller = service.books.identities.find(EXPECTED["keys"]["acme"])
    epochs = []
    for document in ("ada/light", "ben/tarn"):
        found = await service.answering.answer(caller, Query("When was the lighthouse built?", EXTRACTIVE))
        epochs.append((await recorded(service, found.id)).epoch)
        service.books.catalogue.withdraw([document])

    assert epochs[0] < epochs[1] < service.books.catalogue.epoch()


async def test_embeddings_retrieve_nothing(service):
    caller = service.books.identities.find(EXPECTED["keys"]["acme"])
    model = service.books.settings.embedding_model
    found = await service.embeddings.embed(caller, model, ["a lighthouse"], max_price=None, idempotency=Idempotency())
    said = await recorded(service, found.paid.receipt)

    assert (said.answered, said.epoch) == (True, 0)
    assert said.counted_by == service.embedder.name
