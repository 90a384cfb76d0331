"""Connecting to Redis: one server, by TCP, TLS or a unix socket, or a cluster, and the same code on each.

How a client is made, what is tried again and for how long, and what a server must have before it may carry money.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    DataError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from metering.meter import MeterUnavailable
from metering.redis.pipe import Pipe, Wire

Acknowledgement = Literal["none", "aof"]

VERSION_MIN: Final = (6, 2)

_CLUSTER_SCHEMES: Final = {"redis+cluster": False, "rediss+cluster": True}
_PORT: Final = 6379
REPLY_SECONDS: Final = 3.0
"""How long Redis may take to reply."""

_CONNECT_TIMEOUT_S: Final = 2.0
# One a running query, with room: the libraries' own limit of 100 would refuse what the server admits.
_CONNECTIONS_MAX: Final = 10_000
# A query that cannot be paid must hear so soon: no long waits. A cluster is asked for its new layout in between.
_RETRIES: Final = 1
_CLUSTER_RETRIES: Final = 3
_ERRORS: Final = (RedisError, RedisClusterException)

# What Redis says, also in the middle of a script's error, and what an operator can do about it.
_HINTS: Final = (
    ("OOM command not allowed", "Redis is out of memory: raise its maxmemory; nothing that was captured is lost"),
    ("MISCONF", "Redis cannot write to its disk: make space"),
    ("READONLY", "Redis is a replica: PATRONAGE_REDIS_URL must lead to the master"),
    ("CLUSTERDOWN", "the Redis Cluster is not whole: a master is down and no replica has taken its place"),
    ("NOPERM", "Redis does not permit it to this user: its ACL needs all commands and keys"),
)


# What a wrong command or script is answered with; redis-py leaves out a leading ERR.
_OURS: Final = re.compile(
    "Error (compiling|running) script|user_script|^wrong number of arguments|^syntax error|^WRONGTYPE|^CROSSSLOT"
)
_STATE: Final = re.compile(
    "OOM|MISCONF|READONLY|CLUSTERDOWN|NOPERM|NOREPLICAS|MASTERDOWN|LOADING|BUSY|TRYAGAIN|SCRIPT KILL"
)


class RedisUnfit(RuntimeError):
    """This Redis must not carry money as it is; the message says what to set."""


class SingleClient(Redis):
    """One server: redis-py's client, and beside it one connection for all scripts."""

    reply_seconds = REPLY_SECONDS
    _pipe: Pipe | None = None

    async def wire(self, _keys: Sequence[str]) -> Wire:
        """The connection for scripts.

        Raises:
            RedisError: it cannot be made.
        """
        if self._pipe is None:
            pool: Any = self.connection_pool
            self._pipe = Pipe(pool.get_available_connection(), self.reply_seconds)
        return await self._pipe.wire()


class ClusterClient(RedisCluster):
    """A cluster: redis-py's client, and beside it one connection to each master for all scripts."""

    reply_seconds = REPLY_SECONDS

    def __init__(self, **options: Any) -> None:
        """Takes what redis-py takes."""
        super().__init__(**options)
        self._pipes: dict[str, Pipe] = {}

    async def wire(self, keys: Sequence[str]) -> Wire | None:
        """The connection for scripts with these keys; None where redis-py must find the way first."""
        await self.initialize()
        node = self.get_node_from_key(keys[0])
        if node is None:
            return None
        if node.name not in self._pipes:
            self._pipes[node.name] = Pipe(node.acquire_connection(), self.reply_seconds)
        try:
            return await self._pipes[node.name].wire()
        except (RedisConnectionError, RedisTimeoutError):
            return None


Client = SingleClient | ClusterClient


@contextmanager
def unavailable_on_failure() -> Iterator[None]:
    """Turn every failure of Redis into :class:`metering.meter.MeterUnavailable`, with a hint where there is one.

    A command that Redis does not understand, or a script that fails, is an error of ours: it stays what it is.
    """
    try:
        yield
    except _ERRORS as error:
        if isinstance(error, DataError) or (isinstance(error, ResponseError) and _is_ours(str(error))):
            raise
        hint = next((hint for sign, hint in _HINTS if sign in str(error)), "Redis does not answer")
        raise MeterUnavailable(f"{hint} ({str(error) or type(error).__name__})") from error
    except AttributeError as error:
        # redis-py closes connections that are in use when a cluster changes, and their streams are None then.
        if error.obj is not None or not _raised_by_redis_py(error):
            raise
        raise MeterUnavailable("Redis does not answer (the connection was closed)") from error


def _is_ours(message: str) -> bool:
    """Whether a command or a script is wrong, and not the state that Redis is in, which a script's error names, too."""
    return _OURS.search(message) is not None and _STATE.search(message) is None


def _raised_by_redis_py(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")).partition(".")[0] == "redis"


def connect(url: str, reply_seconds: float = REPLY_SECONDS) -> Client:
    """A client for ``redis://``, ``rediss://``, ``unix://``, ``redis+cluster://`` or ``rediss+cluster://``.

    A cluster is named by some of its nodes: ``redis+cluster://user:password@host:port,host:port``. Nothing is sent
    yet; the caller closes it. What is not replied to within ``reply_seconds`` counts as away.

    Raises:
        ValueError: it is no such URL.
    """
    scheme = url.partition("://")[0]
    if scheme not in _CLUSTER_SCHEMES:
        single: type[Any] = SingleClient
        client: SingleClient = single.from_url(
            url,
            socket_timeout=reply_seconds,
            socket_connect_timeout=min(reply_seconds, _CONNECT_TIMEOUT_S),
            max_connections=_CONNECTIONS_MAX,
            retry=_retry(_RETRIES),
        )
        client.reply_seconds = reply_seconds
        return client
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    if parts.path not in ("", "/", "/0") or parts.query or not hosts:
        raise ValueError("a cluster is written redis+cluster://[user:password@]host:port[,host:port], database 0 only")
    cluster = ClusterClient(
        startup_nodes=[_node(host) for host in hosts.split(",")],
        username=unquote(name) or None,
        password=unquote(password) or None,
        ssl=_CLUSTER_SCHEMES[scheme],
        require_full_coverage=False,  # the shards of the masters that are there go on
        socket_timeout=reply_seconds,
        socket_connect_timeout=min(reply_seconds, _CONNECT_TIMEOUT_S),
        max_connections=_CONNECTIONS_MAX,
        retry=_retry(_CLUSTER_RETRIES),
    )
    cluster.reply_seconds = reply_seconds
    return cluster


@dataclass(frozen=True, slots=True)
class Server:
    """What one master says of itself. ``fsync`` is empty where it does not tell."""

    address: str
    version: str
    role: str
    eviction: str
    maxmemory: int
    """In bytes; 0 is no limit."""
    appendonly: bool
    fsync: str
    replicas: int
    waitaof: bool

    def faults(self, ack: Acknowledgement) -> list[str]:
        """Why it must not carry money as it is, and what to set."""
        found = []
        if tuple(int(part) for part in self.version.split(".")[:2]) < VERSION_MIN:
            found.append(f"it is Redis {self.version}: install {'.'.join(map(str, VERSION_MIN))} or newer")
        if self.role != "master":
            found.append("it is a replica: PATRONAGE_REDIS_URL must lead to the master")
        if self.eviction != "noeviction":
            found.append(
                f"maxmemory-policy is {self.eviction}, and an evicted key is lost money: "
                "set `maxmemory-policy noeviction`"
            )
        if ack == "aof" and not self.waitaof:
            found.append(
                f"PATRONAGE_REDIS_ACK=aof needs WAITAOF, which Redis {self.version} does not have (7.2 does): "
                "upgrade it, or sync every write with `appendfsync always` and set PATRONAGE_REDIS_ACK=none"
            )
        elif ack == "aof" and not self.appendonly:
            found.append("PATRONAGE_REDIS_ACK=aof needs an append-only file: set `appendonly yes`")
        return found

    def warnings(self) -> list[str]:
        """What an operator should know: money may be lost if the machine fails."""
        found = []
        if not self.appendonly:
            found.append("nothing is written to disk: a restart loses what is not drained; set `appendonly yes`")
        elif self.fsync == "no":
            found.append("the append-only file is synced when the system likes: set `appendfsync everysec` or `always`")
        return found

    def summary(self) -> str:
        """One line for people."""
        disk = f"append-only file, {self.fsync or 'sync unknown'}" if self.appendonly else "no append-only file"
        waits = ", WAITAOF" if self.waitaof else ""
        return f"{self.version} at {self.address}: {self.eviction}, {disk}, {self.replicas} replicas{waits}"


async def examine(client: Client) -> list[Server]:
    """Ask every master what it is.

    Raises:
        MeterUnavailable: one does not answer.
    """
    with unavailable_on_failure():
        if isinstance(client, SingleClient):
            return [await _server(client, _address(client), {})]
        await client.initialize()
        return [await _server(client, node.name, {"target_nodes": node}) for node in client.get_primaries()]


def ensure_fit(servers: Sequence[Server], ack: Acknowledgement) -> None:
    """Refuse a Redis that must not carry money.

    Raises:
        RedisUnfit: one of its masters must not.
    """
    for server in servers:
        faults = server.faults(ack)
        if faults:
            raise RedisUnfit(f"Redis at {server.address} cannot be used: {'; '.join(faults)}")


async def _server(client: Client, address: str, target: dict[str, Any]) -> Server:
    ask: Any = client.execute_command
    info: dict[str, Any] = await ask("INFO", **target)
    try:
        fsync = (await ask("CONFIG GET", "appendfsync", **target)).get("appendfsync", "")
    except ResponseError:  # hosted servers keep their configuration to themselves
        fsync = ""
    try:
        waitaof = any((await ask("COMMAND INFO", "waitaof", **target)) or ())
    except ResponseError:
        waitaof = False
    return Server(
        address=address,
        version=str(info["redis_version"]),
        role=str(info["role"]),
        eviction=str(info.get("maxmemory_policy", "unknown")),
        maxmemory=int(info.get("maxmemory", 0)),
        appendonly=bool(info.get("aof_enabled", 0)),
        fsync=fsync,
        replicas=int(info.get("connected_slaves", 0)),
        waitaof=waitaof,
    )


def _address(client: SingleClient) -> str:
    place = client.connection_pool.connection_kwargs
    return str(place.get("path") or f"{place.get('host', 'localhost')}:{place.get('port', _PORT)}")


def _node(text: str) -> ClusterNode:
    place = urlsplit(f"//{text}")
    if not place.hostname:
        raise ValueError(f"{text!r} names no host")
    return ClusterNode(place.hostname, place.port or _PORT)


def _retry(count: int) -> Retry:
    return Retry(ExponentialBackoff(cap=0.2, base=0.05), count)
