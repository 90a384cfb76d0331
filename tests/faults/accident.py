"""The command line of Patronage with accidents at named points, in a process of its own.

``python -m tests.faults.accident ACCIDENT ARGUMENT...``, where ACCIDENT is the JSON of :class:`Accident`. The function
is wrapped where it is looked up; the accident happens before or after its n-th call, and leaves a marker behind, so
that a test knows that it did happen. ACCIDENT may be a file instead: what is in it is met from SIGUSR1 on, see
:func:`arm`.
"""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal

import psutil
import sqlalchemy as sa

from tests.processes import ended, start
from tests.servers import wait_for

Action = Literal["kill", "kill-redis", "stop-redis", "disk-full", "busy", "stop"]


@dataclass(frozen=True, slots=True)
class Accident:
    """What happens, and where."""

    target: str
    """``module:name`` or ``module:Class.name``: where the function is looked up."""
    when: Literal["before", "after"]
    action: Action
    nth: int = 1
    within: str = ""
    """Count only calls with a function of this name on the stack."""
    times: int = 1
    """How many calls in a row fail, for the errors."""
    marker: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class _Hook:
    def __init__(self, accident: Accident) -> None:
        self._accident = accident
        self._calls = 0
        self._lock = threading.Lock()

    def install(self) -> None:
        module, _, path = self._accident.target.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def later(*args: Any, **kwargs: Any) -> Any:
                due = self._due()
                if due and self._accident.when == "before":
                    self._happen()
                result = await function(*args, **kwargs)
                if due and self._accident.when == "after":
                    self._happen()
                return result

            return later

        @functools.wraps(function)
        def now(*args: Any, **kwargs: Any) -> Any:
            due = self._due()
            if due and self._accident.when == "before":
                self._happen()
            result = function(*args, **kwargs)
            if due and self._accident.when == "after":
                self._happen()
            return result

        return now

    def _due(self) -> bool:
        accident = self._accident
        if accident.within and not _on_stack(accident.within):
            return False
        with self._lock:
            self._calls += 1
            return accident.nth <= self._calls < accident.nth + accident.times

    def _happen(self) -> None:
        with Path(self._accident.marker).open("a") as marker:
            marker.write("x")
            marker.flush()
            os.fsync(marker.fileno())
        match self._accident.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            case "kill-redis":
                _redis().kill()
            case "stop-redis":
                redis = _redis()
                redis.suspend()
                threading.Timer(5.0, redis.resume).start()
            case "disk-full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "busy":
                raise sa.exc.OperationalError("statement", {}, Exception("database is locked"))


def _on_stack(name: str) -> bool:
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == name:
            return True
        frame = frame.f_back
    return False


def _redis() -> psutil.Process:
    """The server to harm: named by its process id, or the embedded one, by the folder it serves."""
    named = os.environ.get("PATRONAGE_TEST_REDIS_PID")
    if named:
        return psutil.Process(int(named))
    return redis_of(Path(sys.argv[sys.argv.index("--data-dir") + 1]))


def killed(data_dir: Path, env: Mapping[str, str], accident: Accident, *arguments: str) -> None:
    """Run a command as a process that an accident kills."""
    happened, output = data_dir.with_name("happened"), data_dir.with_name("killed.log")
    happened.unlink(missing_ok=True)
    accident = replace(accident, marker=str(happened))
    options = (accident.to_json(), "--data-dir", str(data_dir), *arguments)
    process = start("tests.faults.accident", *options, env=env, output=output)
    assert (ended(process), happened.exists()) == (-signal.SIGKILL, True), output.read_text()


def arm(process: ForkServerProcess, file: Path, accident: Accident) -> None:
    """Let a process that was started with ``file`` meet an accident from now on; its calls are counted from now on."""
    whole = file.with_suffix(".new")
    whole.write_text(accident.to_json())
    whole.rename(file)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGUSR1)
    wait_for(lambda: not file.exists())


def _arm_itself(file: Path) -> None:
    def meet(*_: object) -> None:
        _Hook(Accident(**json.loads(file.read_text()))).install()
        file.unlink()

    signal.signal(signal.SIGUSR1, meet)


def redis_of(data_dir: Path) -> psutil.Process:
    """The embedded ``redis-server`` of a data directory: it names its socket in its title."""

    def serves(process: psutil.Process) -> bool:
        command = " ".join(process.info["cmdline"] or ())
        return bool(process.info["name"] == "redis-server" and str(data_dir) in command)

    return wait_for(lambda: [*filter(serves, psutil.process_iter(["name", "cmdline"]))])[0]


if __name__ == "__main__":
    first = sys.argv.pop(1)
    if first.startswith("{"):
        _Hook(Accident(**json.loads(first))).install()
    else:
        _arm_itself(Path(first))
    from serving.cli.entry import main

    main()
