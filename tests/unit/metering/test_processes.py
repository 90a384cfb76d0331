"""Processes: one that lives is never taken for dead, and one that died is found until it is forgotten."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from metering.processes import Processes


def test_one_that_lives_is_not_dead_and_one_that_ended_is_until_it_is_forgotten(tmp_path: Path):
    processes = Processes(tmp_path / "processes")
    assert processes.dead() == []
    with processes.register() as one, processes.register() as other:
        assert one != other
        assert processes.dead() == []
        processes.forget(other)
    assert processes.dead() == [one]
    for _ in range(2):
        processes.forget(one)
    assert processes.dead() == []


def test_one_that_is_killed_is_dead(tmp_path: Path):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # its lock is its own
        with Processes(tmp_path).register() as name:
            os.write(writing, name.encode())
            signal.pause()
    name = os.read(reading, 100).decode()
    assert Processes(tmp_path).dead() == []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert Processes(tmp_path).dead() == [name]
