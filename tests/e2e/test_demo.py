"""``patronage demo``: the main job on real input holds from beginning to end."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from tests.e2e.commands import refused
from tests.e2e.transcripts import MONTH, ROOT, Likeness, steps
from tests.servers import run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The demo, told on standard error beside its JSON."""
    return run(tmp_path_factory.mktemp("demo") / "data", "demo", "--json", env=e2e_env | {"COLUMNS": "200"})


def test_the_demo_is_balanced_valid_and_leaves_its_pages(done: subprocess.CompletedProcess[str]):
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert told["balanced"] is True
    assert told["valid"] is True
    assert told["documents"] > 10
    closed = told["period"]
    assert closed["records"] == told["queries"] > 0
    parts = sum(Decimal(closed[name]["amount"]) for name in ("cost", "platform", "credited", "residual"))
    assert Decimal(closed["charged"]["amount"]) == parts > 0
    earners = [each for each in closed["statements"] if Decimal(each["credited"]["amount"]) > 0]
    assert len(earners) > 1, "several contributors earned"
    assert len(told["pages"]) > len(earners)
    for page in map(Path, told["pages"]):
        assert page.is_relative_to(told["data_dir"])
        assert page.read_text().lstrip().lower().startswith("<!doctype html>")


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the README tells of the documentation of CPython 3.11")
def test_the_demo_prints_what_the_readme_says(done: subprocess.CompletedProcess[str]):
    [demo] = [step for step in steps(ROOT / "README.md") if step.typed == "make demo\n"]
    period = json.loads(done.stdout)["period"]["period"]

    assert Likeness(whole_numbers_differ=True, actual={MONTH: period}).compare(demo.printed, done.stderr) is None


def test_without_the_openai_client_the_demo_says_how_to_get_it(tmp_path: Path):
    program = "import sys; sys.modules['openai'] = None; from serving.cli import main; main()"
    command = [sys.executable, "-c", program, "--data-dir", str(tmp_path / "demo"), "demo"]
    line = refused(subprocess.run(command, capture_output=True, text=True, check=False, timeout=60))

    assert "make demo" in line
    assert "requirements-demo.lock" in line
    assert not (tmp_path / "demo").exists(), "nothing was begun"
