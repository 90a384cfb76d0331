"""The rules of the house, as tests: sizes, the one reader of the environment, and no unfinished work."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("attribution", "metering", "retrieval", "serving")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERY = [*SOURCES, *sorted(path for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.py"))]
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", EVERY, ids=name)
def test_functions_fit_on_a_screen_and_modules_are_one_noun(path):
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_is_left_unfinished_or_unexplained(path):
    text = path.read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError|in production|for now|placeholder|stub)\b", text)
    for line in text.splitlines():
        if "type: ignore" in line:
            assert re.search(r"type: ignore\[[a-z-]+\] # \w+", line), f"no reason: {line.strip()}"
        if "# noqa" in line:
            assert re.search(r"# noqa: [A-Z0-9, ]+", line), f"blanket: {line.strip()}"


def test_only_settings_read_the_environment():
    readers = [
        name(path) for path in SOURCES if re.search(r"\bos\.(environ|getenv)\b|BaseSettings\b", path.read_text())
    ]
    assert readers == ["serving/settings.py"]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("attribution", ("redis", "faiss", "torch", "fastapi", "sqlalchemy", "pyarrow", "onnxruntime")),
        ("attribution.runs.run", ("redis", "faiss", "torch", "fastapi", "sqlalchemy", "pyarrow", "onnxruntime")),
        ("attribution.runs.statements", ("redis", "faiss", "torch", "fastapi", "sqlalchemy", "pyarrow", "onnxruntime")),
        ("metering.records", ("redis", "sqlalchemy", "pyarrow", "numpy")),
        ("retrieval.retriever", ("faiss", "torch", "redis", "fastapi", "transformers")),
        ("serving.cli.entry", ("faiss", "torch", "openai", "uvicorn", "fastapi", "alembic", "onnx", "huggingface_hub")),
    ],
)
def test_a_package_loads_no_more_than_it_needs(package, forbidden):
    code = f"import sys, {package}; print([name for name in {forbidden!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_what_attribution_may_not_import_of_metering_is_all_that_is_not_pure():
    """A list of what is forbidden says nothing of a module that is new."""
    pure = {"formats", "merkle", "money", "periods", "records"}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (forbidden,) = (
        each for each in contracts if each["type"] == "forbidden" and each["source_modules"] == ["attribution"]
    )
    rooms = {
        path.stem for path in (ROOT / "metering").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {f"metering.{room}" for room in rooms - pure - {"__init__"}} == set(forbidden["forbidden_modules"])


def test_every_file_lies_in_a_known_package_and_says_what_is_in_it():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], capture_output=True, cwd=ROOT, check=True
    )
    paths = [Path(line) for line in listed.stdout.decode().splitlines()]
    assert {path.parts[0] for path in paths} == {*PACKAGES, "tests", "tools"}
    vague = {"utils", "util", "common", "helpers", "misc", "shared", "base", "core"}
    assert not [path for path in paths if vague & {path.stem, *path.parts[:-1]}]


def test_every_package_is_installed_explicitly():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in [ROOT / package, *(ROOT / package).rglob("*")]
        if path.is_dir() and (path / "__init__.py").exists()
    }
    assert listed == found
