"""Every command of the command line does what the contract says, with ``--json`` before and after it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from serving import __version__
from tests.e2e.corpus import DOCUMENTS, TEXTS
from tests.e2e.files import minimal_pdf, write_jsonl
from tests.servers import cli, run, this_period

_QUESTION = "When was the Vellmar lighthouse built?"
_ANSWER = "The Vellmar lighthouse was built in 1847 by the engineer Ottilie Brandt."


class Story:
    """A data directory, and what each command on it printed. Every second command has the options at its end."""

    def __init__(self, data_dir: Path, env: dict[str, str]) -> None:
        self.data_dir = data_dir
        self.env = env
        self.printed: dict[str, dict[str, Any]] = {}
        self.period = this_period()

    def tell(self, name: str, *arguments: str) -> dict[str, Any]:
        if len(self.printed) % 2:
            done = _trailing(self.data_dir, self.env, *arguments)
        else:
            done = run(self.data_dir, "--json", *arguments, env=self.env)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        assert done.stdout.count("\n") == 1, f"{arguments} printed more than one line: {done.stdout}"
        self.printed[name] = json.loads(done.stdout)
        return self.printed[name]


def _trailing(data_dir: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command with the global options behind it, and the data directory from the environment."""
    return run(Path("/nonexistent/it-is-named-again"), *arguments, "--json", f"--data-dir={data_dir}", env=env)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Story:
    """A month in the life of a deployment, on the command line alone."""
    folder = tmp_path_factory.mktemp("story")
    found = Story(folder / "data", e2e_env)
    corpus = write_jsonl(folder / "corpus.jsonl", DOCUMENTS)
    found.tell("operator", "operator", "add", "Ada Lovelace")
    found.tell("contributor", "contributor", "add", "Mary Hollis", "--id", "mary")
    found.tell("customer", "customer", "add", "Acme Research", "--id", "acme", "--credit", "5.00")
    found.tell("credit", "customer", "credit", "acme", "2.50", "--reference", "invoice-1")
    found.tell("credit again", "customer", "credit", "acme", "2.50", "--reference", "invoice-1")
    found.tell("ingest", "ingest", str(corpus), "--create-contributors")
    found.tell("ingest again", "ingest", str(corpus))
    key = found.printed["customer"]["api_key"]
    found.tell("query", "query", _QUESTION, "--key", key)
    found.tell("query top-k", "query", _QUESTION, "--key", key, "--top-k", "2")
    found.tell("withdraw", "documents", "withdraw", "bo/bees", "cleo/bread")
    found.tell("documents", "documents", "list")
    found.tell("preview", "period", "preview", found.period)
    found.tell("close", "period", "close", found.period, "--early")
    file = str(folder / "statement.json")
    found.tell("statement", "statement", "--contributor", "mary", "--period", found.period)
    found.tell("statement file", "statement", "--contributor", "mary", "--period", found.period, "-o", file)
    found.tell("verify", "verify", file)
    found.tell("audit", "audit")
    found.tell("doctor", "doctor")
    return found


@pytest.mark.parametrize("who", ["operator", "contributor", "customer"])
def test_adding_someone_shows_a_key_once(story: Story, who: str):
    shown = story.printed[who]

    assert {"id", "name", "api_key"} <= set(shown)
    assert len(shown["api_key"]) > 30
    stored = b"".join(file.read_bytes() for file in story.data_dir.glob("patronage.sqlite3*"))
    assert shown["api_key"].encode() not in stored, "keys are stored hashed"


def test_an_id_can_be_chosen_or_is_made_from_the_name(story: Story):
    assert story.printed["contributor"]["id"] == "mary"
    assert story.printed["operator"]["id"].startswith("ada-lovelace")


def test_a_payment_counts_once_by_its_reference(story: Story):
    assert story.printed["customer"]["balance"] == {"amount": "5.000000", "currency": "USD"}
    assert story.printed["credit"] == {"balance": {"amount": "7.500000", "currency": "USD"}}
    assert story.printed["credit again"] == story.printed["credit"]


def test_ingest_counts_documents_and_the_second_time_changes_nothing(story: Story):
    first, second = story.printed["ingest"], story.printed["ingest again"]

    assert first["passages"] >= len(DOCUMENTS)
    nothing = {"unchanged": 0, "replaced": 0, "rejected": [], "skipped": [], "stopped": False}
    assert {**first, "passages": 0} == nothing | {"documents": len(DOCUMENTS), "passages": 0}
    assert second == nothing | {"documents": 0, "passages": 0, "unchanged": len(DOCUMENTS)}


def test_a_query_prints_what_http_answers_and_is_paid(story: Story):
    answer = story.printed["query"]

    assert answer["answer"] == _ANSWER
    begin, end = answer["citations"][0]["passage"]
    assert TEXTS["mary/light"][begin:end] == _ANSWER
    assert len(answer["sources"]) == 5
    assert len(story.printed["query top-k"]["sources"]) == 2
    assert Decimal(answer["receipt"]["charge"]["amount"]) > 0


def test_documents_are_listed_with_version_contributor_terms_and_state(story: Story):
    listed = {each["id"]: each for each in story.printed["documents"]["documents"]}

    assert set(listed) == set(TEXTS)
    assert {each["contributor"] for each in listed.values()} == {"mary", "bo", "cleo"}
    assert listed["mary/dye"]["terms"]["purposes"] == ["research", "teaching"]
    assert listed["bo/meteorite"]["terms"]["floor"]["amount"] == "5.000000"
    assert all(re.fullmatch("[0-9a-f]{64}", each["version"]) for each in listed.values())
    withdrawn = {name for name, each in listed.items() if each["state"] != "active"}
    assert withdrawn == set(story.printed["withdraw"]["withdrawn"]) == {"bo/bees", "cleo/bread"}


def test_a_preview_gives_what_the_close_then_gives(story: Story):
    closed = story.printed["close"]
    names = {
        "run_id",
        "input_root",
        "policy_version",
        "records",
        "charged",
        "pool",
        "credited",
        "residual",
        "statements",
    }

    assert names <= set(closed)
    assert story.printed["preview"] == closed
    assert closed["records"] == 2
    charges = [Decimal(story.printed[name]["receipt"]["charge"]["amount"]) for name in ("query", "query top-k")]
    assert Decimal(closed["charged"]["amount"]) == sum(charges)
    credited = [Decimal(each["credited"]["amount"]) for each in closed["statements"]]
    assert sum(credited) == Decimal(closed["credited"]["amount"])
    assert sum(credited) + Decimal(closed["residual"]["amount"]) == Decimal(closed["pool"]["amount"])


def test_a_statement_is_the_same_on_the_screen_and_in_a_file_and_verifies(story: Story):
    bundle = json.loads((story.data_dir.parent / "statement.json").read_text())

    assert bundle == story.printed["statement"]
    assert bundle["statement"]["contributor"] == "mary"
    assert bundle["statement"]["period"] == story.period
    assert story.printed["verify"]["valid"] is True
    assert len(story.printed["verify"]["checks"]) >= 3
    assert all(check["ok"] for check in story.printed["verify"]["checks"])


def test_the_books_are_balanced(story: Story):
    assert story.printed["audit"]["balanced"] is True
    assert len(story.printed["audit"]["checks"]) >= 8


def test_the_doctor_finds_what_the_server_needs(story: Story):
    text = json.dumps(story.printed["doctor"]).lower()

    assert all(part in text for part in ("redis", "database", "model", "accelerator", "python"))


@pytest.mark.parametrize(
    ("setting", "more"),
    [
        ("PATRONAGE_EMBEDDER", {}),
        ("PATRONAGE_LIKELIHOOD_MODEL", {"PATRONAGE_LIKELIHOOD_URL": "http://127.0.0.1:1/v1"}),
    ],
)
def test_the_doctor_misses_a_model_that_does_not_exist(
    story: Story, tmp_path: Path, setting: str, more: dict[str, str]
):
    """Its tokenizer is needed on this machine even where a server runs the model."""
    env = story.env | more | {setting: str(tmp_path / "no-model")}
    done = run(story.data_dir, "--json", "doctor", env=env)
    missing = [check for check in json.loads(done.stdout)["checks"] if not check["ok"]]

    assert done.returncode == 1
    assert [(check["found"], check["advice"]) for check in missing] == [
        (f"there is no folder {tmp_path / 'no-model'}, and it is no name of a model on the hub", f"check {setting}")
    ]


@pytest.mark.parametrize(
    ("settings", "part", "named"),
    [
        ({"PATRONAGE_LIKELIHOOD_URL": "http://127.0.0.1:1/v1"}, "language model", "PATRONAGE_LIKELIHOOD_MODEL"),
        ({"PATRONAGE_UPSTREAM_URL": "http://127.0.0.1:1/v1"}, "upstream model", "PATRONAGE_UPSTREAM_MODEL"),
        ({"PATRONAGE_UPSTREAM_URL": "127.0.0.1:1", "PATRONAGE_UPSTREAM_MODEL": "m"}, "upstream model", "an address"),
    ],
)
def test_the_doctor_misses_what_settings_leave_out(story: Story, settings: dict[str, str], part: str, named: str):
    done = run(story.data_dir, "--json", "doctor", env=story.env | settings)
    [missing] = [check for check in json.loads(done.stdout)["checks"] if not check["ok"]]

    assert done.returncode == 1
    assert missing["name"] == part
    assert named in missing["found"] + missing["advice"]


def test_the_version_is_told_wherever_it_is_asked(story: Story):
    assert run(story.data_dir, "--version").stdout == f"{__version__}\n"
    assert run(story.data_dir, "serve", "--version", "--json").stdout == f'{{"version": "{__version__}"}}\n'


@pytest.mark.parametrize("form", ["csv", "html"])
def test_a_statement_is_written_for_people_too(story: Story, form: str, tmp_path: Path):
    file = tmp_path / f"statement.{form}"
    options = ("--contributor", "mary", "--period", story.period, "--format", form)
    screen = run(story.data_dir, "statement", *options, env=story.env)
    written = run(story.data_dir, "statement", *options, "-o", str(file), env=story.env)

    assert (screen.returncode, written.returncode) == (0, 0), screen.stderr + written.stderr
    assert file.read_text() == screen.stdout
    credited = story.printed["statement"]["statement"]["credited"]["amount"]
    assert "mary" in screen.stdout
    assert credited in screen.stdout
    assert screen.stdout.startswith("<!" if form == "html" else "period,")


def test_without_json_the_answer_is_for_people(story: Story):
    done = run(story.data_dir, "query", _QUESTION, "--key", story.printed["customer"]["api_key"], env=story.env)

    assert done.returncode == 0, done.stderr
    assert _ANSWER in done.stdout
    assert not done.stdout.lstrip().startswith("{")


def test_the_data_directory_can_come_from_the_environment(story: Story, tmp_path: Path):
    command = [sys.executable, "-m", "serving.cli", "documents", "list", "--json"]
    env = {**os.environ, **story.env, "PATRONAGE_DATA_DIR": str(story.data_dir)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)

    assert done.returncode == 0, done.stderr
    assert {each["id"] for each in json.loads(done.stdout)["documents"]} == set(TEXTS)
    assert list(tmp_path.iterdir()) == [], "no other data directory was made"


def test_every_kind_of_file_is_taken_in_and_found(tmp_path: Path, e2e_env: dict[str, str]):
    folder = tmp_path / "essays"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "secret.txt").write_text("The hidden badger is not taken in.")
    (folder / "notes.xyz").write_text("Of a type that is not read.")
    (folder / "badger.txt").write_text("The badger of Lund digs nine tunnels.")
    (folder / "deep" / "heron.md").write_text("# Herons\n\nThe heron of Lund eats thirteen frogs a day.\n")
    (folder / "crow.html").write_text(
        "<html><head><title>Crows</title><script>var x = 'no'</script></head>"
        "<body><p>The crow of Lund &amp; Malm collects silver spoons.</p></body></html>"
    )
    (folder / "swan.pdf").write_bytes(minimal_pdf("The swan of Lund has two black feathers."))
    write_jsonl(folder / "fox.jsonl", [{"id": "fox", "text": "The fox of Lund sleeps at noon.", "other": 1}])
    data = tmp_path / "data"
    key = cli(data, "customer", "add", "Reader", "--credit", "1", env=e2e_env)["api_key"]
    taken = cli(data, "ingest", str(folder), "--contributor", "kim", "--create-contributors", env=e2e_env)

    assert (taken["documents"], taken["rejected"]) == (5, [])
    listed = cli(data, "documents", "list", env=e2e_env)["documents"]
    assert {each["title"] for each in listed} >= {"Herons", "Crows"}
    assert {each["contributor"] for each in listed} == {"kim"}
    answer = cli(data, "query", "What does the crow of Lund collect?", "--key", key, "--top-k", "50", env=e2e_env)
    assert answer["answer"] == "The crow of Lund & Malm collects silver spoons."
    assert len(answer["sources"]) == 5


def test_changed_text_makes_a_new_version_and_says_so(tmp_path: Path, e2e_env: dict[str, str]):
    data, file = tmp_path / "data", tmp_path / "one.txt"
    file.write_text("The first text.")
    first = cli(data, "ingest", str(file), "--contributor", "kim", "--create-contributors", env=e2e_env)
    file.write_text("The second text.")
    second = cli(data, "ingest", str(file), "--contributor", "kim", env=e2e_env)

    assert (first["documents"], first["replaced"]) == (1, 0)
    assert (second["documents"], second["replaced"], second["unchanged"]) == (1, 1, 0)


def test_attribute_credits_the_cases_of_any_system_in_their_order(
    tmp_path: Path, e2e_env: dict[str, str], attributed: Callable[[Path], list[dict[str, Any]]]
):
    passages = [
        {"id": "p1", "text": "The Vellmar lighthouse was built in 1847.", "contributor": "mary", "score": 2.0},
        {"id": "p2", "text": "Bread is baked with caraway.", "contributor": "bo", "score": 0.1},
    ]
    cases = [
        {"id": "b", "question": _QUESTION, "answer": "In 1847.", "passages": passages, "charge": "0.01"},
        {"id": "a", "question": _QUESTION, "answer": "", "passages": passages},
        {"id": "c", "question": "Why?", "answer": "Nobody knows.", "passages": []},
    ]
    file = write_jsonl(tmp_path / "cases.jsonl", cases)
    out = tmp_path / "out.jsonl"
    done = run(tmp_path / "data", "attribute", str(file), "-o", str(out), env=e2e_env)

    assert done.returncode == 0, done.stderr
    lines = attributed(out)
    assert [line["id"] for line in lines] == ["b", "a", "c"]
    for line, case in zip(lines, cases, strict=True):
        assert sum(share["weight"] for share in line["shares"]) + line["model_residual"] == pytest.approx(1, abs=1e-9)
        assert [share["passage_id"] for share in line["shares"]] == [each["id"] for each in case["passages"]]
    weights = {share["passage_id"]: share["weight"] for share in lines[0]["shares"]}
    assert weights["p1"] > weights["p2"], "the passage that holds the answer earns more"


@pytest.fixture
def attributed() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads a file of attributed cases, checking the members of each line."""

    def read(file: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            expected = {"id", "shares", "model_residual", "method", "estimated", "value_all", "value_none"}
            assert expected <= set(line), line
            for share in line["shares"]:
                assert {"passage_id", "contributor", "weight", "raw"} <= set(share), share
        return lines

    return read
