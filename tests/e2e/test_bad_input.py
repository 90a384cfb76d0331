"""Bad input by HTTP: the right status, an error in both conventions, never a 500, and never a charge."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.world import Account, World, problem
from tests.servers import PATIENCE_SECONDS, cli

_GOOD = {"question": "When was the Vellmar lighthouse built?"}
_MODEL = "patronage-extractive"


@pytest.fixture(scope="module")
def payer(world: World) -> Account:
    return world.customer()


@pytest.fixture
def unpaid(payer: Account) -> Iterator[Account]:
    """An account that must be as it was when the test is over: no charge, and no hold left behind."""
    before = payer.money()
    yield payer
    assert payer.money() == before


def _expect(reply: httpx.Response, statuses: int | set[int], param: str | None = None) -> dict[str, Any]:
    allowed = {statuses} if isinstance(statuses, int) else statuses
    assert reply.status_code in allowed, f"{reply.status_code}: {reply.text[:500]}"
    body = problem(reply)
    if param is not None:
        assert body["error"]["param"] == param, body
    return body


_RAW: dict[str, tuple[bytes, int | set[int]]] = {
    "empty": (b"", {400, 422}),
    "white space": (b" \n ", {400, 422}),
    "not JSON": (b"question=what", 400),
    "cut off": (b'{"question": "wh', 400),
    "two values": (b'{"text": "a"} {"text": "b"}', 400),
    "single quotes": (b"{'question': 'a'}", 400),
    "binary": (bytes(range(256)), 400),
    "NUL bytes": (b"\x00" * 64, 400),
    "invalid UTF-8": (b'{"text": "caf\xe9"}', 400),
    "UTF-8 surrogate": (b'{"text": "\xed\xa0\x80"}', {400, 422}),
    "deep arrays": (b"[" * 100_000, {400, 413, 422}),
    "deep arrays, closed": (b"[" * 100_000 + b"]" * 100_000, {400, 413, 422}),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, {400, 413}),
    "huge number": (b'{"question": "a", "top_k": ' + b"9" * 10_000 + b"}", {400, 422}),
    "JSON null": (b"null", 422),
    "JSON array": (b"[]", 422),
    "JSON string": (b'"what"', 422),
    "JSON number": (b"7", 422),
    "empty object": (b"{}", 422),
}
_JSON_ROUTES = {
    "/v1/query": "customer",
    "/v1/chat/completions": "customer",
    "/v1/documents": "contributor",
    "/v1/admin/customers": "operator",
}


@pytest.mark.parametrize("case", _RAW)
@pytest.mark.parametrize("route", _JSON_ROUTES)
def test_a_body_that_is_not_what_it_should_be_is_refused(world: World, unpaid: Account, route: str, case: str):
    body, statuses = _RAW[case]
    client = {"customer": unpaid.client, "contributor": world.contributor("mary"), "operator": world.operator()}
    reply = client[_JSON_ROUTES[route]].post(route, content=body, headers={"content-type": "application/json"})

    _expect(reply, statuses)


@pytest.mark.parametrize("extra", [b'"padding": ' + b"[" * 100_000 + b"]" * 100_000])
def test_a_deep_unknown_field_is_refused_or_ignored(world: World, unpaid: Account, extra: bytes):
    headers = {"content-type": "application/json"}
    asked = unpaid.client.post("/v1/query", content=b'{"question": " ", ' + extra + b"}", headers=headers)
    brought = world.contributor("mary").post("/v1/documents", content=b'{"text": " ", ' + extra + b"}", headers=headers)

    _expect(asked, 413)
    _expect(brought, {400, 422})


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "image/png"]
)
def test_a_body_of_another_type_is_refused(unpaid: Account, kind: str):
    reply = unpaid.client.post("/v1/query", content=b"question=what", headers={"content-type": kind})

    _expect(reply, {400, 415, 422})


_QUERIES: dict[str, tuple[dict[str, Any], int | set[int], str | None]] = {
    "no question": ({"question": None}, 422, "question"),
    "empty question": ({"question": ""}, 422, "question"),
    "blank question": ({"question": " \t\n\u2003"}, 422, "question"),
    "question is a number": ({"question": 7}, 422, "question"),
    "question is a list": ({"question": ["what"]}, 422, "question"),
    "question is an object": ({"question": {"text": "what"}}, 422, "question"),
    "lone surrogate": ({"question": "what is \ud800?"}, {400, 422}, None),
    "surrogates in the wrong order": ({"question": "what is \udc00\ud800?"}, {400, 422}, None),
    "1 MB question": ({"question": "why " * 262_144}, 413, "question"),
    "a character above the limit": ({"question": "y" * 8_001}, 413, "question"),
    "top_k 0": ({"top_k": 0}, 422, "top_k"),
    "top_k negative": ({"top_k": -1}, 422, "top_k"),
    "top_k absurd": ({"top_k": 10**9}, 422, "top_k"),
    "top_k beyond 64 bits": ({"top_k": 10**30}, 422, "top_k"),
    "top_k fraction": ({"top_k": 2.5}, 422, "top_k"),
    "top_k NaN": ({"top_k": float("nan")}, {400, 422}, None),
    "top_k infinite": ({"top_k": float("inf")}, {400, 422}, None),
    "top_k string": ({"top_k": "5"}, 422, "top_k"),
    "top_k true": ({"top_k": True}, 422, "top_k"),
    "purpose empty": ({"purpose": ""}, 422, "purpose"),
    "purpose with spaces": ({"purpose": "my answer"}, 422, "purpose"),
    "purpose with a line end": ({"purpose": "answer\n"}, 422, "purpose"),
    "purpose with NUL": ({"purpose": "a\x00b"}, 422, "purpose"),
    "purpose too long": ({"purpose": "p" * 1_000}, 422, "purpose"),
    "purpose number": ({"purpose": 1}, 422, "purpose"),
    "max_price zero": ({"max_price": "0"}, 422, "max_price"),
    "max_price negative": ({"max_price": "-1"}, 422, "max_price"),
    "max_price word": ({"max_price": "cheap"}, 422, "max_price"),
    "max_price exponent": ({"max_price": "1e3"}, 422, "max_price"),
    "max_price absurd": ({"max_price": "9" * 400}, 422, "max_price"),
    "max_price NaN": ({"max_price": "NaN"}, 422, "max_price"),
    "max_price Arabic digits": ({"max_price": "\u0661\u0662"}, 422, "max_price"),
    "max_price too fine": ({"max_price": "0.0000000001"}, 422, "max_price"),
    "max_price other currency": ({"max_price": {"amount": "1", "currency": "EUR"}}, 422, "max_price"),
    "max_price float": ({"max_price": 0.5}, 422, None),
    "max_price no currency": ({"max_price": {"amount": "1"}}, 422, None),
    "max_price list": ({"max_price": ["1"]}, 422, None),
}


@pytest.mark.parametrize("case", _QUERIES)
def test_a_query_with_a_bad_field_is_refused_and_says_which(unpaid: Account, case: str):
    fields, statuses, param = _QUERIES[case]
    # json= of httpx encodes lone surrogates and NaN no more than a strict client would.
    content = json.dumps(_GOOD | fields).encode()
    reply = unpaid.client.post("/v1/query", content=content, headers={"content-type": "application/json"})

    _expect(reply, statuses, param)


_CHATS: dict[str, tuple[dict[str, Any], int | set[int]]] = {
    "unknown model": ({"model": "gpt-none"}, 404),
    "empty model": ({"model": ""}, {404, 422}),
    "model with NUL": ({"model": "\x00"}, {404, 422}),
    "model number": ({"model": 4}, 422),
    "no model": ({"model": None}, 422),
    "no messages": ({"messages": []}, 422),
    "messages string": ({"messages": "hello"}, 422),
    "message without a role": ({"messages": [{"content": "hello"}]}, 422),
    "message is a string": ({"messages": ["hello"]}, 422),
    "content number": ({"messages": [{"role": "user", "content": 3}]}, 422),
    "content null": ({"messages": [{"role": "user", "content": None}]}, 422),
    "content empty list": ({"messages": [{"role": "user", "content": []}]}, 422),
    "picture only": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 422),
    "content surrogate": ({"messages": [{"role": "user", "content": "a\udfff"}]}, {400, 422}),
    "1 MB content": ({"messages": [{"role": "user", "content": "why " * 262_144}]}, 413),
    "stream number": ({"stream": 7}, 422),
    "stream_options list": ({"stream": True, "stream_options": []}, 422),
    "n 0": ({"n": 0}, 422),
    "n many": ({"n": 128}, 422),
    "top_k 51": ({"top_k": 51}, 422),
}


@pytest.mark.parametrize("case", _CHATS)
def test_a_chat_completion_with_a_bad_field_is_refused(unpaid: Account, case: str):
    fields, statuses = _CHATS[case]
    body = {"model": _MODEL, "messages": [{"role": "user", "content": _GOOD["question"]}]}
    content = json.dumps(body | fields).encode()
    reply = unpaid.client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})

    _expect(reply, statuses)


def _split(contributor: str, share: Any, role: Any = "author") -> dict[str, Any]:
    return {"contributor": contributor, "role": role, "share": share}


_DOCUMENTS: dict[str, tuple[dict[str, Any], int | set[int]]] = {
    "no text": ({"text": None}, 422),
    "empty text": ({"text": ""}, 422),
    "blank text": ({"text": " \n\t"}, 422),
    "text number": ({"text": 5}, 422),
    "text with NUL": ({"text": "a\x00b"}, 422),
    "text with a surrogate": ({"text": "a\ud800b"}, {400, 422}),
    "id with a space": ({"id": "mary/a b"}, 422),
    "id with NUL": ({"id": "mary/\x00"}, 422),
    "id too long": ({"id": "m" * 201}, 422),
    "id number": ({"id": 7}, 422),
    "id that is bad and says withdrawn": ({"id": "a withdrawn document"}, 422),
    "id that is bad and says taken by another": ({"id": "taken by another"}, 422),
    "title too long": ({"title": "t" * 501}, 422),
    "title with NUL": ({"title": "t\x00"}, 422),
    "url relative": ({"url": "page.html"}, 422),
    "url too long": ({"url": "https://example.org/" + "u" * 2_000}, 422),
    "url number": ({"url": 1}, 422),
    "splits below one": ({"splits": [_split("mary", 999_999)]}, 422),
    "splits above one": ({"splits": [_split("mary", 600_000), _split("bo", 600_000)]}, 422),
    "split negative": ({"splits": [_split("mary", 1_500_000), _split("bo", -500_000)]}, 422),
    "split zero": ({"splits": [_split("mary", 1_000_000), _split("bo", 0)]}, 422),
    "split fraction": ({"splits": [_split("mary", 0.5), _split("bo", 0.5)]}, 422),
    "split string": ({"splits": [_split("mary", "1000000")]}, 422),
    "split absurd": ({"splits": [_split("mary", 10**40)]}, 422),
    "split of an unknown contributor": ({"splits": [_split("nobody", 1_000_000)]}, 422),
    "split twice in a role": ({"splits": [_split("mary", 500_000), _split("mary", 500_000)]}, 422),
    "split with a bad role": ({"splits": [_split("mary", 1_000_000, "The Author")]}, 422),
    "split with a role that says withdrawn": ({"splits": [_split("mary", 1_000_000, "has withdrawn!")]}, 422),
    "split without a contributor": ({"splits": [{"share": 1_000_000}]}, 422),
    "too many splits": ({"splits": [_split("mary", 9_900, f"role{i}") for i in range(101)]}, 422),
    "splits object": ({"splits": {"mary": 1_000_000}}, 422),
    "floor negative": ({"terms": {"floor": "-1"}}, 422),
    "floor word": ({"terms": {"floor": "free"}}, 422),
    "floor absurd": ({"terms": {"floor": "9" * 300}}, 422),
    "floor float": ({"terms": {"floor": 0.5}}, 422),
    "floor in another currency": ({"terms": {"floor": {"amount": "1", "currency": "EUR"}}}, 422),
    "purposes string": ({"terms": {"purposes": "answer"}}, 422),
    "purpose with spaces": ({"terms": {"purposes": ["any use"]}}, 422),
    "too many purposes": ({"terms": {"purposes": [f"p{i}" for i in range(33)]}}, 422),
    "terms list": ({"terms": []}, 422),
    "in another's name": ({"contributor": "bo"}, 403),
    "another's id": ({"id": "bo/tarn"}, 409),
}


@pytest.mark.parametrize("case", _DOCUMENTS)
def test_a_bad_document_is_refused_and_nothing_of_it_is_stored(world: World, case: str):
    fields, statuses = _DOCUMENTS[case]
    mary = world.contributor("mary")
    before = mary.get("/v1/documents", params={"limit": 1_000}).json()
    content = json.dumps({"id": "mary/bad", "text": "A good text."} | fields).encode()
    reply = mary.post("/v1/documents", content=content, headers={"content-type": "application/json"})

    _expect(reply, statuses)
    assert mary.get("/v1/documents", params={"limit": 1_000}).json() == before


def test_a_withdrawn_document_does_not_come_back_under_its_id(world: World):
    mary = world.contributor("mary")
    world.add_document("mary", id="mary/gone", text="It goes.")
    mary.delete("/v1/documents/mary/gone")
    reply = mary.post("/v1/documents", json={"id": "mary/gone", "text": "It comes back."})

    _expect(reply, 409)
    assert mary.get("/v1/documents/mary/gone").json()["state"] == "withdrawn"


_ADMIN: dict[str, tuple[str, dict[str, Any], int | set[int]]] = {
    "customer without a name": ("customers", {}, 422),
    "customer with an empty name": ("customers", {"name": ""}, 422),
    "customer with a name of NUL": ("customers", {"name": "\x00"}, 422),
    "customer with a name that is too long": ("customers", {"name": "n" * 501}, 422),
    "customer with a surrogate": ("customers", {"name": "\ud800"}, {400, 422}),
    "customer with a bad id": ("customers", {"name": "N", "id": "a b"}, 422),
    "customer with an id of NUL": ("customers", {"name": "N", "id": "\x00"}, 422),
    "customer with an id that is too long": ("customers", {"name": "N", "id": "i" * 201}, 422),
    "customer with a bad id that says withdrawn": ("customers", {"name": "N", "id": "has withdrawn"}, 422),
    "customer with a taken id": ("customers", {"name": "N", "id": "{customer}"}, 409),
    "contributor with a taken id": ("contributors", {"name": "N", "id": "mary"}, 409),
    "contributor with a bad id": ("contributors", {"name": "N", "id": "<b>"}, 422),
    "credit to nobody": ("customers/nobody/credits", {"amount": "1", "reference": "r"}, 404),
    "credit of zero": ("customers/{customer}/credits", {"amount": "0", "reference": "r"}, 422),
    "credit negative": ("customers/{customer}/credits", {"amount": "-5", "reference": "r"}, 422),
    "credit absurd": ("customers/{customer}/credits", {"amount": "9" * 20, "reference": "r"}, 422),
    "credit above the most": ("customers/{customer}/credits", {"amount": "9007199.254740992", "reference": "r"}, 422),
    "credit too fine": ("customers/{customer}/credits", {"amount": "0.0000000001", "reference": "r"}, 422),
    "credit float": ("customers/{customer}/credits", {"amount": 5.0, "reference": "r"}, 422),
    "credit infinite": ("customers/{customer}/credits", {"amount": "Infinity", "reference": "r"}, 422),
    "credit in euros": (
        "customers/{customer}/credits", {"amount": {"amount": "1", "currency": "EUR"}, "reference": "r"}, 422
    ),
    "credit without a reference": ("customers/{customer}/credits", {"amount": "1"}, 422),
    "credit with an empty reference": ("customers/{customer}/credits", {"amount": "1", "reference": ""}, 422),
    "credit with a blank reference": ("customers/{customer}/credits", {"amount": "1", "reference": "  "}, 422),
    "credit with a reference of NUL": ("customers/{customer}/credits", {"amount": "1", "reference": "\x00"}, 422),
    "credit with a long reference": ("customers/{customer}/credits", {"amount": "1", "reference": "r" * 201}, 422),
    "credit of another amount": ("customers/{customer}/credits", {"amount": "2", "reference": "opening"}, 409),
    "policy above one": ("policy", {"data_share_ppm": 1_000_001}, 422),
    "policy negative": ("policy", {"data_share_ppm": -1}, 422),
    "policy fraction": ("policy", {"data_share_ppm": 0.5}, 422),
    "policy absurd": ("policy", {"data_share_ppm": 10**30}, 422),
    "policy by an unknown function": ("policy", {"data_share_ppm": 1, "value_function": "support/9"}, 422),
    "policy by a function that is no text": ("policy", {"data_share_ppm": 1, "value_function": 1}, 422),
    "policy by a counterfactual that nobody knows": (
        "policy", {"data_share_ppm": 1, "generated_value_function": "counterfactual/1"}, 422
    ),
    "policy that cannot be computed here": (
        "policy", {"data_share_ppm": 1, "generated_value_function": "log_likelihood/1"}, 409
    ),
    "period that is none": ("periods/2026-13/close", {}, {400, 404, 422}),
    "period that is a word": ("periods/november/close", {}, {400, 404, 422}),
    "period of the future": ("periods/2999-01/close", {"early": True}, {409, 422}),
    "early is a list": ("periods/2020-03/close", {"early": []}, 422),
}  # fmt: skip


@pytest.mark.parametrize("case", _ADMIN)
def test_a_bad_request_of_an_operator_is_refused_and_changes_nothing(world: World, unpaid: Account, case: str):
    path, fields, statuses = _ADMIN[case]
    admin = world.operator()
    watched = ("/v1/admin/customers", "/v1/admin/contributors", "/v1/admin/policy")
    before = [admin.get(each).json() for each in watched]
    body = {name: unpaid.id if value == "{customer}" else value for name, value in fields.items()}
    reply = admin.post(
        f"/v1/admin/{path.format(customer=unpaid.id)}",
        content=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )

    _expect(reply, statuses)
    assert [admin.get(each).json() for each in watched] == before


def test_the_same_reference_counts_once(world: World, payer: Account):
    path = f"/v1/admin/customers/{payer.id}/credits"
    replies = [world.operator().post(path, json={"amount": "1.00", "reference": "opening"}) for _ in range(2)]

    assert [reply.status_code for reply in replies] == [200, 200]
    assert payer.balance == Decimal(1)


@pytest.mark.parametrize("identifier", ["acme/berlin", "acme?x=1", "acme#1", "acme%2F", "{acme}", "acmé-☃", ".."])
def test_a_customer_whose_id_was_accepted_can_be_credited(world: World, identifier: str):
    """Either the id is refused, or every route can name it."""
    admin = world.operator()
    added = admin.post("/v1/admin/customers", json={"name": "S", "id": identifier})
    if added.status_code == 201:
        path = f"/v1/admin/customers/{quote(identifier, safe='')}/credits"
        paid = admin.post(path, json={"amount": "1", "reference": "first"})
        assert (paid.status_code, paid.text) == (200, '{"balance":{"amount":"1.000000","currency":"USD"}}')
    else:
        _expect(added, 422)


@pytest.mark.parametrize("name", ["a//b", "?x=1", "#1", "%2F", "{a}", "../c", "é-☃-🦉", "..", "."])
def test_a_document_whose_id_was_accepted_can_be_shown_and_withdrawn(world: World, name: str):
    identifier = name if name.strip(".") == "" else f"odd/{name}"
    mary = world.contributor("mary")
    added = mary.post("/v1/documents", json={"id": identifier, "text": "Odd."})
    if added.status_code == 201:
        path = f"/v1/documents/{quote(identifier, safe='')}"
        assert mary.get(path).json().get("id") == identifier
        assert mary.delete(path).json().get("state") == "withdrawn"
    else:
        _expect(added, 422)


_PATHS: dict[str, tuple[str, str, str, int | set[int]]] = {
    "unknown route": ("customer", "GET", "/v1/nothing", 404),
    "route outside the API": ("customer", "GET", "/etc/passwd", 404),
    "route with dots": ("customer", "GET", "/v1/%2e%2e/%2e%2e/etc/passwd", 404),
    "route with NUL": ("customer", "GET", "/v1/%00", 404),
    "route with bad UTF-8": ("customer", "GET", "/v1/%ff%fe", 404),
    "very long route": ("customer", "GET", "/v1/" + "x" * 20_000, {404, 414}),
    "GET of a query": ("customer", "GET", "/v1/query", 405),
    "DELETE of a query": ("customer", "DELETE", "/v1/query", 405),
    "PUT of a chat completion": ("customer", "PUT", "/v1/chat/completions", 405),
    "POST of the account": ("customer", "POST", "/v1/account", 405),
    "PATCH of a document": ("contributor", "PATCH", "/v1/documents/mary/light", 405),
    "PROPFIND of a query": ("customer", "PROPFIND", "/v1/query", 405),
    "receipt that is none": ("customer", "GET", "/v1/receipts/none", 404),
    "receipt of NUL": ("customer", "GET", "/v1/receipts/%00", {404, 422}),
    "receipt of bad UTF-8": ("customer", "GET", "/v1/receipts/%ff", {404, 422}),
    "very long receipt": ("customer", "GET", "/v1/receipts/" + "9" * 10_000, 404),
    "usage from a bad day": ("customer", "GET", "/v1/usage?start=2026-02-31", 422),
    "usage from a word": ("customer", "GET", "/v1/usage?start=yesterday", 422),
    "model that is none": ("customer", "GET", "/v1/models/gpt-none", 404),
    "documents by 0": ("contributor", "GET", "/v1/documents?limit=0", 422),
    "documents by a million": ("contributor", "GET", "/v1/documents?limit=1000000", 422),
    "document that is none": ("contributor", "GET", "/v1/documents/mary/none", 404),
    "document of NUL": ("contributor", "GET", "/v1/documents/%00", {404, 422}),
    "deleting a document that is none": ("contributor", "DELETE", "/v1/documents/mary/none", 404),
    "statement of no period": ("contributor", "GET", "/v1/statements/november", {400, 404, 422}),
    "statement of a month 13": ("contributor", "GET", "/v1/statements/2026-13", {400, 404, 422}),
    "statement of an open period": ("contributor", "GET", "/v1/statements/2019-01", 404),
    "preview of no period": ("operator", "GET", "/v1/admin/periods/x/preview", {400, 404, 422}),
    "preview of the future": ("operator", "GET", "/v1/admin/periods/2999-01/preview", {404, 409, 422}),
}


@pytest.mark.parametrize("case", _PATHS)
def test_a_bad_path_method_or_parameter_is_refused(world: World, unpaid: Account, case: str):
    role, method, path, statuses = _PATHS[case]
    client = {"customer": unpaid.client, "contributor": world.contributor("mary"), "operator": world.operator()}[role]
    reply = client.request(method, path)

    assert reply.status_code in ({statuses} if isinstance(statuses, int) else statuses), reply.text[:300]
    body = reply.json()
    assert {"type", "title", "status", "detail", "instance", "error"} <= set(body)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    "sent",
    [
        b"FROBNICATE /v1/query HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /\xff\r\n\r\n",
        b"A" * 70_000,
    ],
    ids=["unheard-of method", "TLS", "no version", "endless line"],
)
def test_what_is_not_http_ends_the_connection_and_nothing_else(world: World, sent: bytes):
    host, port = world.server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        reply = connection.recv(1_000)

    assert reply == b"" or reply.split()[1][:1] == b"4", reply
    assert world.client().get("/health/live").status_code == 200


def test_a_connection_is_kept_longer_than_its_client_keeps_it(world: World):
    """If the server closes it first, a query may be on its way: httpx, and so the openai client, gives up after 5 s."""
    host, port = world.server.url.removeprefix("http://").split(":")
    with closing(HTTPConnection(host, int(port), timeout=PATIENCE_SECONDS)) as connection:
        for idle_s in (0, 6):
            time.sleep(idle_s)
            connection.request("GET", "/health/live")
            assert connection.getresponse().read()


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_above_the_limit_is_413(unpaid: Account, *, chunked: bool):
    """Whether it says how long it is, or just goes on and on."""
    piece = b" " * 1_000_000
    content: Any = (piece for _ in range(18)) if chunked else piece * 18
    reply = unpaid.client.post("/v1/query", content=content, headers={"content-type": "application/json"})

    _expect(reply, 413)


@pytest.mark.parametrize(
    "headers",
    [
        {"Idempotency-Key": "k" * 10_000},
        {"Idempotency-Key": "\xfe\xff".encode("latin-1")},
        {"x-request-id": "r" * 10_000},
        {"x-request-id": "a b\tc"},
        {"accept": "nonsense/;;q=x"},
        {"content-encoding": "gzip"},
    ],
    ids=["long key", "binary key", "long request id", "odd request id", "odd accept", "not really gzip"],
)
def test_odd_headers_are_refused_or_ignored(unpaid: Account, headers: dict[str, Any]):
    reply = unpaid.client.post("/v1/query", json={"question": " "}, headers=headers)

    _expect(reply, {400, 415, 422})
    assert len(reply.headers["x-request-id"]) <= 100


@pytest.mark.parametrize(
    "question", ["what\x00is it", "\x00", "\ufffe\uffff", "\u202e\u200b?", "a" * 8_000, "🦉" * 2_000]
)
def test_a_strange_question_is_answered_or_refused(world: World, question: str):
    """What the contract neither promises nor forbids must still be one of the two, and cost what it says."""
    account = world.customer()
    reply = account.client.post("/v1/query", json={"question": question})

    if reply.status_code != 200:
        _expect(reply, 422)
    charge = Decimal(reply.headers.get("x-patronage-charge", "0"))
    assert account.money() == (Decimal(1) - charge, Decimal(0))


def test_the_server_is_alive_and_well_after_all_that(world: World, payer: Account):
    before = payer.balance
    answer = payer.ask(**_GOOD)

    assert answer["sources"][0]["document_id"] == "mary/light"
    assert payer.balance == before - Decimal(answer["receipt"]["charge"]["amount"])
    assert cli(world.data_dir, "audit", env=world.env)["balanced"] is True
    log = world.server.log.read_text(errors="replace")
    assert "request failed" not in log, log[log.index("request failed") - 500 :][:3_000]
