"""The event loop does no SQL and reads no file, whatever is asked, also while somebody else holds the write lock."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e.routes import OPEN, QUESTION, ROLES, ROUTES, Route
from tests.e2e.world import Account, World, open_world
from tests.servers import wait_for
from tests.watched_server import REPORT

WRITES = re.compile(r"/close|/preview|/outcome")
"""Beside what is no GET: what must move records into the ledger first."""
PAID = ("/v1/query", "/v1/chat/completions", "/v1/responses", "/v1/embeddings")


@dataclass
class Watched:
    """A server whose event loop is guarded."""

    world: World
    report: Path
    account: Account
    receipt: str

    def request(self, client: httpx.Client, route: Route) -> int:
        path = route.path.format(customer=self.account.id, receipt=self.receipt)
        return client.request(route.method, path, json=route.body, headers=route.headers).status_code

    def clients(self) -> dict[str, httpx.Client]:
        found = {"customer": self.account.client, "contributor": self.world.contributor("mary")}
        found["any"] = found["contributor"]
        return {**found, "operator": self.world.operator(), "none": self.world.client()}


def draw_all(world: World) -> None:
    """Put a policy in force that draws every answer for the audit, and wait until it is read."""
    body = {"data_share_ppm": 500_000, "ablation_ppm": 1_000_000}
    assert world.operator().post("/v1/admin/policy", json=body).status_code == 201
    wait_for(lambda: world.operator().get("/v1/admin/policy").json()["ablation_ppm"] == 1_000_000)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[Watched]:
    """A server of its own: its database is locked, and its event loop guarded."""
    folder = tmp_path_factory.mktemp("loop")
    report = folder / "report"
    with open_world(folder / "data", {**e2e_env, REPORT: str(report)}, "tests.watched_server") as world:
        world.add_document("mary", id="mary/withdrawn", text="A text that is to be withdrawn.")
        account = world.customer()
        draw_all(world)  # so the text of every answer is kept
        receipt = account.ask(**QUESTION)["id"]
        report.write_text("")  # what the start did, nobody waited for
        yield Watched(world, report, account, receipt)


def test_every_route_is_known(watched: Watched):
    """So none can be added that the tests here do not ask for."""
    paths = watched.world.client().get("/openapi.json").json()["paths"]
    there = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    asked = [(route.method, route.path.partition("?")[0]) for route in ROUTES] + [("GET", path) for path in OPEN]
    for method, path in there:
        pattern = re.sub(r"\\{\w+\\}", "[^/]+(/[^/]+)*", re.escape(path))
        assert any(method == other and re.fullmatch(pattern, asks.partition("?")[0]) for other, asks in asked), path


def test_no_route_does_sql_or_reads_a_file_in_the_event_loop(watched: Watched):
    for client in watched.clients().values():
        for route in ROUTES:
            watched.request(client, route)
        for path in OPEN:
            client.get(path)
    assert watched.report.read_text() == ""


def waits(route: Route) -> bool:
    """Whether it may wait for the write lock."""
    return (route.method != "GET" and route.path not in PAID) or WRITES.search(route.path) is not None


def test_while_the_write_lock_is_held_only_that_waits_which_writes(watched: Watched):
    clients = watched.clients()
    (database,) = watched.world.data_dir.glob("*.sqlite3")
    watched.report.write_text("")
    with ThreadPoolExecutor(64) as threads, closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sent: dict[Future[int], Route] = {}
        for role in (*ROLES, "any"):
            for route in sorted((each for each in ROUTES if each.role == role), key=lambda each: not waits(each)):
                sent[threads.submit(watched.request, clients[role], route)] = route
        others = [each for each, route in sent.items() if not waits(route)]
        wait_for(lambda: all(each.done() for each in others), 20)
        for _ in range(20):
            watched.account.ask(**QUESTION)
            assert [clients["none"].get(path).status_code for path in OPEN] == [200] * len(OPEN)
        writer = next(each for each, route in sent.items() if route.path == "/v1/admin/contributors" and waits(route))
        assert not writer.done()
        other.execute("ROLLBACK")
        found = {f"{route.method} {route.path}": (each.result(), route.statuses) for each, route in sent.items()}
    assert {name: status for name, (status, allowed) in found.items() if status not in (*allowed, 409)} == {}
    assert watched.report.read_text() == ""
