"""A shop that sells an upstream model: what the tests of capture talk to, and what they expect to be charged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from metering.money import Currency
from metering.pricing import Usage
from retrieval.embedding import Embedder
from tests.e2e.world import Account, World, open_world
from tests.servers import wait_for
from tests.upstream import MODEL, PRICE, UpstreamServer, set_price

QUESTION = "When was the Vellmar lighthouse built?"
STREAM = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "stream": True}
PLAIN = {**STREAM, "stream": False}
PATH = "/v1/chat/completions"
DOCUMENTS = 5


@dataclass
class Shop:
    """A server, its upstream, and the tokenizer that bills."""

    world: World
    upstream: UpstreamServer
    embedder: Embedder

    def price(self, text: str) -> Decimal:
        """What a customer owes for an answer to :data:`QUESTION` of which ``text`` was delivered."""
        if not text:
            return Decimal(0)
        count = self.embedder.count_tokens
        return Decimal(Currency.of("USD").format(PRICE.charge(Usage(count(QUESTION), count(text), DOCUMENTS))))


@contextmanager
def open_shop(data_dir: Path, env: dict[str, str], embedder: Embedder) -> Iterator[Shop]:
    """A running shop; the server is started with ``env``."""
    with UpstreamServer() as upstream, open_world(data_dir, {**env, **upstream.env}) as world:
        set_price(data_dir)
        account = world.customer()
        wait_for(lambda: MODEL in [each["id"] for each in account.client.get("/v1/models").json()["data"]])
        yield Shop(world, upstream, embedder)


def events(data: bytes | str) -> list[dict[str, Any]]:
    """The JSON events of a stream, without its end mark; a last one that was cut off is left out."""
    text = data.decode() if isinstance(data, bytes) else data
    lines = [line[6:] for block in text.split("\n\n")[:-1] for line in block.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(found: list[dict[str, Any]]) -> str:
    """The text that the chunks of a chat completion carry."""
    return "".join(c["delta"].get("content") or "" for each in found for c in each.get("choices", ()))


def spent_by(account: Account) -> Decimal:
    """What was spent of 1.00 USD, once nothing is held any more."""
    wait_for(lambda: account.money()[1] == 0)
    return Decimal(1) - account.balance
