"""What metering costs a query: the same server with metering on and off, one client and many.

On in two ways: every write on disk before it is answered (``always``, the default), or within a second (``everysec``).
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.measure import Result
from tests.servers import Server, cli

QUERIES = 400
ROUNDS = 18
"""Many short ones: what else runs on the machine changes within a minute, and then hurts both."""
TOPICS = 400
SERVERS = {
    "always": ("serving.cli", "always"),
    "everysec": ("serving.cli", "everysec"),
    "off": ("tests.benchmarks.unmetered", "always"),
}


def run() -> Iterable[Result]:
    """Throughput at 1 and 64 clients, and the latency that authorize and capture add."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as servers:
        corpus = corpus_of(Path(scratch))
        urls = {}
        for name, (module, fsync) in SERVERS.items():
            data_dir = Path(scratch) / name
            cli(data_dir, "ingest", str(corpus), "--create-contributors")
            key = cli(data_dir, "customer", "add", "Bench", "--credit", "100000")["api_key"]
            server = Server(data_dir, {"PATRONAGE_REDIS_FSYNC": fsync}, module=(module,))
            urls[name] = (servers.enter_context(server).url, key)
        for clients in (1, 64):
            yield from _compare(urls, clients)


def _compare(urls: dict[str, tuple[str, str]], clients: int) -> Iterable[Result]:
    seconds: dict[str, list[float]] = {name: [] for name in urls}
    latencies: dict[str, list[float]] = {name: [] for name in urls}
    for at in urls.values():
        asyncio.run(load(*at, clients, QUERIES))
    names = list(urls)
    for number in range(ROUNDS):
        # In turn, and each as often at each place: a busy machine hurts all.
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            took, found = asyncio.run(load(*urls[name], clients, QUERIES))
            seconds[name].append(took)
            latencies[name] += found
    plural = "1 client" if clients == 1 else f"{clients} clients"
    rival = "the same server, metering off"
    for name in ("always", "everysec"):
        ours = QUERIES / statistics.median(seconds[name])
        ratio = statistics.median(off / on for on, off in zip(seconds[name], seconds["off"], strict=True))
        yield Result(f"queries, {plural}, {name}", ours, rival, ours / ratio, "/s")
        for quantile, label in ((50, "p50"), (99, "p99")):
            ours, theirs = (_quantile(latencies[each], quantile) for each in (name, "off"))
            yield Result(f"latency {label}, {plural}, {name}", ours, rival, theirs, "ms", more_is_better=False)


def _quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1] * 1000


async def load(url: str, key: str, clients: int, count: int) -> tuple[float, list[float]]:
    """Ask ``count`` questions over ``clients`` connections; the seconds it took, and those of each."""
    host, port = url.removeprefix("http://").split(":")
    numbers = iter(range(count))
    latencies: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for number in numbers:
            body = json.dumps({"question": question(number)}).encode()
            began = time.perf_counter()
            writer.write(
                f"POST /v1/query HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            latencies.append(time.perf_counter() - began)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - began, latencies


def corpus_of(folder: Path) -> Path:
    """A file of small documents by forty contributors."""
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(_document(i)) + "\n" for i in range(TOPICS)))
    return path


def question(number: int) -> str:
    """A question that one of the documents answers."""
    return f"When was the town of Place{number % TOPICS} founded?"


def _document(number: int) -> dict[str, str]:
    text = (
        f"Place{number} is a town on the river Bourne{number % 17}. It was founded in {1000 + number} by settlers from "
        f"the north. Its market is held on the {number % 28 + 1}th of every month. The mill of Place{number} is old."
    )
    return {"id": f"d{number}", "title": f"Place{number}", "text": text, "contributor": f"c{number % 40}"}
