"""kill -9 of every process in the middle of the work: nothing acknowledged is lost, nothing is charged twice."""

from __future__ import annotations

import json
import signal
from decimal import Decimal
from itertools import product

import pytest

from retrieval.ingest import BATCH_DOCUMENTS
from tests.faults.accident import Accident, killed, redis_of
from tests.faults.conftest import QUESTIONS
from tests.faults.customers import answered, asking, assert_books_hold, finish
from tests.servers import cli, run, this_period, wait_for


def test_the_server_killed_under_load_loses_and_doubles_nothing(server, data_dir, environment, key):
    customers = asking(server, key)
    for _ in range(3):
        before = answered(customers)
        wait_for(lambda before=before: answered(customers) > before + 30)
        server.kill()
        server.start()
    acknowledged = finish(customers)
    with server.client(key) as client:
        assert Decimal(client.get("/v1/account").json()["held"]["amount"]) == 0, "the dead held it"
    assert_books_hold(data_dir, environment, server, key, acknowledged)


def test_redis_killed_under_load_is_back_by_itself_and_nothing_acknowledged_is_lost(server, data_dir, environment, key):
    customers = asking(server, key)
    for _ in range(2):
        before = answered(customers)
        wait_for(lambda before=before: answered(customers) > before + 30)
        killed = redis_of(data_dir)
        killed.send_signal(signal.SIGKILL)
        wait_for(lambda killed=killed: redis_of(data_dir).pid != killed.pid)
        after = answered(customers)
        wait_for(lambda after=after: answered(customers) > after + 10)
    acknowledged = finish(customers)
    assert {200, 503} >= set().union(*[each.statuses for each in customers])
    assert_books_hold(data_dir, environment, server, key, acknowledged)


def test_without_redis_nothing_is_served_and_it_says_so(server, data_dir, key):
    redis = redis_of(data_dir)
    redis.suspend()
    try:
        with server.client(key) as client:
            reply = client.post("/v1/query", json={"question": QUESTIONS[0]})
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "metering_unavailable"
            assert int(reply.headers["retry-after"]) >= 1
            assert client.get("/health/live").status_code == 200
            assert client.get("/health/ready").status_code == 503
    finally:
        redis.resume()
    with server.client(key) as client:
        assert client.post("/v1/query", json={"question": QUESTIONS[0]}).status_code == 200


def test_a_flushed_redis_is_refused(data_dir, environment, key, server):
    import redis  # noqa: PLC0415 # beside its only use

    with redis.Redis(unix_socket_path=str(data_dir / "redis" / "redis.sock")) as client:
        client.flushall()
    with server.client(key) as client:
        reply = client.post("/v1/query", json={"question": QUESTIONS[0]})
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "metering_unavailable"
    server.stop()
    done = run(data_dir, "query", QUESTIONS[0], "--key", key, env=environment)
    assert done.returncode == 1
    assert "lost this deployment's accounts" in done.stderr


@pytest.mark.parametrize(
    ("target", "when"),
    [
        ("metering.durable:Path.replace", "before"),
        ("metering.durable:Path.replace", "after"),
        ("serving.rules.rulebook:Rulebook.begin", "before"),
        ("serving.rules.rulebook:Rulebook.begin", "after"),
        ("serving.store.deployment:begin", "after"),
        ("serving.store.data_dir:DataDir.signer", "before"),
        ("serving.store.data_dir:DataDir.encryption_key", "before"),
        ("metering.redis.meter:RedisMeter.claim", "before"),
        ("metering.redis.meter:RedisMeter.claim", "after"),
    ],
)
def test_a_first_command_that_is_killed_leaves_a_directory_that_the_next_can_use(tmp_path, environment, target, when):
    data_dir = tmp_path / "data"
    first = ["customer", "add", "Acme", "--id", "acme", "--credit", "1"]
    killed(data_dir, environment, Accident(target, when, "kill"), *first)
    if run(data_dir, *first, env=environment).returncode:  # the first had added it
        assert cli(data_dir, "customer", "show", "acme", env=environment)["id"] == "acme"
    assert cli(data_dir, "audit", env=environment)["balanced"]


@pytest.mark.parametrize(("when", "nth"), [("before", 1), ("after", 1), ("before", 3)])
def test_an_ingest_that_is_killed_is_finished_by_the_next(tmp_path, environment, when, nth):
    """It stores them in short transactions, in their order."""
    corpus, many = tmp_path / "many.jsonl", 3 * BATCH_DOCUMENTS
    with corpus.open("w") as file:
        for i in range(many):
            text = f"Place{i} was founded in {1000 + i} by Founder{i}."
            file.write(json.dumps({"id": f"d{i}", "title": f"Place{i}", "text": text, "contributor": "c"}) + "\n")
    data_dir = tmp_path / "data"
    ingest = ["ingest", str(corpus), "--create-contributors"]
    killed(data_dir, environment, Accident("retrieval.catalogue:Catalogue.put", when, "kill", nth=nth), *ingest)
    stored = [each["id"] for each in cli(data_dir, "documents", "list", env=environment)["documents"]]
    assert sorted(stored) == sorted(f"d{i}" for i in range(len(stored)))
    transactions = nth - (when == "before")
    assert transactions <= len(stored) <= BATCH_DOCUMENTS * transactions
    again = cli(data_dir, *ingest, env=environment)
    assert again["unchanged"] == len(stored)
    assert again["documents"] + again["unchanged"] == many
    assert again["rejected"] == []
    third = cli(data_dir, "ingest", str(corpus), env=environment)
    assert (third["documents"], third["unchanged"]) == (0, many)
    assert cli(data_dir, "audit", env=environment)["balanced"]


def test_a_close_that_is_killed_is_finished_by_the_next(server, data_dir, environment, key):
    with server.client(key) as client:
        for i in range(40):
            assert client.post("/v1/query", json={"question": QUESTIONS[i % 4]}).status_code == 200
    server.stop()
    close = ["period", "close", this_period(), "--early"]
    for target, when in product(("_compute_run", "_write"), ("before", "after")):
        killed(data_dir, environment, Accident(f"serving.closing.closing:{target}", when, "kill"), *close)
    assert cli(data_dir, *close, env=environment)["records"] == 40
    assert cli(data_dir, "audit", env=environment)["balanced"]
