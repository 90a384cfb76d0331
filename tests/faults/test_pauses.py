"""Redis pauses under every paid route while the clients send again: each call is answered, and charged once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import count

import httpx
import openai
import pytest

from retrieval.embedding import Embedder
from tests.e2e.world import Account, World
from tests.faults.accident import redis_of
from tests.faults.shop import open_shop
from tests.servers import TLS, cli, wait_for
from tests.upstream import MODEL

RETRIES = 20
SETTLED_SECONDS = 10.0
"""How long after Redis is back nothing may be held for a request that has ended."""
NUMBERS = count(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], embedder: Embedder) -> Iterator[World]:
    data_dir = tmp_path_factory.mktemp("pauses") / "data"
    with open_shop(data_dir, environment, embedder) as shop:
        yield shop.world
        wait_for(lambda: b"patronage_queries_running 0.0" in shop.world.client().get("/metrics").content)
        audit = cli(data_dir, "audit", env=environment)
        assert audit["balanced"], audit


def unique() -> str:
    """No two calls ask the same, so that none can be given another's answer."""
    return f"When do spring tides come, number {next(NUMBERS)}?"


def chat(client: openai.OpenAI, model: str = "patronage-extractive") -> str:
    messages = [{"role": "user", "content": unique()}]
    return client.chat.completions.with_raw_response.create(model=model, messages=messages).headers[
        "x-patronage-receipt"
    ]


def upstream(client: openai.OpenAI) -> str:
    return chat(client, MODEL)


def stream(client: openai.OpenAI) -> str:
    chunks = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": unique()}], stream=True)
    return [*chunks][-1].model_extra["receipt"]["id"]


def responses(client: openai.OpenAI) -> str:
    return client.responses.with_raw_response.create(model="patronage-extractive", input=unique()).headers[
        "x-patronage-receipt"
    ]


def embeddings(client: openai.OpenAI) -> str:
    return client.embeddings.with_raw_response.create(model="all-MiniLM-L6-v2", input=unique()).headers[
        "x-patronage-receipt"
    ]


def query(client: openai.OpenAI) -> str:
    """A program of its own, with an Idempotency-Key of its own."""
    body, headers = {"question": unique()}, {"authorization": f"Bearer {client.api_key}"}
    headers["idempotency-key"] = body["question"]
    for _ in range(RETRIES):
        reply = httpx.post(f"{client.base_url}query", json=body, headers=headers, timeout=60, verify=TLS)
        if reply.status_code == 200:
            return reply.json()["receipt"]["id"]
        assert reply.json()["error"]["code"] in ("metering_unavailable", "idempotency_running"), reply.text
        time.sleep(float(reply.headers["retry-after"]))
    raise AssertionError(reply.text)


class Caller(threading.Thread):
    """A customer that asks one route without pause; every call must be answered in the end."""

    def __init__(self, account: Account, url: str, ask: Callable[[openai.OpenAI], str], patience: float) -> None:
        super().__init__(daemon=True)
        self.account, self.ask = account, ask
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=account.key, max_retries=RETRIES, timeout=patience)
        self.over = threading.Event()
        self.receipts: list[str] = []
        self.failed: list[Exception] = []

    def run(self) -> None:
        with self.client:
            while not self.over.is_set():
                try:
                    self.receipts.append(self.ask(self.client))
                except Exception as error:  # noqa: BLE001 # the test looks at it
                    self.failed.append(error)

    def assert_charged_once(self) -> None:
        """It paid for what it was told to have paid, each call once."""
        assert self.failed == []
        assert len(set(self.receipts)) == len(self.receipts), "two calls got one answer"
        rows = self.account.usage(len(self.receipts))
        assert sum(row["queries"] for row in rows) == len(self.receipts), self.ask.__name__
        charged = sum(Decimal(row["charge"]["amount"]) for row in rows)
        assert self.account.money() == (Decimal(5) - charged, 0), self.ask.__name__


CALLERS = [(chat, 60), (chat, 1.2), (upstream, 60), (stream, 60), (responses, 60), (embeddings, 60), (query, 60)]
"""What is asked, and how long the client waits before it sends again."""


@pytest.mark.parametrize("seconds", [1, 4, 10])
def test_every_call_is_answered_and_charged_once_whatever_redis_pauses_for(world: World, seconds: float):
    with ThreadPoolExecutor(len(CALLERS)) as threads:
        accounts = [*threads.map(lambda _: world.customer("5.00"), CALLERS)]
    callers = [
        Caller(account, world.server.url, ask, patience)
        for account, (ask, patience) in zip(accounts, CALLERS, strict=True)
    ]
    for each in callers:
        each.start()
    wait_for(lambda: all(each.receipts for each in callers))
    redis = redis_of(world.data_dir)
    redis.suspend()
    time.sleep(seconds)
    redis.resume()
    back = time.monotonic()
    before = [len(each.receipts) for each in callers]
    wait_for(lambda: all(len(each.receipts) > n + 1 for each, n in zip(callers, before, strict=True)))
    for each in callers:
        each.over.set()
    for each in callers:
        each.join(60)
        assert not each.is_alive(), each.ask.__name__
    ended = time.monotonic()
    wait_for(lambda: all(each.account.money()[1] == 0 for each in callers))
    assert time.monotonic() - max(back, ended) < SETTLED_SECONDS
    for each in callers:
        each.assert_charged_once()
