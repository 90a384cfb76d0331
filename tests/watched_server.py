"""The server with a guard on its event loop: what would let every caller wait is written to a file.

That is SQL, and files that are opened, listed, renamed or deleted, where an event loop runs in the same thread. It is
found by what is done and not by how long it took, so no processor is too fast for it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serving.cli.entry import main

REPORT = "PATRONAGE_TESTS_LOOP_REPORT"
"""The variable that names the file."""
_FILES = {"open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir", "os.truncate", "sqlite3.connect"}
_ONCE = ("/proc/", "/dev/", "/sys/", sys.base_prefix, str(Path(sa.__file__).parents[1]))
"""No disk; and what libraries read of themselves once, as FastAPI does of a handler's source (``.py``)."""


def guard(report: int) -> None:
    """Write to the descriptor ``report`` from now on."""

    def note(what: str) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        places, frame = [], sys._getframe(2)  # `traceback` reads files itself
        while frame is not None:
            if "site-packages" not in (name := frame.f_code.co_filename):
                places.append(f"{Path(name).name}:{frame.f_lineno}")
            frame = frame.f_back
        os.write(report, f"{what[:120]!r} in {' < '.join(places[:6])}\n".encode())

    def on_audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FILES and not str(arguments[0]).startswith(_ONCE) and not str(arguments[0]).endswith(".py"):
            note(f"{event} {arguments[0]}")

    def on_sql(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        note(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", on_sql)
    sys.addaudithook(on_audit)


if __name__ == "__main__":
    guard(os.open(os.environ[REPORT], os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    main()
