"""A Redis 6.2 that has WAITAOF: a proxy in front of a real server that answers this one command itself.

Packages carry no Redis with WAITAOF whose licence would do, and what is to be shown here is the client's part: that it
waits on the connection that has written, and what it does when the disk is slow. Where a ``redis-server`` of 7.2 or
newer is on the PATH, tests/contracts/test_meter.py waits on the real one.
"""

from __future__ import annotations

import asyncio
from typing import Self

_END = b"\r\n"
_WAITAOF = b"WAITAOF"


class SyncingProxy:
    """In front of the server at ``port``. ``synced`` is what WAITAOF answers: 1, or 0 when it takes too long."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.synced = 1
        self.waited_after: list[bytes] = []
        """For each WAITAOF the command before it on the same connection."""
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, asks = await asyncio.open_connection("127.0.0.1", self._upstream)
        before = b""
        try:
            while True:
                raw, name = await _command(reader)
                if name == _WAITAOF:
                    self.waited_after.append(before)
                    writer.write(b"*2\r\n:%d\r\n:0\r\n" % self.synced)
                elif name == b"COMMAND" and _WAITAOF.lower() in raw:
                    writer.write(b"*1\r\n*1\r\n$7\r\nwaitaof\r\n")
                else:
                    asks.write(raw)
                    writer.write(await _reply(answers))
                before = name
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            asks.close()
            writer.close()


async def _command(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One command as it was sent, and its name."""
    raw = await _reply(reader)
    return raw, raw.split(_END)[2].upper()


async def _reply(reader: asyncio.StreamReader) -> bytes:
    """One value of the Redis protocol, as bytes."""
    line = await reader.readuntil(_END)
    kind, rest = line[:1], line[1:-2]
    if kind in b"$=!" and rest != b"-1":
        return line + await reader.readexactly(int(rest) + len(_END))
    count = int(rest) if kind in b"*~>%" and rest != b"-1" else 0
    for _ in range(count * 2 if kind == b"%" else count):
        line += await _reply(reader)
    return line
