"""A real server with the small corpus and its people: what the end-to-end tests talk to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.e2e.corpus import CONTRIBUTORS, DOCUMENTS
from tests.servers import Server, cli, wait_for

_NUMBERS = count(1)


@dataclass
class Account:
    """A customer and its key."""

    id: str
    key: str
    client: httpx.Client
    operator: httpx.Client

    def deposit(self, amount: str | Decimal) -> None:
        """Pay in, once."""
        body = {"amount": str(amount), "reference": "opening"}
        paid = self.operator.post(f"/v1/admin/customers/{self.id}/credits", json=body)
        assert paid.status_code == 200, paid.text

    def money(self) -> tuple[Decimal, Decimal]:
        """Balance and holds."""
        account = self.client.get("/v1/account").json()
        return Decimal(account["balance"]["amount"]), Decimal(account["held"]["amount"])

    @property
    def balance(self) -> Decimal:
        return self.money()[0]

    def ask(self, question: str, **more: Any) -> dict[str, Any]:
        reply = self.client.post("/v1/query", json={"question": question, **more})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def usage(self, queries: int = 1) -> list[dict[str, Any]]:
        """The rows of the usage, once the drain has counted so many queries."""

        def counted() -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = self.client.get("/v1/usage").json()["data"]
            return rows if sum(row["queries"] for row in rows) >= queries else []

        return wait_for(counted)


@dataclass
class World:
    """A running server, its people and their keys."""

    server: Server
    env: dict[str, str]
    operator_key: str
    keys: dict[str, str] = field(default_factory=dict)
    """By contributor."""
    opened: list[httpx.Client | openai.OpenAI] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        return self.server.data_dir

    def client(self, key: str | None = None) -> httpx.Client:
        """An HTTP client that lives as long as the world."""
        found = self.server.client(key)
        self.opened.append(found)
        return found

    def operator(self) -> httpx.Client:
        return self.client(self.operator_key)

    def contributor(self, name: str) -> httpx.Client:
        return self.client(self.keys[name])

    def customer(self, credit: str | None = "1.00") -> Account:
        """A new customer with money."""
        identifier = f"customer-{next(_NUMBERS)}"
        admin = self.operator()
        reply = admin.post("/v1/admin/customers", json={"name": identifier.title(), "id": identifier})
        assert reply.status_code == 201, reply.text
        key = reply.json()["api_key"]
        account = Account(identifier, key, self.client(key), admin)
        if credit is not None:
            account.deposit(credit)
        return account

    def openai(self, key: str) -> openai.OpenAI:
        """The official client; it does not retry, so that every error is seen."""
        found = openai.OpenAI(base_url=f"{self.server.url}/v1", api_key=key, max_retries=0, timeout=60)
        self.opened.append(found)
        return found

    def add_document(self, contributor: str, **fields: Any) -> dict[str, Any]:
        """Bring a document by HTTP."""
        reply = self.contributor(contributor).post("/v1/documents", json=fields)
        assert reply.status_code in (200, 201), reply.text
        return reply.json()

    def close(self) -> None:
        for client in self.opened:
            client.close()


@contextmanager
def open_world(data_dir: Path, env: dict[str, str], module: str = "serving.cli") -> Iterator[World]:
    """A running server with everything of the corpus, and nobody but its operator and contributors.

    ``module`` is what runs it.
    """
    operator = cli(data_dir, "operator", "add", "The Operator", "--id", "op", env=env)
    corpus = data_dir.with_name(f"{data_dir.name}-corpus.jsonl")
    corpus.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in DOCUMENTS), encoding="utf-8")
    with Server(data_dir, env, (module,)) as server:
        world = World(server, env, operator["api_key"])
        admin = world.operator()
        for name, title in CONTRIBUTORS.items():
            reply = admin.post("/v1/admin/contributors", json={"name": title, "id": name})
            assert reply.status_code == 201, reply.text
            world.keys[name] = reply.json()["api_key"]
        # By the command line, beside the running server: what one process stores, the other must see.
        taken = cli(data_dir, "ingest", str(corpus), env=env)
        assert (taken["documents"], taken["rejected"]) == (len(DOCUMENTS), []), taken
        try:
            yield world
        finally:
            world.close()


def problem(reply: httpx.Response) -> dict[str, Any]:
    """The body of an error, after checking that it has the members of RFC 9457 and of the openai client."""
    assert reply.status_code >= 400, reply.text
    assert reply.headers.get("x-request-id"), reply.headers
    body = reply.json()
    assert {"type", "title", "status", "detail", "instance", "error"} <= set(body), body
    assert body["status"] == reply.status_code, body
    assert body["instance"] == reply.request.url.path, body
    assert body["detail"], body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    assert body["error"]["message"], body
    assert body["error"]["type"], body
    assert body["error"]["code"], body
    return body
