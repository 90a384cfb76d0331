"""The policy's value functions on real processes: who earns by each, and what becomes of the money if one fails."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from retrieval.embedding import Embedder
from serving.valuing.functions import REST_SECONDS
from tests.e2e.commands import refused
from tests.e2e.world import Account, World
from tests.faults.shop import PATH, PLAIN, QUESTION, STREAM, Shop, events, open_shop, spent_by, text_of
from tests.scorer import Scorer
from tests.servers import Server, cli, process, run, this_period, wait_for
from tests.upstream import MODEL, PIECES

SAID = "mary/light"
"""The document that says what the answer says."""


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    with Scorer(tmp_path_factory.mktemp("scorer") / "model") as found:
        yield found


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], embedder: Embedder, scorer: Scorer
) -> Iterator[Shop]:
    """A shop that knows a model which scores; five seconds are enough for an answer, and as many for its value."""
    env = {**environment, **scorer.env, "PATRONAGE_ANSWER_SECONDS": "5", "PATRONAGE_VALUE_SECONDS": "5"}
    with open_shop(tmp_path_factory.mktemp("values") / "data", env, embedder) as found:
        yield found


@pytest.fixture(autouse=True)
def begun_anew(shop: Shop, scorer: Scorer) -> None:
    shop.upstream.reset()
    scorer.fails = False
    scorer.go.set()


def adopt(world: World, **changes: Any) -> None:
    """Put a policy in force, and wait until it is."""
    adopted = world.operator().post("/v1/admin/policy", json={"data_share_ppm": 500_000, **changes})
    assert adopted.status_code == 201, adopted.text
    wait_for(lambda: world.operator().get("/v1/admin/policy").json() == adopted.json())


def shares(reply: dict[str, Any]) -> dict[str, float]:
    return {source["document_id"]: source["share"] for source in reply["sources"]}


def recorded(shop: Shop, account: Account, receipt: str) -> dict[str, Any]:
    """The derivation of a record, once it is in the log."""
    account.usage()
    return cli(shop.world.data_dir, "period", "explain", receipt, env=shop.world.env)


def unvalued(shop: Shop) -> float:
    lines = shop.world.client().get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("patronage_unvalued_answers ")).split()[1])


@pytest.mark.parametrize(
    ("policy", "model", "function"),
    [
        ({"generated_value_function": "support/1"}, MODEL, "support/1"),
        ({"value_function": "support/1"}, "patronage-extractive", "support/1"),
        ({"value_function": "counterfactual/1"}, "patronage-extractive", "counterfactual/1"),
        ({"generated_value_function": "log_likelihood/1"}, MODEL, "log_likelihood/1"),
        ({"value_function": "log_likelihood/1"}, "patronage-extractive", "log_likelihood/1"),
    ],
)
def test_the_document_that_says_it_earns_by_the_function_of_the_policy(shop: Shop, policy, model, function):
    adopt(shop.world, **policy)
    account = shop.world.customer()
    reply = account.ask(QUESTION, model=model)
    explained = recorded(shop, account, reply["receipt"]["id"])

    assert "1847" in reply["answer"]
    found = shares(reply)
    assert max(found, key=lambda name: found[name]) == SAID, found
    assert found[SAID] > 0.3
    assert sum(found.values()) + reply["model_residual"] == pytest.approx(1)
    assert explained["value"]["function"] == function
    assert reply["model_residual"] == pytest.approx(1 - (explained["value"]["all"] - explained["value"]["none"]))
    earned = {each["document"]: each["units"] for each in explained["credits"] if each["units"]}
    assert max(earned, key=lambda name: earned[name]) == SAID


def test_an_answer_that_no_document_supports_leaves_everything_to_the_model(shop: Shop):
    adopt(shop.world, generated_value_function="support/1")
    reply = shop.world.customer().ask("zzzz qqqq", model=MODEL)
    assert reply["model_residual"] > 0.9, shares(reply)


class TestFailingScorers:
    """By ``log_likelihood/1``, with a model that cannot be asked."""

    @pytest.fixture(autouse=True)
    def likely(self, shop: Shop) -> Iterator[None]:
        adopt(shop.world, value_function="counterfactual/1", generated_value_function="log_likelihood/1")
        # Whatever the test before it broke has had its rest.
        wait_for(lambda: shop.world.customer().client.post(PATH, json=PLAIN).status_code == 200, REST_SECONDS + 20)
        yield
        adopt(shop.world, generated_value_function="support/1")

    @pytest.mark.parametrize("how", ["fails", "hangs"])
    def test_a_stream_that_was_sent_is_charged_and_no_document_earns(self, shop: Shop, scorer: Scorer, how: str):
        account, before = shop.world.customer(), unvalued(shop)
        scorer.fails = how == "fails"
        if how == "hangs":
            scorer.go.clear()
        found = events(account.client.post(PATH, json=STREAM).content)

        assert text_of(found) == "".join(PIECES)
        receipt = found[-1]["receipt"]
        assert spent_by(account) == Decimal(receipt["charge"]["amount"]) == shop.price("".join(PIECES))
        wait_for(lambda: unvalued(shop) == before + 1)
        explained = recorded(shop, account, receipt["id"])
        assert explained["value"]["function"] == "unvalued"
        assert explained["credits"] == []
        assert explained["residual"] == explained["charge"]["royalty"]
        assert "log_likelihood/1, could not be computed" in explained["steps"][2]["text"]

    def test_a_plain_answer_is_not_given_and_costs_nothing(self, shop: Shop, scorer: Scorer):
        account = shop.world.customer()
        scorer.fails = True
        reply = account.client.post(PATH, json=PLAIN)

        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_valued")
        assert "127.0.0.1" not in reply.text
        assert spent_by(account) == 0
        assert account.client.get("/v1/usage").json()["data"] == []

    def test_after_a_failure_no_stream_is_begun_until_the_model_had_its_rest(self, shop: Shop, scorer: Scorer):
        account = shop.world.customer()
        scorer.fails = True
        assert account.client.post(PATH, json=STREAM).status_code == 200
        spent, asked = spent_by(account), len(shop.upstream.requests)
        refused_ = account.client.post(PATH, json=STREAM)
        assert (refused_.status_code, refused_.json()["error"]["code"]) == (503, "not_valued")
        assert (spent_by(account), len(shop.upstream.requests)) == (spent, asked)
        assert account.ask(QUESTION)["model_residual"] < 1, "what another function values is served"
        scorer.fails = False
        wait_for(lambda: account.client.post(PATH, json=STREAM).status_code == 200, REST_SECONDS + 20)


def test_a_period_of_every_function_and_of_none_closes_and_everything_holds(shop: Shop, scorer: Scorer, tmp_path: Path):
    world, account, period = shop.world, shop.world.customer(), this_period()
    for function in ("counterfactual/1", "support/1", "log_likelihood/1"):
        adopt(world, value_function=function)
        wait_for(lambda: account.client.post("/v1/query", json={"question": QUESTION}).status_code == 200)
    adopt(world, generated_value_function="log_likelihood/1")
    scorer.fails = True
    assert account.client.post(PATH, json=STREAM).status_code == 200
    adopt(world, value_function="counterfactual/1", generated_value_function="support/1")
    account.usage(4)
    closed = cli(world.data_dir, "period", "close", period, "--early", env=world.env)

    assert set(closed["value_functions"]) == {"counterfactual/1", "support/1", "log_likelihood/1", "unvalued"}
    assert sum(closed["value_functions"].values()) == closed["records"]
    audit = cli(world.data_dir, "audit", env=world.env)
    assert audit["balanced"], audit
    file = tmp_path / "mary.json"
    cli(world.data_dir, "statement", "--contributor", "mary", "--period", period, "-o", str(file), env=world.env)
    assert cli(world.data_dir, "verify", str(file), env=world.env)["valid"]
    assert json.loads(file.read_text())["run"]["value_functions"] == closed["value_functions"]


def test_a_record_that_another_function_valued_is_found_by_the_audit(data_dir: Path, key: str, environment):
    """What a policy pays by cannot be swapped under a record without its showing."""
    with Server(data_dir, environment) as server, server.client(key) as client:
        assert client.post("/v1/query", json={"question": "When did the Forth Bridge open?"}).status_code == 200
        wait_for(lambda: client.get("/v1/usage").json()["data"])
    with sqlite3.connect(data_dir / "patronage.sqlite3") as database:
        for (guard,) in database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'policies'"
        ):
            database.execute(f"DROP TRIGGER {guard}")
        (body,) = database.execute("SELECT body FROM policies").fetchone()
        database.execute("UPDATE policies SET body = ?", (body.replace("counterfactual/1", "support/1"),))
    database.close()
    found = cli(data_dir, "audit", env=environment, status=1)
    assert [each["name"] for each in found["checks"] if not each["ok"]] == [
        "every charge follows its price book and policy"
    ]


class TestPoliciesThatCannotBeComputed:
    """A deployment whose settings name no model."""

    @pytest.fixture
    def plain(self, data_dir: Path, environment: dict[str, str]) -> tuple[Path, dict[str, str]]:
        return data_dir, environment

    @pytest.mark.parametrize("option", ["--value-function", "--generated-value-function"])
    def test_the_command_line_does_not_adopt_them(self, plain, option: str):
        data_dir, env = plain
        before = cli(data_dir, "policy", "show", env=env)
        said = refused(run(data_dir, "policy", "set", option, "log_likelihood/1", env=env))
        assert "PATRONAGE_LIKELIHOOD_MODEL" in said
        assert cli(data_dir, "policy", "show", env=env) == before

    def test_the_interface_does_not_adopt_them(self, plain):
        data_dir, env = plain
        key = cli(data_dir, "operator", "add", "Op", env=env)["api_key"]
        with Server(data_dir, env) as server, server.client(key) as client:
            before = client.get("/v1/admin/policy").json()
            for field in ("value_function", "generated_value_function"):
                body = {"data_share_ppm": 1, field: "log_likelihood/1"}
                reply = client.post("/v1/admin/policy", json=body)
                assert (reply.status_code, reply.json()["error"]["code"]) == (409, "not_computable"), reply.text
                assert "PATRONAGE_LIKELIHOOD_MODEL" in reply.json()["detail"]
            assert client.get("/v1/admin/policy").json() == before

    def test_a_model_that_does_not_answer_is_no_model(self, plain, scorer: Scorer):
        data_dir, env = plain
        scorer.fails = True
        done = run(data_dir, "policy", "set", "--value-function", "log_likelihood/1", env={**env, **scorer.env})
        assert "503" in refused(done)

    def test_a_server_does_not_start_and_says_what_to_set(self, plain, scorer: Scorer):
        data_dir, env = plain
        policy = ("policy", "set", "--generated-value-function", "log_likelihood/1")
        assert cli(data_dir, *policy, env={**env, **scorer.env})["generated_value_function"] == "log_likelihood/1"
        done = process(data_dir, "serve", "--port", "0", env=env)
        assert done.returncode == 1, done.stderr
        said = done.stderr.splitlines()[-1]
        assert said.startswith("patronage: policy 2 is in force: log_likelihood/1 cannot be computed here"), said
        assert "PATRONAGE_LIKELIHOOD_MODEL" in said
        assert "patronage policy set" in said
        with Server(data_dir, {**env, **scorer.env}):
            pass
        cli(data_dir, "policy", "set", "--generated-value-function", "support/1", env=env)
        with Server(data_dir, env):
            pass

    def test_a_server_that_lacks_the_model_of_a_policy_adopted_beside_it_serves_nothing(
        self, plain, key: str, scorer: Scorer
    ):
        data_dir, env = plain
        with Server(data_dir, env) as server, server.client(key) as client:
            question = {"question": "When did the Forth Bridge open?"}
            assert client.post("/v1/query", json=question).status_code == 200
            before = client.get("/v1/account").json()
            cli(data_dir, "policy", "set", "--value-function", "log_likelihood/1", env={**env, **scorer.env})
            wait_for(lambda: client.post("/v1/query", json=question).status_code == 503)
            wait_for(lambda: client.get("/v1/account").json()["held"]["amount"] == before["held"]["amount"])
            reply = client.post("/v1/query", json=question)
            assert reply.json()["error"]["code"] == "not_valued"
            cli(data_dir, "policy", "set", "--value-function", "counterfactual/1", env=env)
            wait_for(lambda: client.post("/v1/query", json=question).status_code == 200)


def test_a_small_language_model_in_the_servers_process(
    prepared: Path, key: str, environment: dict[str, str], tmp_path: Path
):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.language_models import babbler  # noqa: PLC0415 # needs torch

    data_dir = shutil.copytree(prepared, tmp_path / "data")
    model = babbler(tmp_path / "babbler", "llama", positions=8_192)
    env = {**environment, "PATRONAGE_LIKELIHOOD_MODEL": str(model), "PATRONAGE_VALUE_SECONDS": "120"}
    cli(data_dir, "policy", "set", "--value-function", "log_likelihood/1", env=env)
    with Server(data_dir, env) as server, server.client(key) as client:
        reply = client.post("/v1/query", json={"question": "When did the Forth Bridge open?", "top_k": 3})
        assert reply.status_code == 200, reply.text
        receipt = reply.json()["receipt"]["id"]
        wait_for(lambda: client.get("/v1/usage").json()["data"])
    explained = cli(data_dir, "period", "explain", receipt, env=env)
    assert explained["value"]["function"] == "log_likelihood/1"
    assert 0 < explained["value"]["none"] < 1
    assert cli(data_dir, "audit", env=env)["balanced"]


def test_a_policy_is_shown_and_set_from_the_command_line(data_dir: Path, environment: dict[str, str]):
    first = cli(data_dir, "policy", "show", env=environment)
    assert (first["version"], first["generated_value_function"]) == (1, "support/1")
    second = cli(data_dir, "policy", "set", "--value-function", "support/1", env=environment)
    assert second == {**first, "version": 2, "value_function": "support/1"}
    third = cli(data_dir, "policy", "set", "--data-share-ppm", "600000", "--ablation-ppm", "0", env=environment)
    assert third == {**second, "version": 3, "data_share_ppm": 600_000, "ablation_ppm": 0}, "what is not given stays"
    for wrong in (
        ("--value-function", "rerun/1"),
        ("--generated-value-function", "counterfactual/1"),
        ("--data-share-ppm", "1000001"),
        ("--ablation-ppm", "-1"),
    ):
        done: subprocess.CompletedProcess[str] = run(data_dir, "policy", "set", *wrong, env=environment)
        refused(done)
    assert cli(data_dir, "policy", "show", env=environment) == third
    assert "generated_value_function" in run(data_dir, "policy", "show", env=environment).stdout
