"""Bad input on the command line: exit status 1 with one clear line, or 2 for wrong usage, and nothing changed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.commands import refused, run_all
from tests.e2e.files import write_jsonl
from tests.servers import cli, run, this_period


@dataclass
class Town:
    """A data directory with a contributor, a customer with money and one without, and what their keys are."""

    data_dir: Path
    env: dict[str, str]
    keys: dict[str, str]
    accounts: list[dict[str, Any]] = field(default_factory=list)
    """As they were seen last."""

    def changed(self) -> bool:
        """Whether there is another account or another balance than when this was asked last."""
        before, self.accounts = self.accounts, cli(self.data_dir, "customer", "list", env=self.env)["customers"]
        return self.accounts != before


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Town:
    data = tmp_path_factory.mktemp("town") / "data"
    keys = {
        "acme": cli(data, "customer", "add", "Acme", "--id", "acme", "--credit", "5", env=e2e_env)["api_key"],
        "poor": cli(data, "customer", "add", "Poor", "--id", "poor", env=e2e_env)["api_key"],
        "mary": cli(data, "contributor", "add", "Mary", "--id", "mary", env=e2e_env)["api_key"],
    }
    found = Town(data, e2e_env, keys)
    assert found.changed()
    return found


_WRONG_USAGE = {
    "no command": (),
    "unknown command": ("frobnicate",),
    "unknown option": ("audit", "--loudly"),
    "missing reference": ("customer", "credit", "acme", "5"),
    "refund without a reason": ("customer", "refund", "acme", "5", "--reference", "r"),
    "correction without a reference": ("ledger", "correct", "--of", "x", "--reason", "r"),
    "journal that is none": ("ledger", "export", "--format", "gnucash"),
    "journal as JSON and no file": ("--json", "ledger", "export"),
    "payout that stands so": ("payout", "list", "--state", "lost"),
    "port that is none": ("serve", "--port", "99999"),
    "format that is none": ("statement", "--contributor", "mary", "--period", "2026-01", "--format", "pdf"),
    "top-k of zero": ("query", "why?", "--key", "k", "--top-k", "0"),
}


def test_wrong_usage_is_status_2(tmp_path: Path, subtests: pytest.Subtests):
    for case, done in run_all(tmp_path / "data", _WRONG_USAGE).items():
        with subtests.test(case):
            refused(done, 2)
            assert done.stderr + done.stdout
    assert not (tmp_path / "data").exists(), "wrong usage makes no data directory"


_REFUSED: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
    "books": {
        "refund to nobody": (("customer", "refund", "nobody", "1", "--reference", "r", "--reason", "x"), "nobody"),
        "refund of too much": (("customer", "refund", "acme", "5.01", "--reference", "r", "--reason", "x"), "only 5.0"),
        "refund of less than nothing": (
            ("customer", "refund", "acme", "-1", "--reference", "r", "--reason", "x"),
            "above zero",
        ),
        "correction of nothing": (
            ("ledger", "correct", "--of", "no/such", "--reference", "r", "--reason", "x"),
            "no/such",
        ),
        "correction without accounts": (("ledger", "correct", "--reference", "r", "--reason", "x"), "needed"),
        "correction of a pool": (
            (
                "ledger",
                "correct",
                "--debit",
                "bank",
                "--credit",
                "pool:2026-01",
                "--amount",
                "1",
                "--reference",
                "r",
                "--reason",
                "x",
            ),
            "periods alone",
        ),
        "account that is none": (("ledger", "show", "customer:nobody"), "customer:nobody"),
        "moment that is none": (("ledger", "balances", "--at", "tomorrow"), "2026-11-30"),
        "range that is none": (("ledger", "export", "--from", "2026-02-30"), "2026-11-30"),
        "journal that cannot be written": (("ledger", "export", "-o", "/nonexistent/books"), "No such file"),
        "payout to nobody": (("payout", "start", "nobody", "--reference", "r"), "nobody"),
        "payout of nothing": (("payout", "start", "mary", "--reference", "r"), "owed nothing"),
        "payout that was not started": (("payout", "settle", "r"), "no payout r"),
        "payout that is cancelled for no reason": (("payout", "cancel", "r", "--reason", ""), "reason"),
    },
    "money": {
        "credit to nobody": (("customer", "credit", "nobody", "5", "--reference", "r"), "nobody"),
        "credit of zero": (("customer", "credit", "acme", "0", "--reference", "r"), "above zero"),
        "negative credit": (("customer", "credit", "acme", "-5", "--reference", "r"), "above zero"),
        "absurd credit": (("customer", "credit", "acme", "9" * 20, "--reference", "r"), "limit"),
        "credit with an exponent": (("customer", "credit", "acme", "1e99", "--reference", "r"), "1e99"),
        "credit without a reference": (("customer", "credit", "acme", "5", "--reference", ""), "reference"),
        "credit of another amount": (("customer", "credit", "acme", "6", "--reference", "opening"), "opening"),
    },
    "people": {
        "customer that exists": (("customer", "add", "Acme", "--id", "acme"), "acme"),
        "customer with zero credit": (("customer", "add", "Zero", "--id", "zero", "--credit", "0"), "above zero"),
        "customer with a bad id": (("customer", "add", "Bad", "--id", "a b"), "id"),
        "customer without a name": (("customer", "add", "", "--id", "nameless"), "name"),
        "customer with a name that is too long": (("customer", "add", "n" * 501, "--id", "long"), "name"),
        "contributor that exists": (("contributor", "add", "Mary", "--id", "mary"), "mary"),
        "contributor that cannot be written": (("contributor", "add", os.fsdecode(b"caf\xe9"), "--id", "cafe"), ""),
    },
    "documents": {
        "withdrawal of nothing": (("documents", "withdraw", "mary/none"), "mary/none"),
        "ingest for an unknown contributor": (("ingest", __file__, "--contributor", "nobody"), "nobody"),
        "ingest of what is not there": (("ingest", "missing-folder/x.txt", "--contributor", "mary"), "no such file"),
        "ingest of an unknown type": (("ingest", __file__, "--contributor", "mary"), ".py"),
    },
    "questions": {
        "question with an unknown key": (("query", "why?", "--key", "patronage-customer-x"), "key"),
        "question with a contributor's key": (("query", "why?", "--key", "{mary}"), "key"),
        "blank question": (("query", "  ", "--key", "{acme}"), "blank"),
        "question that is too long": (("query", "why " * 2_001, "--key", "{acme}"), "8000"),
        "question that is no text": (("query", os.fsdecode(b"what is \xff?"), "--key", "{acme}"), ""),
        "question of a bad purpose": (("query", "why?", "--key", "{acme}", "--purpose", "ANY use"), "purpose"),
        "question without money": (("query", "why?", "--key", "{poor}"), "credit"),
    },
    "periods": {
        "close of no period": (("period", "close", "2026-13"), "2026-13"),
        "close of a word": (("period", "close", "november"), "november"),
        "close of the future": (("period", "close", "2999-01", "--early"), "future"),
        "close of a period that is not over": (("period", "close", "{period}"), "--early"),
        "preview of the future": (("period", "preview", "2999-01"), "future"),
        "statement of nobody": (("statement", "--contributor", "nobody", "--period", "2020-01"), "nobody"),
        "statement of no period": (("statement", "--contributor", "mary", "--period", "1"), "period"),
        "statement of an open period": (("statement", "--contributor", "mary", "--period", "2020-01"), "2020-01"),
        "verifying what is not there": (("verify", "no-such-statement.json"), "no-such-statement.json"),
        "verifying a folder": (("verify", "/"), "/"),
    },
}


@pytest.mark.parametrize("kind", _REFUSED)
def test_what_cannot_be_done_is_status_1_and_one_line_says_why(town: Town, subtests: pytest.Subtests, kind: str):
    cases, names = _REFUSED[kind], {**town.keys, "period": this_period()}
    commands = {
        case: ["--json", *(each.format(**names) if each.startswith("{") else each for each in arguments)]
        for case, (arguments, _) in cases.items()
    }
    for case, done in run_all(town.data_dir, commands, town.env).items():
        with subtests.test(case):
            assert cases[case][1] in refused(done)
            assert not done.stdout or json.loads(done.stdout)
    assert not town.changed(), f"an account changed: {town.accounts}"


def test_payments_whose_ids_and_references_have_slashes_are_kept_apart(tmp_path: Path, e2e_env: dict[str, str]):
    """``a`` with reference ``b/c`` is not ``a/b`` with reference ``c``. An id with a slash may be refused instead."""
    data = tmp_path / "data"
    cli(data, "customer", "add", "A", "--id", "a", env=e2e_env)
    if run(data, "customer", "add", "B", "--id", "a/b", env=e2e_env).returncode == 0:
        cli(data, "customer", "credit", "a", "1", "--reference", "b/c", env=e2e_env)
        paid = cli(data, "customer", "credit", "a/b", "1", "--reference", "c", env=e2e_env)
        assert paid["balance"]["amount"] == "1.000000"


def test_a_period_is_closed_once(tmp_path: Path, e2e_env: dict[str, str]):
    data = tmp_path / "data"
    cli(data, "period", "close", "2020-01", env=e2e_env)
    line = refused(run(data, "period", "close", "2020-01", env=e2e_env))

    assert "already closed" in line


def _line(identifier: str, **more: Any) -> bytes:
    return json.dumps({"id": identifier, "title": "T", "text": f"Text of {identifier}.", **more}).encode()


_HALF = {"contributor": "mary", "role": "author", "share": 500_000}
_LINES: dict[int, tuple[bytes, str]] = {
    2: (b'{"id": "cut", "text": "cut o', "JSON"),
    4: (b"not json at all", "JSON"),
    5: (b'["a list"]', "object"),
    6: (b'{"id": "no-text"}', "text"),
    7: (json.dumps({"text": "no id"}).encode(), "id"),
    8: (_line("below", splits=[_HALF]), "500000"),
    9: (_line("above", splits=[_HALF, {**_HALF, "role": "editor", "share": 600_000}]), "1100000"),
    10: (_line("stranger", splits=[_HALF, {**_HALF, "contributor": "stranger"}]), "stranger"),
    11: (_line("good-1"), "good-1"),
    12: (_line("blank").replace(b"Text of blank.", b"  "), "empty"),
    13: (_line("nul").replace(b"Text", b"Te\\u0000xt"), "NUL"),
    14: (_line("latin").replace(b"Text", b"T\xe9xt"), "UTF-8"),
    15: (_line("surrogate").replace(b"Text", b"\\ud800"), ""),
    16: (b'{"id": "deep", "text": "t", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
    17: (_line("floor", terms={"floor": "-1"}), "floor"),
    18: (_line("typed").replace(b'"T"', b"7"), "title"),
    19: (_line("other", contributor="stranger"), "stranger"),
}
"""Bad lines by their number, with a word of the reason."""


@pytest.fixture
def rejections(town: Town, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """Ingests files; gives what is printed, and the rejections by file name."""

    def ingest(*names: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        paths = [str(tmp_path / name) for name in names]
        printed = cli(town.data_dir, "ingest", *paths, "--contributor", "mary", env=town.env)
        return printed, {Path(each["path"]).name: each for each in printed["rejected"]}

    return ingest


def test_a_bad_line_is_named_by_path_line_and_reason_and_loses_no_other(
    town: Town, tmp_path: Path, rejections: Callable[..., tuple[dict[str, Any], dict[str, dict[str, Any]]]]
):
    good = {1: _line("good-1"), 3: _line("good-3", unknown={"a": [1]}) + b"\r", 20: b"", 21: _line("good-21")}
    lines = {number: data for number, (data, _) in _LINES.items()} | good
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines[number] for number in sorted(lines)))
    printed, _ = rejections("lines.jsonl")

    found = {each["line"]: each["reason"] for each in printed["rejected"]}
    assert sorted(found) == sorted(_LINES)
    for number, (_, word) in _LINES.items():
        assert word in found[number], f"line {number}: {found[number]}"
    assert {each["path"] for each in printed["rejected"]} == {str(file)}
    assert printed["documents"] == 3
    listed = cli(town.data_dir, "documents", "list", env=town.env)["documents"]
    assert {each["id"] for each in listed} >= {"good-1", "good-3", "good-21"}


def test_a_bad_file_is_named_with_its_reason_and_loses_no_other(
    tmp_path: Path, rejections: Callable[..., tuple[dict[str, Any], dict[str, dict[str, Any]]]]
):
    bad = {
        "empty.txt": (b"", "empty"),
        "blank.md": (b" \n\n ", "empty"),
        "binary.txt": (bytes(range(256)) * 40, "binary"),
        "late-binary.txt": (b"text " * 2_000 + b"\x00", ""),
        "latin1.txt": ("Ein alter Käse".encode("latin-1"), "UTF-8"),
        "utf16.txt": ("A text in UTF-16".encode("utf-16"), ""),
        "broken.pdf": (b"%PDF-1.4 and no more", "PDF"),
        "text.pdf": (b"not a PDF", "PDF"),
        "bare.html": (b"<html><body><script>only()</script></body></html>", "empty"),
        "picture.png": (b"\x89PNG", ".png"),
        "no-suffix": (b"text", ""),
    }
    for name, (data, _) in bad.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "good.txt").write_text("A good file among bad ones.")
    printed, found = rejections(*bad, "good.txt", "missing.txt")

    assert set(found) == {*bad, "missing.txt"}
    for name, (_, word) in bad.items():
        assert found[name]["line"] is None
        assert word in found[name]["reason"], f"{name}: {found[name]['reason']}"
    assert (printed["documents"], printed["passages"]) == (1, 1)


def test_another_contributors_document_is_not_replaced(town: Town, tmp_path: Path):
    cli(town.data_dir, "ingest", str(write_jsonl(tmp_path / "a.jsonl", [{"id": "owned", "text": "Mary's."}])),
        "--contributor", "mary", env=town.env)  # fmt: skip
    rows = [{"id": "owned", "text": "Bo's."}, {"id": "new", "text": "New."}]
    file = write_jsonl(tmp_path / "b.jsonl", rows)
    printed = cli(town.data_dir, "ingest", str(file), "--contributor", "bo", "--create-contributors", env=town.env)

    assert [(each["line"], printed["documents"]) for each in printed["rejected"]] == [(1, 1)]
    assert "another contributor" in printed["rejected"][0]["reason"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> dict[str, Any]:
    """A statement of a period in which money was earned."""
    folder = tmp_path_factory.mktemp("bundle")
    data, period = folder / "data", this_period()
    file = folder / "one.txt"
    file.write_text("The otter of Lund swims in the canal at night.")
    key = cli(data, "customer", "add", "A", "--credit", "1", env=e2e_env)["api_key"]
    cli(data, "ingest", str(file), "--contributor", "mary", "--create-contributors", env=e2e_env)
    cli(data, "query", "Where does the otter of Lund swim?", "--key", key, env=e2e_env)
    cli(data, "period", "close", period, "--early", env=e2e_env)
    found = cli(data, "statement", "--contributor", "mary", "--period", period, env=e2e_env)
    assert float(found["statement"]["credited"]["amount"]) > 0
    return found


def _more(amount: dict[str, str]) -> None:
    amount["amount"] = f"{float(amount['amount']) + 1:.6f}"


def _tamper_credited(found: dict[str, Any]) -> None:
    _more(found["statement"]["credited"])


def _tamper_lines_too(found: dict[str, Any]) -> None:
    """So that the sum of the lines is right."""
    _tamper_credited(found)
    _more(found["statement"]["documents"][0]["credited"])


def _tamper_run(found: dict[str, Any]) -> None:
    _more(found["run"]["charged"])
    _more(found["run"]["platform"])


def _tamper_checkpoint(found: dict[str, Any]) -> None:
    head, _, rest = found["checkpoint"].partition("\n")
    found["checkpoint"] = f"{head}x\n{rest}"


def _tamper_key(found: dict[str, Any]) -> None:
    found["public_key"] = base64.b64encode(bytes(range(32))).decode()


def _tamper_proof(found: dict[str, Any]) -> None:
    found["proof"]["index"] += 1


def _remove_statement(found: dict[str, Any]) -> None:
    del found["statement"]


_TAMPERS = (
    _tamper_credited, _tamper_lines_too, _tamper_run, _tamper_checkpoint,
    _tamper_key, _tamper_proof, _remove_statement,
)  # fmt: skip


def test_a_tampered_statement_is_not_valid(bundle: dict[str, Any], tmp_path: Path, subtests: pytest.Subtests):
    commands: dict[str, list[str]] = {}
    for tamper in _TAMPERS:
        changed = json.loads(json.dumps(bundle))
        tamper(changed)
        assert changed != bundle
        file = tmp_path / f"{tamper.__name__}.json"
        file.write_text(json.dumps(changed))
        commands[tamper.__name__.strip("_")] = ["--json", "verify", str(file)]
    for name, done in run_all(tmp_path / "none", commands).items():
        with subtests.test(name):
            refused(done)
            printed = json.loads(done.stdout)
            assert printed["valid"] is False
            assert not all(check["ok"] for check in printed["checks"])


def test_what_is_no_statement_is_not_valid(tmp_path: Path, subtests: pytest.Subtests):
    contents = {"a list": "[]", "empty": '{"statement": []}', "deep": "[" * 100_000, "binary": "\x00"}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(content)
    commands = {name: ["verify", str(tmp_path / f"{name}.json")] for name in contents}
    for name, done in run_all(tmp_path / "none", commands).items():
        with subtests.test(name):
            refused(done)


def test_verify_needs_nothing_but_the_statement(bundle: dict[str, Any], tmp_path: Path):
    """No data directory is made, and the key that the verifier knows decides."""
    file = tmp_path / "statement.json"
    file.write_text(json.dumps(bundle))
    command = [sys.executable, "-m", "serving.cli", "verify", str(file), "--json", "--public-key"]
    other = base64.b64encode(bytes(range(32))).decode()
    known, foreign = [
        subprocess.run([*command, key], capture_output=True, text=True, check=False, cwd=tmp_path)
        for key in (bundle["public_key"], other)
    ]

    assert known.returncode == 0, known.stderr
    assert json.loads(known.stdout)["valid"] is True
    refused(foreign)
    assert [path.name for path in tmp_path.iterdir()] == ["statement.json"]
