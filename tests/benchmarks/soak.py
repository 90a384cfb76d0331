"""A soak: full load, a random kill -9 every 30 seconds, and at the end every book must balance.

``python -m tests.benchmarks.soak [--minutes 20] [--clients 16] [--seed 1] [--hostile]``. Kills the server or its Redis;
every customer goes on asking, with ``--hostile`` beside all hostile callers at once. Prints one JSON object: what was
acknowledged, lost and doubled, the audit, memory, open files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from dataclasses import replace
from decimal import Decimal
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.benchmarks.hostile import CALLERS, Target, again_and_again
from tests.benchmarks.metering import corpus_of, question
from tests.faults.accident import redis_of
from tests.servers import Server, cli

CREDIT = 1_000_000


class Customer(threading.Thread):
    """Asks without pause; remembers the charge of every answer that was acknowledged."""

    def __init__(self, server: Server, key: str, number: int) -> None:
        super().__init__(daemon=True)
        self.server, self.key, self.number = server, key, number
        self.over = threading.Event()
        self.charges: dict[str, Decimal] = {}
        self.doubled = 0
        self.statuses: dict[int, int] = {}

    def run(self) -> None:
        while not self.over.is_set():
            try:
                with self.server.client(self.key) as client:
                    self.ask(client)
            except httpx.HTTPError:
                time.sleep(0.1)

    def ask(self, client: httpx.Client) -> None:
        while not self.over.is_set():
            self.number += 1
            reply = client.post("/v1/query", json={"question": question(self.number)})
            self.statuses[reply.status_code] = self.statuses.get(reply.status_code, 0) + 1
            if reply.status_code == 200:
                receipt = reply.json()["receipt"]
                self.doubled += receipt["id"] in self.charges
                self.charges[receipt["id"]] = Decimal(receipt["charge"]["amount"])
            else:
                time.sleep(0.05)


class HostileCallers:
    """All of them at once, each a process of its own."""

    def __init__(self, data_dir: Path) -> None:
        """Makes their accounts."""
        customer = cli(data_dir, "customer", "add", "Hostile", "--credit", "10000")["api_key"]
        contributor = cli(data_dir, "key", "add", "contributor", "c0")["api_key"]
        operator = cli(data_dir, "operator", "add", "Operator")["api_key"]
        (database,) = data_dir.glob("*.sqlite3")
        self._target = Target("", str(database), customer, contributor, operator)
        self._processes: list[SpawnProcess] = []

    def begin(self, url: str) -> None:
        """Call the server at this address, and no other any more."""
        self.end()
        target = replace(self._target, url=url)
        self._processes = [
            get_context("spawn").Process(target=again_and_again, args=(name, target), daemon=True) for name in CALLERS
        ]
        for each in self._processes:
            each.start()

    def end(self) -> None:
        """Leave it alone."""
        for each in self._processes:
            each.kill()
            each.join()
        self._processes = []


def soak(minutes: float, clients: int, seed: int, pause: float, *, hostile: bool = False) -> dict[str, Any]:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = Path(scratch) / "data"
        cli(data_dir, "ingest", str(corpus_of(Path(scratch))), "--create-contributors")
        key = cli(data_dir, "customer", "add", "Soak", "--credit", str(CREDIT))["api_key"]
        callers = HostileCallers(data_dir) if hostile else None
        server = Server(data_dir)
        server.start()
        if callers is not None:
            callers.begin(server.url)
        customers = [Customer(server, key, 1000 * number) for number in range(clients)]
        for each in customers:
            each.start()
        samples, kills = [], {"server": 0, "redis": 0}
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            time.sleep(pause)
            samples.append(_sample(server, data_dir))
            victim = dice.choice(("server", "redis"))
            kills[victim] += 1
            if victim == "server":
                server.kill()
                server.start()
                if callers is not None:
                    callers.begin(server.url)
            else:
                redis_of(data_dir).kill()
        if callers is not None:
            callers.end()
        time.sleep(pause / 3)
        for each in customers:
            each.over.set()
        for each in customers:
            each.join(60)
        server.stop()
        charges = {name: charge for each in customers for name, charge in each.charges.items()}
        audit = cli(data_dir, "audit")
        server.start()
        with server.client(key) as client:
            lost = sum(not _stored(client, name, charge) for name, charge in charges.items())
            spent = CREDIT - Decimal(client.get("/v1/account").json()["balance"]["amount"])
        server.stop()
    return {
        "minutes": minutes,
        "kills": kills,
        "statuses": _sum([each.statuses for each in customers]),
        "acknowledged": len(charges),
        "lost": lost,
        "doubled": sum(each.doubled for each in customers),
        "charged_unacknowledged": str(spent - sum(charges.values())),
        "audit": audit["balanced"],
        "samples": samples,
    }


def _sample(server: Server, data_dir: Path) -> dict[str, Any]:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    return {
        "server_mib": process.memory_info().rss >> 20,
        "server_files": process.num_fds(),
        "server_age_s": round(time.time() - process.create_time()),
        "redis_mib": redis_of(data_dir).memory_info().rss >> 20,
        "log_mib": sum(path.stat().st_size for path in (data_dir / "segments").rglob("*.parquet")) >> 20,
    }


def _stored(client: httpx.Client, name: str, charge: Decimal) -> bool:
    reply = client.get(f"/v1/receipts/{name}")
    return reply.status_code == 200 and Decimal(reply.json()["charge"]["amount"]) == charge


def _sum(counts: list[dict[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for each in counts:
        for status, count in each.items():
            total[status] = total.get(status, 0) + count
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hostile", action="store_true", help="beside all hostile callers at once")
    parser.add_argument("--pause", type=float, default=30, help="seconds between kills")
    chosen = parser.parse_args()
    os.environ.setdefault("PATRONAGE_LOG_LEVEL", "error")
    found = soak(chosen.minutes, chosen.clients, chosen.seed, chosen.pause, hostile=chosen.hostile)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
