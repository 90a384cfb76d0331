"""A drainer as a process of its own that kills itself at a named point."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from redis.commands.core import StreamCommands

from metering import drain, durable, ledger, usage_index
from metering.drain import Drain
from metering.redis.connection import connect
from metering.redis.usage_streams import UsageStreams
from metering.usage_log import UsageLog

POINTS: dict[str, tuple[Any, str, bool]] = {
    "before the lease": (Drain, "_take_lease", False),
    "lease taken": (Drain, "_take_lease", True),
    "batch read": (UsageStreams, "read", True),
    "segment parsed": (drain, "_by_period", True),
    "temporary file written": (Path, "replace", False),
    "file renamed": (Path, "replace", True),
    "folder synced": (durable, "sync_folder", True),
    "mark moved, uncommitted": (usage_index, "add", False),
    "receipts inserted, uncommitted": (usage_index, "add", True),
    "transfers posted, uncommitted": (ledger, "post", True),
    "committed": (Drain, "_register", True),
    "trimmed": (StreamCommands, "xtrim", True),
}
"""The function at which it dies, and whether it has done its work by then."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Let the process die when it comes to the point."""
    owner, name, after = POINTS[point]
    real = getattr(owner, name)

    async def later(*args: Any, **options: Any) -> None:
        if after:
            await real(*args, **options)
        die()

    def now(*args: Any, **options: Any) -> None:
        if after:
            real(*args, **options)
        die()

    setattr(owner, name, later if inspect.iscoroutinefunction(real) or name == "xtrim" else now)


async def main(point: str, redis_url: str, database_url: str, folder: str, deployment: str, shards: str) -> None:
    arm(point)
    engine = sa.create_engine(database_url)
    client = connect(redis_url)
    await Drain(client, engine, UsageLog(Path(folder)), deployment=deployment, shards=int(shards)).drain()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
