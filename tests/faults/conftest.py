"""A small real corpus and paid questions, for faults injected into real processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.embedding import Embedder
from tests.e2e.world import Account
from tests.faults.shop import Shop, open_shop
from tests.servers import Server, cli, wait_for
from tests.upstream import UpstreamServer

TOPICS = {
    "otters": "The sea otter keeps a favourite stone in a pocket of skin under its arm. Otters sleep on their backs.",
    "bridges": "The Forth Bridge opened in 1890. It is a cantilever railway bridge across the Firth of Forth.",
    "tea": "Tea was first drunk in China. The leaves of black tea are fully oxidised before they are dried.",
    "glaciers": "The Aletsch Glacier is the largest in the Alps. Glaciers carve valleys in the shape of the letter U.",
}
QUESTIONS = (
    "Where does a sea otter keep its stone?",
    "When did the Forth Bridge open?",
    "What happens to the leaves of black tea?",
    "Which glacier is the largest in the Alps?",
)


@pytest.fixture(scope="session")
def environment(model_cache: Path) -> dict[str, str]:
    return {"PATRONAGE_MODEL_CACHE": str(model_cache)}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A data directory with documents and one customer with money, to be copied; the key is beside it."""
    scratch = tmp_path_factory.mktemp("prepared")
    folder, corpus = scratch / "data", scratch / "corpus.jsonl"
    corpus.write_text(
        "".join(
            json.dumps({"id": name, "title": name, "text": text, "contributor": f"c-{name}"}) + "\n"
            for name, text in TOPICS.items()
        )
    )
    cli(folder, "ingest", str(corpus), "--create-contributors", env=environment)
    customer = cli(folder, "customer", "add", "Acme", "--id", "acme", "--credit", "10", env=environment)
    (scratch / "key.json").write_text(json.dumps(customer))
    return folder


@pytest.fixture
def data_dir(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "data")


@pytest.fixture(scope="session")
def key(prepared: Path) -> str:
    return json.loads((prepared.parent / "key.json").read_text())["api_key"]


@pytest.fixture
def server(data_dir: Path, environment: dict[str, str]):
    with Server(data_dir, environment) as found:
        yield found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], embedder: Embedder) -> Iterator[Shop]:
    """A shop that the tests of a module share. It gives a model five seconds for an answer."""
    env = {**environment, "PATRONAGE_ANSWER_SECONDS": "5"}
    data_dir = tmp_path_factory.mktemp("shop") / "data"
    with open_shop(data_dir, env, embedder) as found:
        yield found
        # Whatever the tests did, the books hold.
        wait_for(lambda: b"patronage_queries_running 0.0" in found.world.client().get("/metrics").content)
        audit = cli(data_dir, "audit", env=env)
        assert audit["balanced"], audit


@pytest.fixture
def upstream(shop: Shop) -> UpstreamServer:
    """The model of the shop, with nothing asked so far."""
    shop.upstream.reset()
    return shop.upstream


@pytest.fixture
def account(upstream: UpstreamServer, shop: Shop) -> Account:
    """A new customer with 1.00 USD."""
    assert not upstream.requests, "it begins anew"
    return shop.world.customer()
