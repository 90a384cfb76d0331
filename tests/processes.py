"""Processes of Python modules that start in a fraction of the time that an interpreter takes.

Each is forked from a process that has imported the server, which is two thirds of a start. It has an id, signals, files
and an environment of its own, and is killed like any other; but what libraries read from the environment when they are
loaded, they have read in the environment of the tests. Where a start from nothing is tested, it is a subprocess.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PATIENCE_SECONDS = 60
"""What the slowest machine may take for what is done in a moment. Nothing is measured by it."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["serving.cli.entry", "serving.server"])


def start(module: str, *arguments: str, env: Mapping[str, str], output: Path) -> ForkServerProcess:
    """What ``python -m MODULE ARGUMENT...`` does, with ``env`` beside the variables of this process.

    All that it prints is appended to ``output``.
    """
    found = _FORKS.Process(target=_run, args=(module, arguments, {**os.environ, **env}, output))
    found.start()
    return found


def ended(process: ForkServerProcess) -> int:
    """Wait until it ends; its exit status, or the number of the signal that ended it, below zero."""
    process.join(PATIENCE_SECONDS)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("it did not end in time, and was killed")
    return process.exitcode


def _run(module: str, arguments: tuple[str, ...], environment: dict[str, str], output: Path) -> None:
    with output.open("ab") as sink:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(sink.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
