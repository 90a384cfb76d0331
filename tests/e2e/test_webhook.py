"""The low-balance signal: counted, and told to a real HTTP server that fails at first, once and with a signature."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from tests.e2e.commands import refused
from tests.e2e.world import Account, World, open_world
from tests.servers import cli, run, wait_for

_ASK = {"question": "How long does the ferry to Osk Island take?"}


class Listener(ThreadingHTTPServer):
    """Answers with the given statuses one after another, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.statuses = list(statuses)
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/low?tenant=7"


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Listener)
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
        statuses = self.server.statuses
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.send_header("location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: the test looks at what was received."""


@contextmanager
def listening(*statuses: int) -> Iterator[Listener]:
    with Listener(*statuses) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[World]:
    """A server that may call this machine, and signals what is below half a cent."""
    env = {**e2e_env, "PATRONAGE_WEBHOOK_PRIVATE_HOSTS": "true", "PATRONAGE_LOW_BALANCE": "0.005"}
    with open_world(tmp_path_factory.mktemp("telling") / "data", env) as found:
        yield found


def metric(world: World, name: str) -> float:
    text = world.client().get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE))


def spend(account: Account) -> None:
    """Ask until less than half a cent is left."""
    while account.balance >= 0.005:  # compared as numbers, not added up
        assert account.client.post("/v1/query", json=_ASK).status_code == 200


def signed_with(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """As a receiver checks it, with the library of Standard Webhooks."""
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True


def test_a_low_balance_is_told_once_by_a_webhook_that_is_tried_until_it_is_taken(telling: World):
    account = telling.customer("0.010")
    with listening(500, 302, 204) as listener:
        chosen = cli(telling.data_dir, "customer", "alert", account.id, "--webhook", listener.url, env=telling.env)
        assert (chosen["threshold"]["amount"], chosen["below"], chosen["low_since"]) == ("0.005000", "default", None)
        secret = chosen["secret"]
        low = metric(telling, "patronage_accounts_low")
        spend(account)
        wait_for(lambda: len(listener.received) == 3)
        wait_for(lambda: metric(telling, "patronage_webhooks_pending") == 0)
        wait_for(lambda: metric(telling, "patronage_accounts_low") == low + 1)

        headers, body = zip(*listener.received, strict=True)
        assert len({each["webhook-id"] for each in headers}) == len(set(body)) == 1
        for each in headers:
            assert signed_with(secret, each, body[0])
            assert not signed_with("whsec_" + "A" * 44, each, body[0])
            assert abs(int(each["webhook-timestamp"]) - time.time()) < 60
            assert each["host"] == f"127.0.0.1:{listener.server_port}"
            assert each["content-type"] == "application/json"
        event = json.loads(body[0])
        assert (event["type"], event["data"]["account"]) == ("account.balance_low", account.id)
        assert float(event["data"]["left"]["amount"]) < float(event["data"]["threshold"]["amount"]) == 0.005
        wait_for(lambda: metric(telling, 'patronage_webhook_deliveries_total{result="failed"}') >= 2)

        # Going on spending says nothing more; paying in and spending again does.
        account.client.post("/v1/query", json=_ASK)
        cli(telling.data_dir, "customer", "credit", account.id, "0.010", "--reference", "more", env=telling.env)
        assert cli(telling.data_dir, "customer", "show", account.id, env=telling.env)["alert"]["low_since"] is None
        spend(account)
        wait_for(lambda: len(listener.received) == 4)
        assert listener.received[3][0]["webhook-id"] != headers[0]["webhook-id"]


def test_a_webhook_is_told_by_the_next_server_when_this_one_was_killed(telling: World):
    account = telling.customer("0.010")
    with listening(503) as deaf:
        chosen = account.client.put("/v1/account/alert", json={"webhook": deaf.url}).json()
        spend(account)
        wait_for(lambda: deaf.received)
        telling.server.kill()
    with listening(200) as listener:
        moved = cli(telling.data_dir, "customer", "alert", account.id, "--webhook", listener.url, env=telling.env)
        telling.server.start()
        # What died may have claimed the event and not yet recorded the answer: then its claim has to run out first.
        wait_for(lambda: listener.received)
        headers, body = listener.received[0]
        assert headers["webhook-id"] == deaf.received[0][0]["webhook-id"]
        assert signed_with(moved["secret"], headers, body)
        assert not signed_with(chosen["secret"], headers, body)
    for client in telling.opened:
        client.base_url = telling.server.url


def test_an_alert_is_the_accounts_own(telling: World):
    account, other = telling.customer("0.010"), telling.customer("0.010")
    assert account.client.put("/v1/account/alert", json={"below": "0.02"}).json()["low_since"] is not None
    assert other.client.get("/v1/account/alert").json()["low_since"] is None
    path = f"/v1/admin/customers/{account.id}/alert"
    shown = telling.operator().put(path, json={"below": {"amount": "0.001", "currency": "USD"}}).json()
    assert (shown["below"]["amount"], shown["low_since"], shown["webhook"]) == ("0.001000", None, None)
    assert "secret" not in shown
    never = cli(telling.data_dir, "customer", "alert", account.id, "--below", "none", env=telling.env)
    assert (never["below"], never["threshold"]) == ("none", None)
    assert account.client.get("/v1/account/alert").json() == shown | {"below": "none", "threshold": None}


def test_secrets_are_stored_encrypted_and_urls_never_shown_to_others(telling: World):
    account = telling.customer()
    url = "https://hooks.example.org/very-own-path"
    secret = account.client.put("/v1/account/alert", json={"webhook": url}).json()["secret"]
    account.client.get("/v1/account")
    stored = b"".join(path.read_bytes() for path in telling.data_dir.glob("patronage.sqlite3*"))
    assert url.encode() in stored
    for form in (secret.encode(), base64.b64decode(secret.removeprefix("whsec_"))):
        assert form not in stored
    assert secret not in telling.server.log.read_text()
    assert account.client.put("/v1/account/alert", json={"webhook": None}).json()["webhook"] is None


def test_what_may_not_be_called_is_refused(world: World, customer: Account, subtests: pytest.Subtests):
    """By a server as it is by default: only public hosts."""
    urls = (
        "ftp://example.org/x", "file:///etc/passwd", "javascript:alert(1)", "example.org", "http://", "", "https://[::1",
        "http://127.0.0.1/", "http://127.1/", "http://localhost:6379/", "http://10.0.0.1/", "http://169.254.169.254/x",
        "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://0.0.0.0/", "http://2130706433/",
        "https://user:password@example.org/", "https://example.org/" + "x" * 2_000, "http://a..b/",
        f"http://{'a' * 64}.org/", "http://xn--a/", "http://example.org:65536/", "https://example.org/a b",
        "https://example.org/" + "€" * 1_000, "https://example.org/\x00",
    )  # fmt: skip
    for url in urls:
        with subtests.test(url[:60]):
            reply = customer.client.put("/v1/account/alert", json={"webhook": url})
            assert (reply.status_code, "webhook" in reply.json()["detail"]) == (422, True), reply.text
    # What no encoding carries can be written in JSON, and in an argument of a command.
    body = b'{"webhook": "https://example.org/\\ud800"}'
    reply = customer.client.put("/v1/account/alert", content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422), reply.text
    command = ("customer", "alert", customer.id, "--webhook", "https://example.org/\udcff")
    assert "webhook" in refused(run(world.data_dir, *command, env=world.env))
    assert customer.client.get("/v1/account/alert").json()["webhook"] is None
    command = ("customer", "alert", customer.id, "--webhook", "http://127.0.0.1/")
    assert "PATRONAGE_WEBHOOK_PRIVATE_HOSTS" in refused(run(world.data_dir, *command, env=world.env))
    assert "nobody" in refused(run(world.data_dir, "customer", "alert", "nobody", env=world.env))
