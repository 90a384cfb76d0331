"""The processes that use the data directory: each has a file of its own, locked while it lives.

A lock is the system's, and ends with its process, however that ends. So a file that nobody locks is of a process that
died with something unfinished, and what it held can be given back.
"""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_ID_BYTES: Final = 8
_NEW: Final = "."


class Processes:
    """The folder of their files."""

    def __init__(self, folder: Path) -> None:
        """It is made with the first process."""
        self._folder = folder

    @contextmanager
    def register(self) -> Iterator[str]:
        """An id that no other process has ever had. Its file stays, without its lock, until it is forgotten."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        name = secrets.token_hex(_ID_BYTES)
        new = self._folder / f"{_NEW}{name}"
        with new.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            new.rename(self._folder / name)  # now it can be seen, and is locked
            yield name

    def dead(self) -> list[str]:
        """The processes that ended and were not forgotten."""
        if not self._folder.is_dir():
            return []
        names = [path.name for path in self._folder.iterdir() if not path.name.startswith(_NEW)]
        return sorted(name for name in names if self._is_dead(name))

    def forget(self, name: str) -> None:
        """Nothing of this process is unfinished. Repeating it is harmless."""
        (self._folder / name).unlink(missing_ok=True)

    def _is_dead(self, name: str) -> bool:
        with suppress(FileNotFoundError, BlockingIOError), (self._folder / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        return False
