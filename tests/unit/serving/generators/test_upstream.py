"""The upstream generator in its parts: the ceiling of a transcript, the prompt, and the markers of an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retrieval.catalogue import Catalogue
from retrieval.embedding import MiniLMEmbedder
from retrieval.retriever import Retrieval, Retriever
from serving.generators.generator import CHARS_PER_TOKEN_MAX, GeneratorError, Transcript
from serving.generators.grounded_answer import DOCUMENTS_READ, own_text
from serving.generators.query import Message, Query
from serving.generators.upstream import Upstream
from tests.databases import new_sqlite
from tests.unit.retrieval.library import bring, shelf

_QUERY = Query("When was the lighthouse at Cape Hatteras built?", "writer")


@pytest.fixture(scope="module")
def retriever(embedder: MiniLMEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    engine = new_sqlite(tmp_path_factory.mktemp("library") / "catalogue.sqlite3")
    bring(Catalogue(engine), embedder, *shelf())
    yield Retriever(Catalogue(engine), embedder)
    engine.dispose()


@pytest.fixture
def retrieval(retriever: Retriever) -> Retrieval:
    return retriever.retrieve(_QUERY.question, top_k=50, purpose="answer", price=0)


def upstream(**given) -> Upstream:
    options = {"url": "http://127.0.0.1:9/v1", "key": None, "model": "writer", "tokens_max": 100}
    options |= {"context_chars": 12_000, **given}
    return Upstream(httpx.AsyncClient(trust_env=False), **options)


def prompted(generation) -> str:
    """The prompt of a generation that was not asked for a piece."""
    return generation._events.ag_frame.f_locals["body"]["messages"][0]["content"]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=30), st.integers(1, 30))
@example(["0\x1fXL", "0"], 3)
def test_a_transcript_is_a_prefix_within_its_ceiling(embedder: MiniLMEmbedder, pieces: list[str], limit: int):
    transcript = Transcript(embedder.count_tokens, limit)
    kept = []
    for piece in pieces:
        kept.append(transcript.take(piece))
        if transcript.full:
            break
    whole = "".join(pieces)

    assert transcript.text == "".join(kept)
    assert whole.startswith(transcript.text)
    assert embedder.count_tokens(transcript.text) <= limit
    assert len(transcript.text) <= limit * CHARS_PER_TOKEN_MAX
    if not transcript.full:
        assert transcript.text == whole


@given(
    st.lists(st.sampled_from(["word", " ", "light", "house", ".", "\n", "é", "1847 ", "[2]"]), min_size=1, max_size=40)
)
def test_a_transcript_takes_everything_that_fits(embedder: MiniLMEmbedder, pieces: list[str]):
    whole = "".join(pieces)
    limit = max(1, *(embedder.count_tokens("".join(pieces[: i + 1])) for i in range(len(pieces))))
    transcript = Transcript(embedder.count_tokens, limit)
    for piece in pieces:
        assert transcript.take(piece) == piece
    assert transcript.text == whole
    assert not transcript.full


def test_the_prompt_numbers_the_passages_in_the_order_of_the_documents(retrieval: Retrieval):
    prompt = prompted(upstream().begin(_QUERY, retrieval))
    titles = [found.document.title for found in retrieval.documents[:DOCUMENTS_READ]]
    places = [prompt.index(f"] {title}\n") for title in titles]

    assert places == sorted(places)
    assert prompt.count("\n\n[") == sum(len(found.passages) for found in retrieval.documents[:DOCUMENTS_READ])


def test_a_small_context_holds_every_documents_best_passage_before_any_second(retrieval: Retrieval):
    best = [found.passages[0].text for found in retrieval.documents[:DOCUMENTS_READ]]
    prompt = prompted(upstream(context_chars=sum(map(len, best))).begin(_QUERY, retrieval))

    assert all(text in prompt for text in best)
    assert prompt.count("\n\n[") == len(best)


def test_nothing_retrieved_is_said(retrieval: Retrieval):
    prompt = prompted(upstream().begin(_QUERY, Retrieval(retrieval.question, ())))
    assert prompt.endswith("There are no passages.")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("So it is [1].", [1]),
        ("Both [1][2] and [2, 3].", [1, 2, 2, 3]),
        ("Twice [2,2].", [2]),
        ("None [0] [999] [x] [] [-1] [1.5] (1).", []),
        ("Not yet [1", []),
        ("Indian [\u0967].", []),
        ("\U0001f989 owl [1]", [1]),
    ],
)
def test_markers_are_cited_where_they_stand(retrieval: Retrieval, text: str, numbers: list[int]):
    delivered = upstream().begin(_QUERY, retrieval).delivered(text, "stop")
    numbered = [
        (source, passage)
        for source, found in enumerate(retrieval.documents[:DOCUMENTS_READ])
        for passage in found.passages
    ]

    assert len(delivered.citations) == len(numbers)
    for citation, number in zip(delivered.citations, numbers, strict=True):
        source, passage = numbered[number - 1]
        assert (citation.source, citation.quote) == (source, passage.text)
        assert citation.passage == (passage.start, passage.start + len(passage.text))
        start, end = citation.answer_span
        assert str(number) in text[start:end]


def test_a_grounded_answer_is_what_the_model_was_given_and_what_it_said(retrieval: Retrieval):
    given = retrieval.documents[0].passages[0]
    generation = upstream(context_chars=len(given.text)).begin(_QUERY, retrieval)
    grounded = generation.delivered("Built [1] in 1870 [1][99].  See [2024].", "stop").grounded

    assert grounded.answer == "Built in 1870[99].  See [2024].", "only marks of citation are taken out"
    assert [len(each.passages) for each in grounded.retrieval.documents] == [1] + [0] * (len(retrieval.documents) - 1)
    assert own_text(grounded.read[0]) == given.text
    assert own_text(grounded.read[1]) == "", "what the model was not given is worth nothing to its answer"
    assert [each.document.id for each in grounded.retrieval.documents] == [
        each.document.id for each in retrieval.documents
    ]


def test_what_is_read_is_the_conversation_or_the_question():
    talk = Query("Why?", "writer", conversation=(Message("system", "Be brief."), Message("user", "Why?")))
    assert upstream().reads(_QUERY) == _QUERY.question
    assert upstream().reads(talk) == "Be brief.\nWhy?"


@pytest.mark.parametrize(("asked", "most"), [(None, 100), (7, 7), (100_000, 100)])
def test_the_ceiling_is_what_the_customer_asks_for_up_to_the_limit(asked: int | None, most: int):
    assert upstream().tokens_max(Query("Why?", "writer", output_tokens=asked)) == most


def test_a_server_that_is_not_there_is_an_error_that_names_no_address(retrieval: Retrieval):
    async def first() -> str:
        async with httpx.AsyncClient(trust_env=False) as client:
            generator = Upstream(
                client,
                url="http://127.0.0.1:9/v1",
                key=None,
                model="writer",
                tokens_max=10,
                context_chars=1_000,
            )
            return await anext(generator.begin(_QUERY, retrieval).pieces())

    with pytest.raises(GeneratorError) as caught:
        asyncio.run(first())
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"delta": {"content": 5}}]},
        {"choices": [{"delta": "x"}]},
        {"choices": [5]},
        {"choices": {"delta": {}}},
        {"choices": [{"delta": {}, "finish_reason": 5}]},
    ],
)
def test_an_event_of_another_kind_is_an_error(retrieval: Retrieval, chunk: dict):
    async def first() -> str:
        stream = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        transport = httpx.MockTransport(lambda _: httpx.Response(200, content=stream))
        async with httpx.AsyncClient(transport=transport) as client:
            generator = upstream()
            generator._client = client
            return await anext(generator.begin(_QUERY, retrieval).pieces())

    with pytest.raises(GeneratorError, match="not of a chat completion"):
        asyncio.run(first())


def test_half_a_surrogate_pair_is_replaced(retrieval: Retrieval):
    async def first() -> str:
        stream = b'data: {"choices": [{"delta": {"content": "a\\ud83d"}}]}\n\n'
        transport = httpx.MockTransport(lambda _: httpx.Response(200, content=stream))
        async with httpx.AsyncClient(transport=transport) as client:
            generator = upstream()
            generator._client = client
            return await anext(generator.begin(_QUERY, retrieval).pieces())

    assert asyncio.run(first()) == "a\ufffd"
