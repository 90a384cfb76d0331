"""What a run says of a test that failed is how to see it fail again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FAILING = """
import os
import pytest

@pytest.mark.parametrize("name", ["it's a name", "other"])
def test_of(name):
    assert (name, os.environ["TZ"]) == ("other", "UTC")

@pytest.fixture
def broken():
    raise OSError

def test_not_begun(broken):
    pass
"""


def test_each_failure_comes_with_a_command_that_repeats_it(tmp_path: Path):
    (tmp_path / "test_failing.py").write_text(FAILING)
    (tmp_path / "conftest.py").write_text("from tests.repeating import pytest_terminal_summary\n")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TZ": "UTC"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "-n", "2"]

    def run(command: list[str], env: dict[str, str]) -> str:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=env).stdout

    printed = run([*command, "--hypothesis-profile=default"], env)
    lines = printed.partition(" to repeat what failed ")[2].splitlines()
    repeats = [line for line in lines if "test_failing.py" in line and " -m pytest " in line]

    assert len(repeats) == 2, printed
    assert all(line.endswith("--hypothesis-profile=default") for line in repeats)
    for line in repeats:
        again = run(["sh", "-c", line], {"PATH": os.environ["PATH"]})
        assert "1 failed" in again or "1 error" in again, again
    passed = run([*command, "-k", "other"], env)
    assert "1 passed" in passed
    assert "to repeat" not in passed
