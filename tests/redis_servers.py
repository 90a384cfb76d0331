"""Redis servers for tests, of our own and on loopback: one that runs outside of Patronage, and a cluster of three."""

from __future__ import annotations

import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from metering.redis.server import find_redis_server
from tests.servers import PATIENCE_SECONDS

SLOTS = 16_384
MASTERS = 3
_BUS = 10_000  # a cluster's nodes talk to each other on this port and theirs


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Poll until it holds; a Redis that does not answer is one for which it does not hold yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (RedisError, OSError):
            pass
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


class RedisProcess:
    """One ``redis-server`` on a port of loopback; it can be killed and started again on its data."""

    def __init__(self, *options: str) -> None:
        self.port = _free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="patronage-redis-")
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.client = Redis(port=self.port, retry=Retry(NoBackoff(), 0))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}"

    def start(self) -> None:
        binary = find_redis_server()
        assert binary is not None
        command = [str(binary), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder.name,
                   "--save", "", "--appendonly", "yes", "--logfile", "redis.log", *self._options]  # fmt: skip
        self._process = subprocess.Popen(command)
        until(lambda: bool(self.client.ping()), "redis-server answers")

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)
            self._process = None

    def close(self) -> None:
        """End it and delete its data."""
        self.kill()
        self.client.close()
        self._folder.cleanup()


class RedisClusterProcesses:
    """A Redis Cluster: masters with all slots between them, and replicas that are added where a test needs one."""

    def __init__(self) -> None:
        self.nodes = [RedisProcess(*_CLUSTER) for _ in range(MASTERS)]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.nodes)

    def start(self) -> None:
        """Start the masters, divide the slots, introduce them to each other, and wait until they agree."""
        for place, node in enumerate(self.nodes):
            node.start()
            first, after = place * SLOTS // MASTERS, (place + 1) * SLOTS // MASTERS
            node.client.execute_command("CLUSTER ADDSLOTS", *range(first, after))
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", place + 1)
            node.client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
        self.wait(self.nodes)

    def wait(self, nodes: Sequence[RedisProcess]) -> None:
        """Wait until the nodes know each other and say that every slot is served."""
        for node in nodes:
            until(lambda node=node: self._agrees(node, len(nodes)), "the cluster's nodes agree")

    def add_replica(self, master: RedisProcess) -> RedisProcess:
        """Start a replica of a master and wait until it has its data."""
        replica = RedisProcess(*_CLUSTER)
        replica.start()
        replica.client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
        self.wait([*self.nodes, replica])
        name = master.client.execute_command("CLUSTER MYID")
        until(lambda: bool(replica.client.execute_command("CLUSTER REPLICATE", name)), "the replica knows its master")
        until(lambda: replica.client.info("replication")["master_link_status"] == "up", "the replica has the data")
        return replica

    def owner(self, key: str) -> RedisProcess:
        """The master that serves a key's slot when nothing has moved."""
        slot = int(self.nodes[0].client.execute_command("CLUSTER KEYSLOT", key))
        return self.nodes[slot * MASTERS // SLOTS]

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    @staticmethod
    def _agrees(node: RedisProcess, count: int) -> bool:
        info = node.client.execute_command("CLUSTER INFO")
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == count


@contextmanager
def external(*options: str) -> Iterator[RedisProcess]:
    """A server that runs outside of Patronage."""
    server = RedisProcess(*options)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextmanager
def cluster() -> Iterator[RedisClusterProcesses]:
    """A cluster of three masters."""
    with ExitStack() as stack:
        found = RedisClusterProcesses()
        stack.callback(found.close)
        found.start()
        yield found


def flush(servers: Sequence[RedisProcess]) -> None:
    """Empty them: the tests of one session are different deployments."""
    for server in servers:
        server.client.flushall()


# Synced at every write: with everysec, a node that is killed may have lost what it acknowledged.
_CLUSTER = (
    "--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-require-full-coverage", "no",
    "--appendfsync", "always",
)  # fmt: skip


def _free_port() -> int:
    """A port that is free, also for the cluster's bus. Below those of outgoing connections: none takes a dead one's."""
    while True:
        port = 11_000 + secrets.randbelow(11_000)
        try:
            for number in (port, port + _BUS):
                with socket.socket() as found:
                    found.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
