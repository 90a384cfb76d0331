"""One connection to a Redis server that all tasks share: what they send in one moment goes out together.

redis-py makes the connection (name, TLS, login), and then lends it to one command at a time. Here its transport is
taken over instead: commands are written at the end of the event loop's iteration, and replies belong to the oldest
command that has none. That is a fifth to a tenth of the work for this process, and one task that is cancelled takes no
connection with it (docs/adr/0024).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

_NOTHING: Final = object()

_pack: Any = hiredis.pack_command  # its type says: a tuple of one

Word = str | bytes | int


class Pipe:
    """Connects when it must. Whoever made the connection closes it."""

    def __init__(self, connection: AbstractConnection, timeout_s: float) -> None:
        """``connection`` is nobody else's. A reply is waited for ``timeout_s`` seconds."""
        self._connection: Any = connection
        self._timeout_s = timeout_s
        self._wire: Wire | None = None
        self._connecting: asyncio.Task[Wire] | None = None

    async def wire(self) -> Wire:
        """The connection as it is up now.

        Raises:
            RedisError: it cannot be made.
        """
        if self._wire is not None and not self._wire.lost:
            return self._wire
        if self._connecting is None or self._connecting.done():
            # One task for all that wait, whatever becomes of the first.
            self._connecting = asyncio.create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Wire:
        await self._connection.disconnect(nowait=True)
        await self._connection.connect()
        self._wire = Wire(self._connection, self._timeout_s)
        return self._wire


class Wire(asyncio.Protocol):
    """A connection until it is lost."""

    def __init__(self, connection: AbstractConnection, timeout_s: float) -> None:
        """Takes over what ``connection`` has just opened."""
        writer = connection._writer  # noqa: SLF001 # redis-py has no public name for it
        if writer is None:
            raise RedisConnectionError("the connection was closed as soon as it was open")
        self._transport = writer.transport
        # It still is told of the end, which whoever closes the connection waits for.
        self._streams = self._transport.get_protocol()
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._unsent: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    @property
    def lost(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport.is_closing()

    async def send(self, *command: Word) -> Any:
        """The reply to a command; an error that Redis replies is returned, too.

        Raises:
            RedisConnectionError: the connection was lost. Whether the command was run is not known.
            RedisTimeoutError: so, because a reply took too long.
        """
        if self.lost:
            raise RedisConnectionError("the connection to Redis is closed")
        reply = self._loop.create_future()
        deadline = self._loop.time() + self._timeout_s
        self._waiting.append((deadline, reply))
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(_pack(command))
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._look)
        return await reply

    def close(self) -> None:
        """End it; who still waits is told that it was lost."""
        self._fail(RedisConnectionError("the connection to Redis was closed"))

    def data_received(self, data: bytes) -> None:
        """Give replies to who waits for them."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                if not isinstance(reply, hiredis.PushNotification):
                    _, waiting = self._waiting.popleft()
                    if not waiting.done():
                        waiting.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self._fail(RedisConnectionError(f"Redis replied what is no reply: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all who wait."""
        self._fail(RedisConnectionError(f"the connection to Redis was lost: {exc or 'it was closed'}"))
        self._streams.connection_lost(exc)

    def _flush(self) -> None:
        """Write what came in one iteration of the loop at once: transports write what they are given on its own."""
        data = b"".join(self._unsent)
        self._unsent.clear()
        if not self.lost:  # else who waits has heard so
            self._transport.write(data)

    def _look(self) -> None:
        """Give up if the oldest command has waited too long. One timer does for all."""
        self._timer = None
        if not self._waiting:
            return
        deadline = self._waiting[0][0]
        if deadline > self._loop.time():
            self._timer = self._loop.call_at(deadline, self._look)
        else:
            self._fail(RedisTimeoutError(f"Redis did not reply within {self._timeout_s:g} s"))

    def _fail(self, error: Exception) -> None:
        """End the connection: what comes after a reply that is missing or broken belongs to nobody."""
        while self._waiting:
            _, reply = self._waiting.popleft()
            if not reply.done():
                reply.set_exception(error)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()
