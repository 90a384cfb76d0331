"""Customers that ask without pause, and what must hold whatever happened meanwhile."""

from __future__ import annotations

import threading
import time
from decimal import Decimal

import httpx

from tests.faults.conftest import QUESTIONS
from tests.servers import TLS, cli


class Customers(threading.Thread):
    """Asks without pause until it is told to stop; remembers every answer that was acknowledged."""

    def __init__(self, server, key, number):
        super().__init__(daemon=True)  # a test that fails must not keep its worker
        self.server, self.key, self.number = server, key, number
        self.over = threading.Event()
        self.receipts: dict[str, Decimal] = {}
        self.statuses: set[int] = set()

    def run(self):
        i = self.number
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx.Client(headers=headers, timeout=20, verify=TLS) as client:
            while not self.over.is_set():
                i += 1
                try:
                    question = QUESTIONS[i % len(QUESTIONS)]
                    reply = client.post(f"{self.server.url}/v1/query", json={"question": question})
                except httpx.HTTPError:
                    time.sleep(0.05)
                    continue
                self.statuses.add(reply.status_code)
                if reply.status_code == 200:
                    charge = reply.json()["receipt"]["charge"]["amount"]
                    self.receipts[reply.json()["receipt"]["id"]] = Decimal(charge)


def asking(server, key, count=4):
    customers = [Customers(server, key, number) for number in range(count)]
    for each in customers:
        each.start()
    return customers


def finish(customers):
    for each in customers:
        each.over.set()
    for each in customers:
        each.join()
    return {name: charge for each in customers for name, charge in each.receipts.items()}


def answered(customers):
    return sum(len(each.receipts) for each in customers)


def assert_books_hold(data_dir, environment, server, key, acknowledged):
    """Every acknowledged receipt is there with its charge, and the audit is green once the server has ended."""
    assert_charged(server, key, acknowledged)
    server.stop()
    audit = cli(data_dir, "audit", env=environment)
    assert audit["balanced"], audit


def assert_charged(server, key, acknowledged):
    """Every acknowledged receipt is there with its charge, and they were paid of the 10 USD."""
    with server.client(key) as client:
        for name, charge in acknowledged.items():
            reply = client.get(f"/v1/receipts/{name}")
            assert reply.status_code == 200, f"the acknowledged receipt {name} is lost"
            assert Decimal(reply.json()["charge"]["amount"]) == charge
        account = client.get("/v1/account").json()
    spent = Decimal(10) - Decimal(account["balance"]["amount"])
    assert spent >= sum(acknowledged.values())
