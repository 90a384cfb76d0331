"""``patronage attribute``: a line in, a line out, in order; a bad line loses nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.cases import LINE_BYTES_MAX, attribute
from serving.settings import Settings
from tests.e2e.commands import refused
from tests.e2e.files import write_jsonl
from tests.scorer import Scorer
from tests.servers import cli, process, run


def question(number):
    texts = {"a": f"Tower number {number} was built in {1_800 + number}.", "b": "Bread needs flour, water and salt."}
    return {
        "id": f"case-{number}",
        "question": f"When was tower number {number} built?",
        "answer": "" if number % 3 == 0 else f"In {1_800 + number}.",
        "passages": [{"id": name, "text": text, "contributor": f"by-{name}"} for name, text in texts.items()],
        "unknown": {"is": "ignored"},
    }


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


def lines(path: Path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_every_line_has_its_line_in_order(data_dir, tmp_path, e2e_env):
    cases = write_jsonl(tmp_path / "cases.jsonl", [question(number) for number in range(60)])
    done = run(data_dir, "attribute", str(cases), "-o", str(tmp_path / "out.jsonl"), env=e2e_env)

    assert done.returncode == 0, done.stderr
    assert "60 cases attributed" in done.stdout
    found = lines(tmp_path / "out.jsonl")
    assert [each["id"] for each in found] == [f"case-{number}" for number in range(60)]
    for each in found:
        assert sum(share["weight"] for share in each["shares"]) + each["model_residual"] == pytest.approx(1, abs=1e-12)
        assert [share["passage_id"] for share in each["shares"]] == ["a", "b"]
        assert each["shares"][0]["weight"] > 0.9

    printed = run(data_dir, "attribute", str(cases), env=e2e_env)
    assert printed.stdout.encode() == (tmp_path / "out.jsonl").read_bytes()
    assert list(attribute(map(question, range(60)), settings=_settings(data_dir, e2e_env))) == found


def _settings(data_dir, env):
    return Settings(data_dir=data_dir, model_cache=env["PATRONAGE_MODEL_CACHE"])


def test_a_bad_line_is_reported_and_loses_nothing_else(data_dir, tmp_path, e2e_env):
    cases, output = tmp_path / "cases.jsonl", tmp_path / "out.jsonl"
    good = [json.dumps(question(number)).encode() for number in range(4)]
    bad = [b"{not JSON", b'{"id": "x", "question": "q"}', b"\xff\xfe", b'{"pad": "' + b"x" * LINE_BYTES_MAX + b'"}']
    cases.write_bytes(b"\n".join([good[0], bad[0], b"", good[1], bad[1], bad[2], good[2], bad[3], good[3]]))
    done = run(data_dir, "attribute", str(cases), "-o", str(output), env=e2e_env)

    assert done.returncode == 1
    reported = done.stderr.splitlines()
    for line, reason in ((2, "not valid JSON"), (5, "`passages`"), (6, "not UTF-8"), (8, "longer than 10000000 bytes")):
        assert any(each.startswith(f"rejected: {cases} line {line}: ") and reason in each for each in reported)
    assert reported[-1] == "patronage: 4 of 8 cases could not be attributed; the others were"
    assert [each["id"] for each in lines(output)] == ["case-0", "case-1", "case-2", "case-3"]
    assert not list(tmp_path.glob("*.partial"))


def test_json_is_one_object(data_dir, tmp_path, e2e_env):
    cases, output = write_jsonl(tmp_path / "cases.jsonl", map(question, range(3))), tmp_path / "out.jsonl"
    summary = cli(data_dir, "attribute", str(cases), "-o", str(output), "--method", "equal", env=e2e_env)
    whole = cli(data_dir, "attribute", str(cases), "--method", "equal", "--value-function", "support/1", env=e2e_env)

    assert (summary["cases"], summary["rejected"], summary["output"]) == (3, [], str(output))
    assert summary["ms_per_case"] > 0
    assert whole["results"] == lines(output)
    assert {each["method"] for each in whole["results"]} == {"equal"}


def test_the_cases_are_never_overwritten(data_dir, tmp_path, e2e_env):
    cases = write_jsonl(tmp_path / "cases.jsonl", [question(1)])
    before = cases.read_bytes()
    assert "holds the cases" in refused(run(data_dir, "attribute", str(cases), "-o", str(cases), env=e2e_env))
    assert cases.read_bytes() == before


def test_a_link_stays_a_link(data_dir, tmp_path, e2e_env):
    """A file in the place of ``/dev/stderr`` would take what every program says from then on."""
    cases = write_jsonl(tmp_path / "cases.jsonl", [question(1)])
    kept = tmp_path / "kept.jsonl"
    kept.write_text("what was there before, and longer than one line of results is" * 100)
    (tmp_path / "link").symlink_to(kept)
    run(data_dir, "attribute", str(cases), "-o", str(tmp_path / "link"), env=e2e_env)

    assert (tmp_path / "link").is_symlink()
    assert [each["id"] for each in lines(kept)] == ["case-1"]


def test_a_device_can_be_the_output(data_dir, tmp_path, e2e_env):
    cases = write_jsonl(tmp_path / "cases.jsonl", [question(1)])
    done = process(data_dir, "attribute", str(cases), "-o", "/dev/stderr", env=e2e_env)
    assert done.returncode == 0
    assert json.loads(done.stderr)["id"] == "case-1"


def test_wrong_usage_is_refused(data_dir, tmp_path, e2e_env):
    cases = write_jsonl(tmp_path / "cases.jsonl", [question(1)])
    assert "no method" in refused(run(data_dir, "attribute", str(cases), "--method", "guess", env=e2e_env), 2)
    wrong = run(data_dir, "attribute", str(cases), "--value-function", "support/9", env=e2e_env)
    assert "no value function" in refused(wrong, 2)
    assert "no file" in refused(run(data_dir, "attribute", str(tmp_path / "none.jsonl"), env=e2e_env))


def test_an_empty_file_has_an_empty_result(data_dir, tmp_path, e2e_env):
    cases = tmp_path / "cases.jsonl"
    cases.write_bytes(b"\n \n")
    assert cli(data_dir, "attribute", str(cases), env=e2e_env)["results"] == []


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    with Scorer(tmp_path_factory.mktemp("scorer") / "model") as found:
        yield found


class TestLanguageModels:
    """``log_likelihood/1`` with the model of the settings, here behind a server that scores."""

    @pytest.fixture
    def cases(self, tmp_path):
        small = question(1) | {"answer": "Tower number 1 was built in 1801.", "charge": "1.00"}
        texts = [f"Page {i} is about {word}." for i, word in enumerate(["bread", "wool", "ash", "tin"])]
        many = [{"id": str(i), "text": f"{text} Nothing else is {i}."} for i, text in enumerate(texts * 4)]
        large = small | {"id": "large", "passages": [*small["passages"], *many]}
        return write_jsonl(tmp_path / "cases.jsonl", [small, large])

    def test_a_small_case_is_exact_and_a_large_one_estimated(self, data_dir, e2e_env, scorer, cases):
        env = e2e_env | scorer.env
        command = ("attribute", str(cases), "--value-function", "log_likelihood", "--budget", "64")
        printed = run(data_dir, *command, env=env)
        assert printed.returncode == 0, printed.stderr
        small, large = map(json.loads, printed.stdout.splitlines())
        for each in (small, large):
            assert each["value_function"] == "log_likelihood/1"
            assert sum(share["weight"] for share in each["shares"]) + each["model_residual"] == pytest.approx(1)
            assert max(each["shares"], key=lambda share: share["weight"])["passage_id"] == "a"
        assert (small["estimated"], "seed" in small) == (False, False)
        assert (large["estimated"], large["budget"]) == (True, 64)
        assert run(data_dir, *command, env=env).stdout == printed.stdout

    def test_what_is_missing_is_one_line(self, data_dir, e2e_env, scorer, cases):
        command = ("attribute", str(cases), "--value-function", "log_likelihood/1")
        said = refused(run(data_dir, *command, env=e2e_env))
        assert "log_likelihood/1 cannot be computed here: it needs PATRONAGE_LIKELIHOOD_MODEL" in said
        assert "--budget" in refused(run(data_dir, *command, "--budget", "41", env=e2e_env), 2)
        scorer.fails = True
        try:
            failed = refused(run(data_dir, *command, env=e2e_env | scorer.env))
        finally:
            scorer.fails = False
        assert "refuses" in failed
        assert "503" in failed

    def test_a_case_without_an_answer_loses_nothing_else(self, data_dir, tmp_path, e2e_env, scorer):
        cases = write_jsonl(tmp_path / "cases.jsonl", [question(1), question(3)])
        done = run(data_dir, "attribute", str(cases), "--value-function", "log_likelihood", env=e2e_env | scorer.env)
        assert done.returncode == 1
        assert f"rejected: {cases} line 2: log_likelihood/1 needs an answer" in done.stderr
        assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["case-1"]
