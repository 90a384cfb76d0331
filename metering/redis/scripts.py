"""The Lua scripts: how one gets to the server that has its keys, and whose books it is run on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any, Final

from redis.asyncio.cluster import PipelineCommand
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from metering.meter import MeterLost
from metering.redis import keys
from metering.redis.connection import Client, SingleClient, unavailable_on_failure

_SYNC_PART: Final = 2 / 3
"""How much of the time that a reply may take a capture waits for the disk, where that is asked for."""

_ELSEWHERE: Final = (
    NoScriptError, MovedError, AskError, TryAgainError, ClusterDownError, RedisConnectionError, RedisTimeoutError,
)  # fmt: skip

Word = str | bytes | int


class Scripts:
    """Scripts that are run only where Redis carries this deployment's books."""

    def __init__(self, client: Client, deployment: str, names: Iterable[str]) -> None:
        """``deployment`` is the id that the books carry; ``names`` are the scripts' files, without their suffix."""
        self._deployment = deployment
        self._scripts = {name: Script(client, name) for name in names}

    async def run(
        self, name: str, shard: int, names: Sequence[str], args: Sequence[Word], *, synced: bool = False
    ) -> list[Any]:
        """Run a script on a shard. It may be run twice, so it must be harmless to repeat.

        Args:
            name: of the script.
            shard: whose keys it touches.
            names: the keys behind the deployment's own, in the order of the script's head.
            args: the arguments behind the deployment's id, in that order.
            synced: wait until its writes are on disk, see :meth:`Script.synced`.

        Raises:
            MeterUnavailable: Redis does not answer; whether the script was run is not known.
            MeterLost: Redis does not carry this deployment's books; nothing was changed.
        """
        script = self._scripts[name]
        run = script.synced if synced else script
        with unavailable_on_failure():
            reply = await run(keys=[keys.deployment(shard), *names], args=[self._deployment, *args])
        if reply[0] == b"lost":
            raise MeterLost("Redis does not hold this deployment's accounts (flushed, or another server)")
        return reply


class Script:
    """A Lua script of ``metering.redis.lua``, behind the prelude that all of them share."""

    def __init__(self, client: Client, name: str) -> None:
        """``name`` is the file's, without its suffix."""
        lua = files("metering.redis.lua")
        self._client = client
        self._text = (lua / "_prelude.lua").read_text() + (lua / f"{name}.lua").read_text()
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, *, keys: Sequence[str], args: Sequence[Word]) -> list[Any]:
        """Run it where its keys are. It may be run twice, so it must be harmless to repeat.

        Raises:
            RedisError, RedisClusterException: it was not run, or its answer was lost.
        """
        wire = await self._client.wire(keys)
        if wire is not None:
            with suppress(RedisConnectionError):
                reply = await wire.send("EVALSHA", self._sha, len(keys), *keys, *args)
                if not isinstance(reply, Exception):
                    return list(reply)
                if "READONLY" in str(reply):
                    wire.close()  # it leads to a master that was deposed
        return await self._sent(keys, args)

    async def _sent(self, keys: Sequence[str], args: Sequence[Word]) -> list[Any]:
        """Run it by redis-py, which connects anew, follows a cluster that moves, and raises what Redis replies."""
        client: Any = self._client
        try:
            try:
                reply: list[Any] = await client.evalsha(self._sha, len(keys), *keys, *args)
            except NoScriptError:
                # Its scripts were flushed, or it is another server since a failover. EVAL loads what it runs.
                reply = await client.eval(self._text, len(keys), *keys, *args)
        except ResponseError as error:
            if "READONLY" in str(error) and isinstance(client, SingleClient):
                # Connected to a master that was deposed: the next connection asks the name's address again.
                await client.connection_pool.disconnect(inuse_connections=False)
            raise
        return reply

    async def synced(self, *, keys: Sequence[str], args: Sequence[Word]) -> list[Any]:
        """Run it, and wait until its writes are in the append-only file on disk: one round trip, one connection.

        The script is repeated if the cluster has moved or the connection broke, so it must be harmless to repeat,
        and must write something each time: Redis waits for what the connection itself has written.

        Raises:
            RedisError, RedisClusterException: as when it is called; also if the disk takes too long.
        """
        run = ("EVALSHA", self._sha, len(keys), *keys, *args)
        sync_ms = round(self._client.reply_seconds * 1000 * _SYNC_PART)
        wait = ("WAITAOF", 1, 0, sync_ms)
        reply, synced = await self._together(keys[0], run, wait)
        if isinstance(reply, _ELSEWHERE):
            await self(keys=keys, args=args)  # to the right server, which knows the script from then on
            reply, synced = await self._together(keys[0], run, wait)
        for answer in (reply, synced):
            if isinstance(answer, Exception):
                raise answer
        if synced[0] < 1:
            raise RedisTimeoutError(f"the append-only file was not synced within {sync_ms} ms")
        return list(reply)

    async def _together(self, key: str, *commands: tuple[Word, ...]) -> list[Any]:
        """The replies to commands that are sent together on one connection; errors among them."""
        try:
            if isinstance(self._client, SingleClient):
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                return await pipeline.execute(raise_on_error=False)
            await self._client.initialize()
            node = self._client.get_node_from_key(key)
            if node is None:
                raise RedisConnectionError(f"no node of the cluster has the slot of {key}")
            batch = [PipelineCommand(place, *command) for place, command in enumerate(commands)]
            await node.execute_pipeline(batch)
            return [command.result for command in batch]
        except (RedisConnectionError, RedisTimeoutError) as error:
            return [error] * len(commands)
