"""Commands of the command line that must be refused."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers import run


def run_all(
    data_dir: Path, cases: Mapping[str, Sequence[str]], env: dict[str, str] | None = None
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run every command on one data directory; gives by name how it ended."""
    return {name: run(data_dir, *arguments, env=env) for name, arguments in cases.items()}


def refused(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """What a command says on standard error, after checking that it was refused as it should be."""
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    assert "bug in Patronage" not in done.stderr, done.stderr
    if status == 1:
        lines = done.stderr.splitlines()
        assert len(lines) == 1, f"not one line: {done.stderr}"
        assert lines[0].startswith("patronage: "), lines[0]
        assert len(lines[0]) > len("patronage: ") + 10, f"not clear: {lines[0]}"
    return done.stderr
