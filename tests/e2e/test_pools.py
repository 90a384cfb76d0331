"""One caller with much work and another with little: the little one is served meanwhile."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.e2e.world import World, open_world
from tests.servers import wait_for

LONG = "The keeper of the lighthouse on Osk Island writes down the weather every morning. " * 24
"""Below what the model reads at once."""
PLACES = 8
"""Queries in progress at once."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[World]:
    """A server of its own: its load is looked at."""
    env = {**e2e_env, "PATRONAGE_CONCURRENT_QUERIES": str(PLACES)}
    with open_world(tmp_path_factory.mktemp("pools") / "data", env) as found:
        yield found


def seconds_of_processor(world: World) -> float:
    assert world.server.process is not None
    times = psutil.Process(world.server.process.pid).cpu_times()
    return times.user + times.system


def is_idle(world: World) -> bool:
    before = seconds_of_processor(world)
    time.sleep(1)
    return seconds_of_processor(world) - before < 0.3


def leave(world: World, account, texts: list[str], after_s: float) -> None:
    """Ask for vectors and hang up."""
    body = {"model": "all-MiniLM-L6-v2", "input": texts}
    headers = {"authorization": f"Bearer {account.key}"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{world.server.url}/v1/embeddings", json=body, headers=headers, timeout=after_s)


def test_a_query_is_answered_beside_a_long_list_to_embed_whose_client_leaves_and_pays_nothing(shared: World):
    busy, other = shared.customer("5.00"), shared.customer()
    other.ask("When do spring tides come?")
    leaving = threading.Thread(target=leave, args=(shared, busy, [LONG] * 700, 8))
    leaving.start()
    time.sleep(1)
    began = time.monotonic()
    for number in range(5):
        other.ask(f"When do spring tides come, {number}?")
    assert leaving.is_alive(), f"queries waited for the list: {time.monotonic() - began:.1f} s"
    leaving.join()
    wait_for(lambda: is_idle(shared))
    wait_for(lambda: busy.money() == (5, 0))


def test_who_waits_for_one_answer_in_all_places_leaves_some_to_others(shared: World):
    busy, other = shared.customer("5.00"), shared.customer()

    def embed(retries: int) -> int:
        body = {"model": "all-MiniLM-L6-v2", "input": [LONG] * 120}
        headers = {"authorization": f"Bearer {busy.key}", "x-stainless-retry-count": str(retries)}
        return httpx.post(f"{shared.server.url}/v1/embeddings", json=body, headers=headers, timeout=600).status_code

    def in_progress() -> int:
        found = re.search(r"^patronage_queries_running ([0-9]+)", shared.client().get("/metrics").text, re.MULTILINE)
        assert found is not None
        return int(found[1])

    with ThreadPoolExecutor(1 + PLACES) as threads:
        first = threads.submit(embed, 0)
        wait_for(lambda: busy.money()[1] > 0)
        retries = [threads.submit(embed, 1) for _ in range(PLACES)]
        wait_for(lambda: in_progress() + sum(each.done() for each in retries) == 1 + PLACES)
        other.ask("When do spring tides come?")
        assert not first.done(), "there was nothing to wait for"
        assert {each.result() for each in retries if each.done()} == {503}
        assert first.result() == 200
    # Those who waited are given the response, or are told of its receipt where it is too large to keep.
    assert {each.result() for each in retries} in ({200, 503}, {422, 503})


@pytest.mark.parametrize("texts", [["a" * 750_001] * 2, ["a", "a" * 50_001], ["tide " * 20_000]])
def test_more_text_than_one_call_or_text_may_have_is_413_and_not_read(shared: World, texts: list[str]):
    account = shared.customer()
    reply = account.client.post("/v1/embeddings", json={"model": "all-MiniLM-L6-v2", "input": texts})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "input_too_long")
    assert account.money() == (1, 0)


def test_queries_and_others_uploads_go_on_beside_uploads_and_one_contributor_has_a_bound(shared: World):
    customer, busy = shared.customer(), shared.contributor("cleo")
    text = "\n\n".join(f"{LONG[:900]} Day {number}." for number in range(8))

    def upload(number: int) -> int:
        document = {"id": f"cleo/log-{number}", "text": f"{number} {text}"}
        # The last of them waits for all: minutes, where the processor is slow and busy.
        return busy.post("/v1/documents", json=document, timeout=600).status_code

    with ThreadPoolExecutor(24) as threads:
        uploads = [threads.submit(upload, number) for number in range(24)]
        time.sleep(0.5)
        customer.ask("When do spring tides come?")
        assert shared.add_document("bo", id="bo/short", text="A short note on bees.")["state"] == "active"
        assert customer.client.get("/v1/account").status_code == 200
        assert not all(each.done() for each in uploads), "the others waited for them"
        found = [each.result() for each in uploads]
    assert set(found) == {201, 503}
    assert found.count(201) >= 16
