"""The patronage command line and its server for tests: commands in the tests' own process or as processes."""

from __future__ import annotations

import contextvars
import io
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Self, TypeVar
from unittest.mock import patch

import httpx
import structlog

from metering import periods
from serving.cli import entry
from tests.processes import PATIENCE_SECONDS, ended, start

TLS = ssl.create_default_context()
"""One for all clients: each would read the certificates anew, for longer than most requests take."""
Found = TypeVar("Found")


def cli(data_dir: Path, *arguments: str, env: dict[str, str] | None = None, status: int = 0) -> dict[str, Any]:
    """Run one command with ``--json`` and give its result; the exit status must be ``status``."""
    done = run(data_dir, "--json", *arguments, env=env)
    assert done.returncode == status, f"{arguments}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout) if done.stdout.strip() else {}


def run(data_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command in this process, by the entry point of ``patronage``.

    An interpreter takes longer to start than most commands take. Where it is the process that is tested, because it
    serves, is killed, or runs beside others, there is :func:`process`.
    """
    options = ["--data-dir", str(data_dir), *arguments]
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)
        for errors in ("strict", "backslashreplace")  # as those of a process
    )
    logs = structlog.get_config()
    with patch.dict(os.environ, env or {}), redirect_stdout(out), redirect_stderr(err):
        try:
            status = contextvars.copy_context().run(entry.run, options)
        finally:
            structlog.configure(**logs)
    for each in (out, err):
        each.seek(0)
    return subprocess.CompletedProcess(options, status, out.read(), err.read())


def command(data_dir: Path, *arguments: str) -> list[str]:
    """What starts one command as a process."""
    return [sys.executable, "-m", "serving.cli", "--data-dir", str(data_dir), *arguments]


def process(data_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command as a user would."""
    return subprocess.run(
        command(data_dir, *arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **(env or {})},
    )


def wait_for(condition: Callable[[], Found], seconds: float = PATIENCE_SECONDS) -> Found:
    """Poll until it holds, and give what it then says."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not happen in time: {found!r}"
        time.sleep(0.02)
    return found


def this_period(room_seconds: float = 120) -> str:
    """The month in which what takes no longer than ``room_seconds`` is over; if that is the next one, it has begun."""

    def month(after_seconds: float) -> str:
        return periods.of(int((time.time() + after_seconds) * 1000))

    wait_for(lambda: month(0) == month(room_seconds), room_seconds + PATIENCE_SECONDS)
    return month(0)


class Server:
    """``patronage serve`` as a process, on a free port."""

    def __init__(
        self, data_dir: Path, env: dict[str, str] | None = None, module: Sequence[str] = ("serving.cli",)
    ) -> None:
        """``module`` is what Python runs, with its own first arguments; the command line by default."""
        self.data_dir = data_dir
        self.module = module
        self._env = {"PATRONAGE_SHUTDOWN_GRACE_SECONDS": "0", **(env or {})}
        self.process: ForkServerProcess | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + "-server.log")

    def start(self) -> None:
        arguments = (*self.module, "--data-dir", str(self.data_dir), "serve", "--port", "0")
        self.process = start(*arguments, env=self._env, output=self.log)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            assert self.process.exitcode is None, f"the server ended: {self.log.read_text()[-2000:]}"
            try:
                described = json.loads((self.data_dir / "server.lock").read_text())
                if described["pid"] == self.process.pid:
                    self.url = described["url"]
                    with self.client() as client:
                        if client.get("/health/ready").status_code == 200:
                            return
            except (OSError, ValueError, httpx.HTTPError):
                pass
            time.sleep(0.02)
        raise AssertionError(f"the server is not ready: {self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        if self.process is not None:
            if self.process.exitcode is None:  # the number of one that ended may be another's by now
                self.process.terminate()
            ended(self.process)
            self.process = None

    def kill(self) -> None:
        """``kill -9``."""
        assert self.process is not None
        if self.process.exitcode is None:
            self.process.kill()
        ended(self.process)
        self.process = None

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=TLS, **options)
