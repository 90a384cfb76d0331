"""Copying does not pay: k copies earn what one earns, in signed statements, and push nobody out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import attacks
from tests.e2e.corpus import DOCUMENTS
from tests.e2e.world import World, open_world
from tests.servers import cli, this_period

_QUESTIONS = (
    "When was the Vellmar lighthouse built?",
    "Who was the last keeper of the Vellmar tower?",
    "How tall is the Tarn Point lighthouse?",
    "How long does the ferry to Osk Island take?",
    "How much honey does a hive on Osk Island give?",
)
_COPIED = "mary/light"
_TEXT = next(each["text"] for each in DOCUMENTS if each["id"] == _COPIED)


def _answers(world: World) -> list[dict[str, Any]]:
    customer = world.customer()
    return [customer.ask(question) for question in _QUESTIONS]


def _credited(world: World, period: str) -> dict[str, Decimal]:
    closed = cli(world.data_dir, "period", "close", period, "--early", env=world.env)
    assert cli(world.data_dir, "audit", env=world.env)["balanced"]
    return {each["contributor"]: Decimal(each["credited"]["amount"]) for each in closed["statements"]}


def _copy_by_ingest(world: World, kind: str, accounts: list[str], count: int) -> dict[str, Any]:
    """``count - 1`` more texts of the copied work, in one file, under those accounts in turn."""
    lines = [
        {
            "id": f"copy/{i}",
            "title": "A copy",
            "text": attacks.COPIES[kind](_TEXT, random.Random(i)),
            "contributor": accounts[i % len(accounts)],
        }
        for i in range(count - 1)
    ]
    path = world.data_dir.with_name("copies.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return cli(world.data_dir, "ingest", str(path), "--create-contributors", env=world.env)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> tuple[list[Any], dict[str, Decimal]]:
    """The answers and the statements of a world without copies."""
    period = this_period()
    with open_world(tmp_path_factory.mktemp("honest") / "data", e2e_env) as world:
        return _answers(world), _credited(world, period)


def _shown(answers: list[dict[str, Any]]) -> list[Any]:
    return [
        (answer["answer"], [(each["document_id"], each["share"]) for each in answer["sources"]]) for answer in answers
    ]


@pytest.mark.parametrize(
    ("kind", "accounts", "count"),
    [
        ("exact", ["mary"], 8),
        ("exact", [f"mary-{i}" for i in range(7)], 8),
        ("word edits", ["mary", "mary-2"], 4),
        ("sentence order", ["mary-2", "mary-3", "mary-4"], 4),
        ("paraphrase", ["mary-2"], 2),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_owner_of_k_copies_earns_what_one_earns_and_nobody_is_crowded_out(
    honest, tmp_path: Path, e2e_env: dict[str, str], kind: str, accounts: list[str], count: int
):
    (answers, credited), period = honest, this_period()
    with open_world(tmp_path / "data", e2e_env) as world:
        assert _copy_by_ingest(world, kind, accounts, count)["documents"] == count - 1
        copied = _answers(world)
        statements = _credited(world, period)
    assert credited["mary"] > 0
    gained = sum(units for name, units in statements.items() if name.startswith("mary")) / credited["mary"]
    assert abs(gained - 1) <= Decimal("0.02")
    for name in ("bo", "cleo"):
        assert abs(statements[name] - credited[name]) <= credited[name] * Decimal("0.02")
    assert _shown(copied) == _shown(answers)


def test_a_thief_earns_nothing_and_is_told_why(honest, tmp_path: Path, e2e_env: dict[str, str]):
    (answers, credited), period = honest, this_period()
    with open_world(tmp_path / "data", e2e_env) as world:
        _copy_by_ingest(world, "word edits", ["thief"], 4)
        listed = cli(world.data_dir, "documents", "list", "--contributor", "thief", env=world.env)["documents"]
        assert _shown(_answers(world)) == _shown(answers)
        statements = _credited(world, period)
    assert [each["copies"] for each in listed] == [[{"original": _COPIED, "passages": 1}]] * 3
    assert statements.pop("thief") == 0
    for name, units in statements.items():
        assert abs(units - credited[name]) <= len(_QUESTIONS) * Decimal("0.000000001"), "to the rounding of each query"


@pytest.fixture
def brought(world: World) -> Callable[[str, str, str], dict[str, Any]]:
    """Brings a text by HTTP."""
    return lambda contributor, name, text: world.add_document(contributor, id=name, title="T", text=text)


def test_a_contributor_sees_over_http_which_of_a_documents_passages_are_copies(
    world: World, brought: Callable[[str, str, str], dict[str, Any]]
):
    original = next(each for each in DOCUMENTS if each["id"] == "bo/bees")
    document = brought("cleo", "cleo/bees-again", original["text"])
    try:
        assert document["copies"] == [{"original": "bo/bees", "passages": 1}]
        assert world.contributor("cleo").get("/v1/documents/cleo/bees-again").json() == document
        own = world.contributor("bo").get("/v1/documents/bo/bees").json()
        assert own["copies"] == []
        answer = world.customer().ask("How much honey does a hive on Osk Island give?", top_k=50)
        assert "cleo/bees-again" not in [each["document_id"] for each in answer["sources"]]
    finally:
        world.contributor("cleo").delete("/v1/documents/cleo/bees-again")


def test_of_the_same_text_in_one_file_the_first_is_the_original(tmp_path: Path, e2e_env: dict[str, str]):
    """Documents are registered one after the other, and whoever adds copies of another's gains nothing."""
    period = this_period()
    text = "The weir at Sandholm was built in 1662 by monks. It drives a mill that grinds spelt."
    with open_world(tmp_path / "data", e2e_env) as world:
        lines = [{"id": f"{name}/weir", "title": "W", "text": text, "contributor": name} for name in ("zoe", "adam")]
        path = tmp_path / "weir.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        cli(world.data_dir, "ingest", str(path), "--create-contributors", env=world.env)
        customer = world.customer()
        answer = customer.ask("When was the weir at Sandholm built?", top_k=1)
        statements = _credited(world, period)
    assert [each["document_id"] for each in answer["sources"]] == ["zoe/weir"]
    assert statements["zoe"] > 0
    assert not statements.get("adam")
