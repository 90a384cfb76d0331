"""Where tests write: a file system in memory where there is room, as half of what tests wait for is a disk's sync.

Nothing here tests what a power cut leaves; what a killed process leaves is the same on either.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")  # noqa: S108 a folder of random name is made in it
_ROOM = 6 << 30
"""Bytes that have to be free: a whole run leaves a third of that."""
_FOLDER = pytest.StashKey[Path]()


def memory() -> Path | None:
    """A folder in memory, if it has room."""
    return _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ROOM else None


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder, unless `--basetemp` names one; the processes of a run are given folders in it."""
    if config.option.basetemp is None and (parent := memory()) is not None:
        folder = Path(tempfile.mkdtemp(prefix="pt-", dir=parent))  # short: the path of a socket has 100 characters
        config.stash[_FOLDER] = folder
        config.option.basetemp = str(folder / "t")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the memory back; `--basetemp=FOLDER` keeps what tests wrote."""
    if (folder := config.stash.get(_FOLDER, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)
