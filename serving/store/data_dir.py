"""The data directory: where everything lies that is not in an external database or Redis."""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attribution.runs.transparency import Signer
from metering.durable import write_durably

FORMAT: Final = 2
"""A directory of format 2 may hold records of format 2: a version that knows only format 1 must not touch it."""
_MARK: Final = f"{FORMAT}\n".encode()
_COMMAND_SECONDS: Final = 10.0
"""How long a command of an older version is waited for; most take less."""
_PAUSE_SECONDS: Final = 0.05


class DataDirError(RuntimeError):
    """The data directory cannot be used; the message says why and what to do."""


class DataDir:
    """The layout of the data directory."""

    def __init__(self, path: Path) -> None:
        """Makes the directory if it is missing.

        Raises:
            DataDirError: it cannot be made or written, belongs to a newer version, or is used by an older one.
        """
        self.path = path.resolve()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._exclusive("open.lock"):
                self._check_format()
        except OSError as error:
            raise DataDirError(f"data directory {path} cannot be used: {error.strerror or error}") from error

    @property
    def id(self) -> str:
        """Made with the directory, and the same in every copy of it."""
        return (self.path / "ID").read_text().strip()

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.path / "patronage.sqlite3"

    @property
    def redis(self) -> Path:
        """The embedded Redis's folder."""
        return self.path / "redis"

    @property
    def segments(self) -> Path:
        """The usage log."""
        return self.path / "segments"

    @property
    def spool(self) -> Path:
        """Captures that Redis could not take, until it can."""
        return self.path / "spool"

    @property
    def samples(self) -> Path:
        """Sealed texts of the audit by ablation that the database does not have yet."""
        return self.path / "samples"

    @property
    def processes(self) -> Path:
        """A locked file for each process that lives."""
        return self.path / "processes"

    @property
    def models(self) -> Path:
        """Model files made from packaged weights."""
        return self.path / "models"

    def run(self, period: str) -> Path:
        """The folder of a period's run."""
        return self.path / "runs" / period

    def parts(self, period: str) -> Path:
        """The folder of what a period's run computed so far."""
        return self.path / "parts" / period

    def signer(self, name: str) -> Signer:
        """The operator's signing key, made on first use."""
        with self._exclusive("keys.lock"):
            return Signer.load_or_create(self.path / "keys" / "signing.pem", name)

    def encryption_key(self) -> bytes:
        """The key that stored responses are encrypted with, made on first use."""
        path = self.path / "keys" / "encryption.key"
        with self._exclusive("keys.lock"):
            if not path.exists():
                path.parent.mkdir(exist_ok=True, mode=0o700)
                temporary = path.with_suffix(".tmp")
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(AESGCM.generate_key(256))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.rename(path)
            return path.read_bytes()

    def generation(self) -> str:
        """The generation of the server that used the directory last; empty where none of this version has."""
        path = self.path / "INSTANCE"
        return path.read_text().strip() if path.exists() else ""

    def keep_generation(self, generation: str) -> None:
        """Remember the generation, so that a copy is told from what was used since."""
        if generation != self.generation():
            write_durably(self.path / "INSTANCE", f"{generation}\n".encode())

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Held while the database is opened, so that one process at a time migrates it."""
        with self._exclusive("open.lock"):
            yield

    @contextmanager
    def closing(self) -> Iterator[bool]:
        """Held while a period is closed, by one caller at a time; gives whether it is this one, and never waits."""
        with (self.path / "closing.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    @contextmanager
    def serving(self, description: dict[str, Any]) -> Iterator[None]:
        """Held by the one server that uses the directory; ``description`` tells others where it listens.

        Raises:
            DataDirError: another server uses it.
        """
        with self._without("another server") as lock:
            lock.truncate(0)
            lock.write(json.dumps(description))
            lock.flush()
            try:
                yield
            finally:
                lock.truncate(0)

    def _check_format(self) -> None:
        marker = self.path / "FORMAT"
        if not marker.exists():
            write_durably(self.path / "ID", f"{uuid.uuid4().hex}\n".encode())
            write_durably(marker, _MARK)
            return
        written = marker.read_text().strip()
        if not written.isdecimal() or not 1 <= int(written) <= FORMAT:
            raise DataDirError(
                f"data directory {self.path} has format {written[:20] or 'unknown'}, this version knows {FORMAT}: "
                "upgrade Patronage"
            )
        if int(written) < FORMAT:
            # Either would drain new records by its own rules.
            with self._without("a server of an older version"), self._without_commands():
                write_durably(marker, _MARK)

    @contextmanager
    def _without_commands(self) -> Iterator[None]:
        """While no command uses the embedded Redis; one that ends meanwhile is waited for."""
        if not self.redis.is_dir():
            yield
            return
        deadline = time.monotonic() + _COMMAND_SECONDS
        with (self.redis / "users.lock").open("ab") as users:
            while True:
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise DataDirError(
                            f"data directory {self.path} is in use by a command of an older version: let it end, "
                            "then try again"
                        ) from None
                    time.sleep(_PAUSE_SECONDS)
                else:
                    break
            yield

    @contextmanager
    def _without(self, server: str) -> Iterator[IO[str]]:
        with (self.path / "server.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise DataDirError(
                    f"data directory {self.path} is in use by {server} ({lock.read() or 'starting'}): "
                    "stop it, or choose another --data-dir"
                ) from None
            yield lock

    @contextmanager
    def _exclusive(self, name: str) -> Iterator[None]:
        with (self.path / name).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
