"""At the end of a run, the command that repeats each test that failed: what was asked, and what decides its outcome."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

_DECIDES = re.compile("PATRONAGE_|OPENBLAS_|OMP_|MKL_|(TZ|LANG|LC_ALL|TMPDIR|PYTHONHASHSEED|PYTHONPATH)$")
"""Variables of the environment that change what tests compute."""
_OPTIONS = ("hypothesis-profile", "hypothesis-seed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print a command for each test that failed or could not be set up."""
    reports = [each for kind in ("failed", "error") for each in terminalreporter.stats.get(kind, ())]
    failed = list(dict.fromkeys(each.nodeid for each in reports))
    if failed:
        terminalreporter.section("to repeat what failed")
        for line in _commands(failed, config):
            terminalreporter.write_line(line)


def _commands(failed: Sequence[str], config: pytest.Config) -> list[str]:
    environment = [f"{name}={shlex.quote(value)}" for name, value in os.environ.items() if _DECIDES.match(name)]
    interpreter = Path(sys.executable)
    if interpreter.is_relative_to(config.rootpath):
        interpreter = interpreter.relative_to(config.rootpath)
    given = {name: config.getoption(f"--{name}") for name in _OPTIONS}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    start = " ".join([*environment, str(interpreter), "-m", "pytest"])
    return [" ".join([start, shlex.quote(each), *options]) for each in failed]
