"""The habits of those who carry on: the hook, the forms and the devcontainer do what they are for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
ELEMENTS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the hook turned on, whose lint looks for one word in one file."""
    shutil.copytree(ROOT / ".githooks", tmp_path / ".githooks")
    (tmp_path / "Makefile").write_text("lint:\n\t@grep --silent good file\n")
    (tmp_path / "file").write_text("good\n")
    for arguments in (["init"], ["config", "core.hooksPath", ".githooks"], ["add", "--all"]):
        assert git(tmp_path, *arguments).returncode == 0
    return tmp_path


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git as somebody, apart from the settings of this machine."""
    who = {f"GIT_{role}_{what}": "a@b.invalid" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | who
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(["git", "-C", folder, *arguments], env=env, capture_output=True, text=True, check=False)


def test_the_hook_checks_what_is_committed_and_not_what_lies_in_the_folder(repository: Path):
    (repository / "file").write_text("bad\n")
    assert git(repository, "commit", "-m", "the index is good").returncode == 0

    git(repository, "add", "file")
    (repository / "file").write_text("good\n")
    assert git(repository, "commit", "-m", "the index is bad").returncode != 0
    assert git(repository, "rev-list", "--count", "HEAD").stdout.strip() == "1"


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_shows(form: Path):
    found: dict[str, Any] = yaml.safe_load(form.read_text(encoding="utf-8"))
    questions = [part for part in found["body"] if part["type"] != "markdown"]

    assert found["name"]
    assert found["description"]
    assert {part["type"] for part in found["body"]} <= ELEMENTS
    assert questions
    assert len({part["id"] for part in questions}) == len(questions)
    assert all(part["attributes"]["label"] for part in questions)


def test_there_is_a_form_for_a_fault_and_one_for_a_need():
    assert {form.stem for form in FORMS} == {"bug", "change"}


def test_the_devcontainer_makes_what_the_makefile_has():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    make, *targets = container["postCreateCommand"].split()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    oldest = re.search(r'^requires-python = ">=(\d\.\d+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert make == "make"
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert oldest is not None
    assert f"python:{oldest[1]}-" in container["image"]
