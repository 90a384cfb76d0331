"""Paying customers beside hostile callers: what each of these does to the queries of eight clients and to readiness.

``python -m tests.benchmarks.hostile [NAME...]``. Undisturbed and disturbed in turn, on one server, in one run.
"""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.table import Table

from tests.benchmarks.metering import corpus_of, load
from tests.servers import TLS, Server, cli

CLIENTS = 8
QUERIES = 240
PATIENCE_S = 30.0
_LONG = "The keeper of the lighthouse writes down the weather of every morning. " * 10
_MODEL = "all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class Target:
    """What a hostile caller knows."""

    url: str
    database: str
    customer: str
    contributor: str
    operator: str

    def post(self, key: str, path: str, body: object, **headers: str) -> None:
        """Send a request and wait for whatever becomes of it."""
        given = {"authorization": f"Bearer {key}", **headers} if key else headers
        with suppress(httpx.HTTPError):
            httpx.post(f"{self.url}{path}", json=body, headers=given, timeout=PATIENCE_S, verify=TLS)

    def connect(self) -> socket.socket:
        """A connection that says nothing yet."""
        parts = urlsplit(self.url)
        return socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S)


def embeddings(target: Target) -> None:
    """The longest list of texts that is taken."""
    target.post(target.customer, "/v1/embeddings", {"model": _MODEL, "input": [_LONG] * 2_048})


def replays(target: Target) -> None:
    """The same key again and again, eight at a time."""
    body = {"model": _MODEL, "input": [_LONG] * 16}
    header = {"idempotency-key": "again"}
    with ThreadPoolExecutor(8) as threads:
        for _ in range(32):
            threads.submit(target.post, target.customer, "/v1/embeddings", body, **header)


def refusals(target: Target) -> None:
    """A model that there is not, eight at a time."""
    with ThreadPoolExecutor(8) as threads:
        for _ in range(32):
            threads.submit(target.post, target.customer, "/v1/query", {"question": "When?", "model": "none"})


def reads(target: Target) -> None:
    """The usage, which is looked up in the database, eight at a time."""
    _reading(target, target.customer, "/v1/usage")


def strangers(target: Target) -> None:
    """A key that nobody has, eight at a time."""
    _reading(target, "patronage-customer-nobody", "/v1/account")


def _reading(target: Target, key: str, path: str) -> None:
    header = {"authorization": f"Bearer {key}"}
    with (
        httpx.Client(base_url=target.url, headers=header, timeout=PATIENCE_S) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        list(threads.map(lambda _: client.get(path), range(500)))


def numbers(target: Target) -> None:
    """4 MB of numbers where texts should be."""
    target.post(target.customer, "/v1/embeddings", {"model": _MODEL, "input": [1] * 2_000_000})


def uploads(target: Target) -> None:
    """Six texts of 150 kB at once by one contributor."""
    with ThreadPoolExecutor(6) as threads:
        for number in range(6):
            text = f"Number {number}, {time.time()}. " + "\n\n".join([_LONG] * 210)
            threads.submit(target.post, target.contributor, "/v1/documents", {"id": f"c0/{number}", "text": text})


def headers(target: Target) -> None:
    """An unfinished header of 100 MB."""
    with target.connect() as connection, suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        for _ in range(100):
            connection.sendall(b"a" * 1_000_000)


def half_open(target: Target) -> None:
    """Three hundred connections that say nothing."""
    held = []
    with suppress(OSError):
        held = [target.connect() for _ in range(300)]
        time.sleep(5)
    for each in held:
        each.close()


def bodies(target: Target) -> None:
    """16 MB of JSON without a key."""
    with target.connect() as connection, suppress(OSError):
        head = (
            "POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 15900000\r\n\r\n"
        )
        connection.sendall(head.encode() + b"[" + b"1," * 7_949_999 + b"1")
        connection.recv(1_000)


def readiness(target: Target) -> None:
    """Five hundred times whether it is ready, sixteen at a time."""
    with httpx.Client(base_url=target.url, timeout=PATIENCE_S) as client, ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: client.get("/health/ready"), range(500)))


def lock(target: Target) -> None:
    """A write lock on SQLite for 4 s, then a second for the others, and one who writes meanwhile."""
    connection = sqlite3.connect(target.database, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    threading.Thread(target=target.post, args=(target.operator, "/v1/admin/customers", {"name": "New"})).start()
    time.sleep(4)
    connection.execute("ROLLBACK")
    connection.close()
    time.sleep(1)


def elsewhere(_: Target) -> None:
    """Nothing: the caller computes for itself, so the row says what sharing the processor with any caller costs."""
    sum(range(50_000_000))


CALLERS: dict[str, Callable[[Target], None]] = {
    each.__name__: each
    for each in (
        elsewhere,
        embeddings,
        replays,
        refusals,
        reads,
        strangers,
        numbers,
        uploads,
        headers,
        half_open,
        bodies,
        readiness,
        lock,
    )
}


def again_and_again(name: str, target: Target) -> None:
    """Be a hostile caller until the process is killed."""
    while True:
        with suppress(Exception):
            CALLERS[name](target)


def _readiness_of(url: str, over: threading.Event, found: list[float]) -> None:
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        while not over.wait(0.1):
            began = time.perf_counter()
            with suppress(httpx.HTTPError):
                client.get("/health/ready")
            found.append(time.perf_counter() - began)


def _measured(url: str, key: str) -> tuple[list[float], list[float], str]:
    """Seconds of each query and of each look at readiness, and what went wrong."""
    ready: list[float] = []
    over = threading.Event()
    looking = threading.Thread(target=_readiness_of, args=(url, over, ready))
    looking.start()
    latencies: list[float] = []
    wrong = ""
    try:
        _, latencies = asyncio.run(asyncio.wait_for(load(url, key, CLIENTS, QUERIES), PATIENCE_S))
    except (AssertionError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        wrong = f"{type(error).__name__} {str(error)[:60]}"
    over.set()
    looking.join()
    return latencies, ready, wrong


def _p99_ms(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98] * 1_000 if len(values) > 1 else float("nan")


def main(names: list[str]) -> int:
    """Measure beside each hostile caller, or those that are named."""
    table = Table("beside", "p99 ms", "undisturbed p99", "ratio", "readiness p99 ms", "its max", "failure", box=None)
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = Path(scratch) / "data"
        cli(data_dir, "ingest", str(corpus_of(Path(scratch))), "--create-contributors")
        paying, hostile = (
            cli(data_dir, "customer", "add", name, "--credit", "10000")["api_key"] for name in ("Paying", "Hostile")
        )
        contributor = cli(data_dir, "key", "add", "contributor", "c0")["api_key"]
        operator = cli(data_dir, "operator", "add", "Operator")["api_key"]
        with Server(data_dir) as server:
            (database,) = data_dir.glob("*.sqlite3")
            target = Target(server.url, str(database), hostile, contributor, operator)
            _measured(server.url, paying)
            for name in names or CALLERS:
                calm, _, wrong = _measured(server.url, paying)
                assert not wrong, wrong
                caller = get_context("spawn").Process(target=again_and_again, args=(name, target), daemon=True)
                caller.start()
                time.sleep(2.5)
                latencies, ready, wrong = _measured(server.url, paying)
                caller.kill()
                caller.join()
                p99, undisturbed = _p99_ms(latencies), _p99_ms(calm)
                row = f"{p99:.0f}", f"{undisturbed:.0f}", f"{p99 / undisturbed:.1f}", f"{_p99_ms(ready):.0f}"
                table.add_row(name, *row, f"{max(ready, default=0) * 1_000:.0f}", wrong)
                time.sleep(3)
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
