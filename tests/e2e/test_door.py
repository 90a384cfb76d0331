"""The door: what is refused before anything is read, how long a caller may say nothing, what every response has."""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from serving.api.bodies import VALUES_MAX
from serving.api.connections import HEAD_BYTES_MAX, HEADERS_MAX, PIPELINED_MAX
from tests.e2e.world import Account, World, open_world
from tests.servers import wait_for

BODY_SECONDS = 1.5
BODY_RATE = 5
HEAD_SECONDS = 1.0
CONNECTIONS = 24
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[World]:
    """A server that waits a second, and takes few connections from one address."""
    env = {
        **e2e_env,
        "PATRONAGE_HEAD_SECONDS": str(HEAD_SECONDS),
        "PATRONAGE_BODY_SECONDS": str(BODY_SECONDS),
        "PATRONAGE_BODY_BYTES_PER_SECOND": str(BODY_RATE),
        "PATRONAGE_CONNECTIONS_PER_ADDRESS": str(CONNECTIONS),
    }
    with open_world(tmp_path_factory.mktemp("guarded") / "data", env) as found:
        yield found


def connect(world: World) -> socket.socket:
    parts = urlsplit(world.server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def said(connection: socket.socket) -> bytes:
    """Everything that comes until the other side hangs up."""
    found = b""
    try:
        while part := connection.recv(65_536):
            found += part
    except ConnectionResetError:
        pass
    return found


def refusal(reply: bytes) -> tuple[int, str]:
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def request(path: str, *headers: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


# Heads.


@pytest.mark.parametrize("size", [HEAD_BYTES_MAX + 100, 4_000_000])
def test_headers_above_the_limit_are_431_whether_or_not_they_end(guarded: World, size: int):
    for end in (b"", b"\r\n\r\n"):
        with connect(guarded) as connection:
            try:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * size + end)
            except (BrokenPipeError, ConnectionResetError):
                continue  # it hung up while this was being sent; the answer is lost with what was not read
            reply = said(connection)
            assert not reply or refusal(reply) == (431, "headers_too_large")


@pytest.mark.parametrize("where", ["line", "one header", "many headers"])
def test_the_limit_of_a_head_is_exact(guarded: World, where: str):
    def head(size: int) -> bytes:
        rest = size - len("/") - len("Hostlocalhost") - len("Connectionclose")
        lines = {
            "line": [],
            "one header": [f"X: {'a' * (rest - 1)}"],
            "many headers": [f"X: {'a' * 49}"] * (rest // 50),
        }
        if where == "many headers":
            lines[where].append(f"X: {'a' * (rest % 50 - 1)}")
        path = f"/{'a' * rest}" if where == "line" else "/"
        return request(path, "Connection: close", *lines[where], method="GET")

    for size, expected in ((HEAD_BYTES_MAX, {200, 404}), (HEAD_BYTES_MAX + 1, {431})):
        with connect(guarded) as connection:
            connection.sendall(head(size))
            assert int(said(connection).split()[1]) in expected


def test_headers_have_a_number(guarded: World):
    for more, status in ((0, 200), (1, 431)):
        headers = ["Connection: close", *["X: y"] * (HEADERS_MAX - 2 + more)]
        with connect(guarded) as connection:
            connection.sendall(request("/", *headers, method="GET"))
            assert int(said(connection).split()[1]) == status


@pytest.mark.parametrize(
    "begun",
    [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: a"],
    ids=["nothing", "a letter", "a line", "half a header"],
)
def test_a_connection_that_does_not_ask_is_closed(guarded: World, begun: bytes):
    with connect(guarded) as connection:
        connection.sendall(begun)
        reply = said(connection)
    assert (refusal(reply) if begun else (reply, "")) == ((408, "request_timeout") if begun else (b"", ""))


def test_a_head_that_drips_is_closed(guarded: World):
    with connect(guarded) as connection:
        began = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < began + 30:
                connection.sendall(b"a")
                time.sleep(0.1)
        assert time.monotonic() < began + 30


# Bodies.


def test_a_body_that_stops_is_408_and_free(guarded: World):
    account = guarded.customer()
    with connect(guarded) as connection:
        connection.sendall(request("/v1/query", f"Authorization: Bearer {account.key}", "Content-Length: 100") + b'{"q')
        assert refusal(said(connection)) == (408, "request_timeout")
    assert account.money() == (1, 0)


@pytest.mark.parametrize("end", ["stops", "leaves"])
@pytest.mark.parametrize("path", ["/v1/documents", "/v1/query"])
def test_a_body_that_does_not_come_to_its_end_is_no_fault_of_ours(guarded: World, path: str, end: str):
    """Whoever leaves in the middle of one, or is cut off there, wrote a trace into the log each time."""
    key = guarded.keys["mary"] if path == "/v1/documents" else guarded.customer().key
    identifier = f"half-{end}-{path.rpartition('/')[2]}"
    with connect(guarded) as connection:
        head = request(path, f"Authorization: Bearer {key}", "Content-Length: 100", f"X-Request-Id: {identifier}")
        connection.sendall(head + b'{"q')
        if end == "stops":
            assert refusal(said(connection)) == (408, "request_timeout")
    guarded.customer().ask("When do spring tides come?")
    assert 'status="500"' not in guarded.client().get("/metrics").text
    assert identifier not in guarded.server.log.read_text()


def test_a_body_that_drips_is_408(guarded: World):
    account = guarded.customer()
    with connect(guarded) as connection:
        head = request("/v1/query", f"Authorization: Bearer {account.key}", "Content-Length: 1000")
        connection.sendall(head + b"{" + b" " * BODY_RATE)
        began = time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < began + 20 and not select.select([connection], [], [], BODY_SECONDS / 3)[0]:
                connection.sendall(b" ")
        assert BODY_SECONDS < time.monotonic() - began < 20
        assert refusal(said(connection)) == (408, "request_timeout")


def test_a_slow_body_is_read_as_long_as_it_comes(guarded: World):
    account = guarded.customer()
    body = json.dumps({"question": "When do spring tides come?"}).encode()
    with connect(guarded) as connection:
        head = request(
            "/v1/query", f"Authorization: Bearer {account.key}", f"Content-Length: {len(body)}", "Connection: close"
        )
        connection.sendall(head)
        for start in range(0, len(body), 10):
            time.sleep(BODY_SECONDS / 3)
            connection.sendall(body[start : start + 10])
        assert said(connection).startswith(b"HTTP/1.1 200 ")


def test_a_kept_connection_and_a_slow_answer_outlive_these_limits(guarded: World):
    client = guarded.customer().client
    for _ in range(2):
        assert client.get("/v1/account").status_code == 200
        time.sleep(HEAD_SECONDS + BODY_SECONDS)


FRAMING = {
    "trailers": b"2\r\n{}\r\n0\r\n" + b"x-trailer: yyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 2_000,
    "one trailer": b"2\r\n{}\r\n0\r\nx-trailer: " + b"y" * 80_000,
    "an extension": b"2;e=" + b"y" * 80_000,
    "extensions": b"8;e=yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n        \r\n" * 2_000,
    "tiny chunks": b"1\r\n \r\n" * 20_000,
}


@pytest.mark.parametrize("sent", FRAMING.values(), ids=FRAMING)
def test_what_frames_a_body_has_a_limit(guarded: World, sent: bytes):
    account = guarded.customer()
    head = request("/v1/query", f"Authorization: Bearer {account.key}", "Transfer-Encoding: chunked")
    with connect(guarded) as connection:
        connection.sendall(head)
        time.sleep(0.1)  # a head and the body that comes with it are read as one
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
            assert refusal(said(connection)) == (400, "framing_too_large")
    assert account.money() == (1, 0)


def test_a_body_in_small_chunks_is_read_and_its_trailers_are_no_headers(guarded: World):
    account = guarded.customer()
    body = json.dumps({"question": "When do spring tides come?"}).encode()
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(each), each) for each in (body[at : at + 9] for at in range(0, len(body), 9))
    )
    head = request(
        "/v1/query", f"Authorization: Bearer {account.key}", "Transfer-Encoding: chunked", "Connection: close"
    )
    receipts = set()
    for _ in range(2):
        with connect(guarded) as connection:
            connection.sendall(head)
            time.sleep(0.1)
            connection.sendall(chunks + b"0\r\nIdempotency-Key: the same\r\n\r\n")
            reply = said(connection)
            assert reply.startswith(b"HTTP/1.1 200 "), reply
            receipts.add(json.loads(reply.partition(b"\r\n\r\n")[2])["receipt"]["id"])
    assert len(receipts) == 2, "neither is a replay of the other"


# Responses that are not read.


@pytest.fixture(scope="module")
def unread(guarded: World) -> Iterator[Callable[[], socket.socket]]:
    """Asks for 8 MB of vectors, more than the system keeps for a connection, and does not read them."""
    account, opened = guarded.customer(), []
    body = json.dumps({"model": "all-MiniLM-L6-v2", "input": ["a"] * 1_000}).encode()
    headers = f"Authorization: Bearer {account.key}", f"Content-Length: {len(body)}"

    def ask() -> socket.socket:
        before = account.balance
        connection = connect(guarded)
        opened.append(connection)
        connection.sendall(request("/v1/embeddings", *headers) + body)
        wait_for(lambda: account.balance < before)
        return connection

    yield ask
    for each in opened:
        each.close()


def is_open(world: World, port: int) -> bool:
    assert world.server.process is not None
    found = psutil.Process(world.server.process.pid).net_connections()
    return any(each.raddr and each.raddr.port == port for each in found)


def test_a_response_that_is_not_read_is_not_kept(guarded: World, unread: Callable[[], socket.socket]):
    connection = unread()
    port = connection.getsockname()[1]
    assert is_open(guarded, port)
    wait_for(lambda: not is_open(guarded, port))


def test_a_response_that_is_read_slowly_is_sent_whole(unread: Callable[[], socket.socket]):
    connection = unread()
    head, _, body = connection.recv(65_536).partition(b"\r\n\r\n")
    length = re.search(rb"content-length: ([0-9]+)", head)
    assert length is not None
    while len(body) < int(length[1]):
        time.sleep(BODY_SECONDS / 8)
        part = connection.recv(1_000_000)
        assert part, f"closed after {len(body)} bytes"
        body += part
    assert len(json.loads(body)["data"]) == 1_000


# What comes without waiting for an answer.


def test_requests_that_do_not_wait_for_answers_are_answered_in_their_order(guarded: World):
    with connect(guarded) as connection:
        connection.sendall(
            b"".join(request(f"/nothing-{each}", method="GET") for each in range(1, PIPELINED_MAX))
            + request("/nothing-16", "Connection: close", method="GET")
        )
        reply = said(connection)
    assert [int(each) for each in re.findall(rb'"instance":"/nothing-([0-9]+)"', reply)] == [*range(1, 17)]


def test_more_of_them_are_429_and_nothing_behind_them_is_read(guarded: World):
    more = request("/nothing", method="GET") * (PIPELINED_MAX + 2)
    for sent in (more, more + b"nonsense\r\n\r\n"):
        with connect(guarded) as connection:
            connection.sendall(sent)
            assert refusal(said(connection)) == (429, "too_many_pipelined")


def test_a_body_behind_an_upgrade_is_no_other_request(guarded: World):
    account = guarded.customer()
    smuggled = request("/v1/models", f"Authorization: Bearer {account.key}", method="GET")
    with connect(guarded) as connection:
        connection.sendall(
            request("/nothing", "Connection: upgrade", "Upgrade: h2c", f"Content-Length: {len(smuggled)}") + smuggled
        )
        assert refusal(said(connection)) == (400, "not_upgraded")
    with connect(guarded) as connection:
        connection.sendall(request("/health/live", "Connection: upgrade, close", "Upgrade: websocket", method="GET"))
        assert said(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_what_is_no_request_is_400_in_json_and_no_line_of_the_log(guarded: World, sent: bytes):
    before = guarded.server.log.read_text()
    with connect(guarded) as connection:
        connection.sendall(sent)
        assert refusal(said(connection)) == (400, "not_http")
    assert guarded.server.log.read_text() == before


def test_without_a_key_no_body_is_read(guarded: World):
    """Neither what is malformed nor what is too large is looked at, and the rest is never asked for."""
    for path in ("/v1/query", "/v1/embeddings", "/v1/documents", "/v1/admin/customers"):
        for key in ("", "Authorization: Bearer patronage-customer-000000000000-none"):
            with connect(guarded) as connection:
                more = [key] if key else []
                connection.sendall(request(path, "Content-Length: 16000000", *more) + b"{" * 1_000)
                status, code = refusal(said(connection))
                assert (status, code) == (401, "invalid_api_key" if key else "missing_key")


def test_a_revoked_key_brings_no_body(world: World):
    account = world.customer()
    key = account.operator.get("/v1/admin/keys", params={"owner": account.id}).json()["data"][0]["id"]
    account.operator.delete(f"/v1/admin/keys/{key}")
    time.sleep(1.1)
    reply = account.client.post("/v1/query", content=b"{")
    assert (reply.status_code, reply.json()["error"]["code"]) == (401, "key_revoked")


@pytest.mark.parametrize("path", ["/v1/outcome", "/v1/receipts/x/outcome", "/v1/admin/customers", "/v1/account/alert"])
def test_each_route_has_a_size(customer: Account, path: str):
    reply = customer.client.post(path, content=b"[" * (MEGABYTE + 1))
    assert reply.status_code == 413
    assert "1000000 bytes" in reply.json()["error"]["message"]
    assert customer.client.post(path, content=b" " * MEGABYTE).status_code != 413


@pytest.mark.parametrize(("path", "field"), [("/v1/embeddings", "input"), ("/v1/chat/completions", "messages")])
def test_json_of_many_values_is_refused_before_it_is_read(customer: Account, path: str, field: str):
    few, many = (
        customer.client.post(path, json={"model": "m", field: [1] * number}) for number in (VALUES_MAX // 2, VALUES_MAX)
    )
    assert (few.status_code, few.json()["error"]["code"]) == (422, "invalid")
    assert (many.status_code, many.json()["error"]["code"]) == (413, "too_large")
    assert str(VALUES_MAX) in many.json()["detail"]


def test_the_bodies_of_one_caller_in_memory_have_a_bound_and_are_nobody_elses(tmp_path: Path, e2e_env: dict[str, str]):
    with open_world(tmp_path / "data", {**e2e_env, "PATRONAGE_BODY_BYTES": "100000"}) as world, ExitStack() as stack:
        one, other = world.customer(), world.customer()
        head = request("/v1/embeddings", f"Authorization: Bearer {one.key}", "Content-Length: 100000")
        held = [stack.enter_context(connect(world)) for _ in range(6)]
        for each in held:
            each.sendall(head + b" " * 99_000)
        refused = wait_for(lambda: len(found := select.select(held, [], [], 0)[0]) == 2 and found)
        assert [refusal(said(each)) for each in refused] == [(429, "rate_limited")] * 2
        long = b" " * 99_000
        assert other.client.post("/v1/embeddings", content=long).status_code in (400, 422)
        for each in held:
            each.close()
        again = [stack.enter_context(connect(world)) for _ in range(4)]
        for each in again:
            each.sendall(head + long)
        wait_for(lambda: one.client.post("/v1/embeddings", content=b"{").status_code in (400, 422))
        assert select.select(again, [], [], 0)[0] == [], "what was closed is counted no more"


def test_long_bodies_are_read_one_after_the_other_and_leave_the_loop_to_others(customer: Account):
    """Hundreds of them at once were read in one go, and everybody waited for ten seconds."""
    long = json.dumps({"question": "Why?", "model": "none", "max_price": "1" * 900_000})
    with ThreadPoolExecutor(24) as threads:
        sent = [threads.submit(customer.client.post, "/v1/query", content=long) for _ in range(24)]
        wait_for(lambda: any(each.done() for each in sent))
        customer.ask("When do spring tides come?")
        assert not all(each.done() for each in sent)
        assert {each.result().status_code for each in sent} <= {415, 422}


# Connections.


def test_one_address_has_so_many_busy_connections_and_room_again_when_they_end(guarded: World):
    held = [connect(guarded) for _ in range(2 * CONNECTIONS)]
    try:
        for each in held:
            with suppress(BrokenPipeError, ConnectionResetError):
                each.sendall(b"GET / HTTP/1.1\r\n")
        more = [connect(guarded) for _ in range(CONNECTIONS)]
        held += more
        found = [each.recv(65_536) for each in more]
        assert {refusal(each) for each in found} == {(429, "too_many_connections")}
    finally:
        for each in held:
            each.close()
    wait_for(lambda: httpx.get(f"{guarded.server.url}/health/live").status_code == 200)


def test_idle_connections_make_room(guarded: World):
    """Whoever leaves connections open, and forgets them, shuts out nobody behind the same address."""
    held = [connect(guarded) for _ in range(3 * CONNECTIONS)]
    try:
        for _ in range(CONNECTIONS):
            client = httpx.Client(base_url=guarded.server.url)
            guarded.opened.append(client)
            assert client.get("/health/live").status_code == 200
    finally:
        for each in held:
            each.close()


# Every response.

ROUTES = ["/", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/v1/models", "/v1/account", "/nothing"]


@pytest.mark.parametrize("path", ROUTES)
def test_every_response_says_how_it_may_be_used(customer: Account, path: str):
    headers = customer.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("path", ROUTES)
def test_head_is_get_without_its_body(customer: Account, path: str):
    head, get = customer.client.head(path), customer.client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_head_of_what_can_only_be_posted_is_405(customer: Account):
    assert customer.client.head("/v1/query").status_code == 405


def test_the_metrics_are_written_once_for_all_who_ask_within_a_moment(guarded: World):
    with guarded.server.client() as client:
        texts = [client.get("/metrics").text for _ in range(30)]
        assert len(set(texts)) < 15
        wait_for(lambda: client.get("/metrics").text not in texts)


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_health_is_answered_before_the_application(guarded: World, path: str):
    """So it reads no key, and its other methods are refused all the same."""
    with guarded.server.client("no key of ours") as client:
        assert client.get(path).status_code == 200
        refused = client.post(path, json={})
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")
