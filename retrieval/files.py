"""Files as they are found: which of a folder are looked at, and how they are opened.

Only regular files are opened, and of a folder only those that lie in it: a pipe would be waited for, a device has no
end, and what a link leads to outside was not offered by who named the folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from retrieval.documents import DocumentError

FOLDER_DEPTH_MAX: Final = 64
"""How many folders inside one another are looked into."""

_KINDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in a folder that was not looked at, and that nobody asked for by name."""

    path: str
    reason: str


def shown(path: str | os.PathLike[str]) -> str:
    """A path for people and for JSON: bytes that are no UTF-8, and what is not printable, are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def placed(path: Path) -> str:
    """A file's path from the root, the same however it is written; a link is not what it leads to."""
    return shown(Path(os.path.realpath(path.parent), path.name))


def walk(folder: Path, suffixes: Collection[str], depth: int = 1) -> Iterator[Path | Skipped]:
    """What lies in a folder, in a stable order: files whose names end in ``suffixes``, and what is skipped and why."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield Skipped(shown(folder), f"cannot be read: {error.strerror or error}")
        return
    folders = []
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            yield Skipped(shown(path), "hidden: its name begins with a dot")
        elif entry.is_dir(follow_symlinks=False):
            folders.append(path)
        elif entry.is_symlink() and path.is_dir():
            yield Skipped(shown(path), "a link to a folder: name that folder itself")
        elif path.suffix.lower() not in suffixes:
            yield Skipped(shown(path), unread(path))
        else:
            yield path
    for path in folders:
        if depth >= FOLDER_DEPTH_MAX:
            yield Skipped(shown(path), f"more than {FOLDER_DEPTH_MAX} folders inside one another")
        else:
            yield from walk(path, suffixes, depth + 1)


def unread(path: Path) -> str:
    """That files of this type are not read."""
    return f"files of type {shown(path.suffix.lower()) or 'none'} are not read"


def open_regular(path: Path, inside: Path | None = None) -> tuple[BinaryIO, int]:
    """A regular file, opened without waiting, and its size in bytes.

    Args:
        path: a link is followed, though not out of ``inside``.
        inside: the folder that was named, without links; None where the file itself was.

    Raises:
        OSError: it cannot be opened.
        DocumentError: it is not a regular file, or does not lie in the folder.
    """
    real = Path(os.path.realpath(path, strict=True))
    if inside is not None and not real.is_relative_to(inside):
        raise DocumentError("a link that leads out of the folder")
    _ensure_regular(real.stat().st_mode)  # before it is opened: to open a device can do something
    descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        found = os.fstat(descriptor)
        _ensure_regular(found.st_mode)  # what was opened, whatever took its place meanwhile
        return os.fdopen(descriptor, "rb"), found.st_size
    except BaseException:
        os.close(descriptor)
        raise


def _ensure_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise DocumentError(f"{_KINDS.get(stat.S_IFMT(mode), 'something')}, not a regular file")
