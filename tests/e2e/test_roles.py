"""Who may do what: every route with every key, and nothing of another's."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.e2e.routes import OPEN, QUESTION, ROLES, ROUTES, Route
from tests.e2e.world import World, problem
from tests.servers import wait_for


@dataclass(frozen=True)
class Cast:
    """One client of each role, and what fills in the paths."""

    clients: dict[str, httpx.Client]
    names: dict[str, str]

    def send(self, route: Route, client: httpx.Client) -> httpx.Response:
        return client.request(route.method, route.path.format(**self.names), json=route.body, headers=route.headers)


@pytest.fixture(scope="session")  # a worker may come back to this module: its document is added once
def cast(world: World) -> Cast:
    account = world.customer()
    world.add_document("mary", id="mary/withdrawn", text="A text that is to be withdrawn.")
    clients = {
        "none": world.client(),
        "unknown": world.client("patronage-customer-000000000000-AAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        "customer": account.client,
        "contributor": world.contributor("mary"),
        "operator": world.operator(),
    }
    clients["any"] = clients["customer"]
    return Cast(clients, {"receipt": account.ask(**QUESTION)["id"], "customer": account.id})


def _name(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.mark.parametrize("route", ROUTES, ids=_name)
@pytest.mark.parametrize("who", ["none", "unknown"])
def test_without_a_known_key_there_is_401(cast: Cast, route: Route, who: str):
    reply = cast.send(route, cast.clients[who])

    assert reply.status_code == 401
    assert problem(reply)["error"]["type"] == "authentication_error"
    assert reply.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("route", "who"),
    [(route, role) for route in ROUTES for role in ROLES if route.role not in (role, "any")],
    ids=lambda value: _name(value) if isinstance(value, Route) else value,
)
def test_with_the_key_of_another_role_there_is_403(cast: Cast, route: Route, who: str):
    reply = cast.send(route, cast.clients[who])

    assert reply.status_code == 403
    assert problem(reply)["error"]["type"] == "permission_error"


@pytest.mark.parametrize("route", ROUTES, ids=_name)
def test_the_role_that_a_route_is_for_may_use_it(cast: Cast, route: Route):
    reply = cast.send(route, cast.clients[route.role])

    assert reply.status_code in route.statuses, reply.text
    if reply.status_code == 404:
        assert problem(reply)["detail"] != "Not Found", "there is no such route"


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("who", ["none", "customer", "contributor", "operator"])
def test_what_is_for_anyone_needs_no_key(cast: Cast, path: str, who: str):
    assert cast.clients[who].get(path).status_code == 200


@pytest.mark.parametrize("role", ROLES)
def test_a_key_works_in_the_bearer_scheme_only(cast: Cast, world: World, role: str):
    route = next(route for route in ROUTES if route.role == role and route.method == "GET")
    key = cast.clients[role].headers["authorization"].removeprefix("Bearer ")
    basic = base64.b64encode(f"user:{key}".encode()).decode()
    refused = [key, f"Basic {basic}", f"Token {key}", "Bearer", f"Bearer {key[:-1]}", f"Bearer {key}x",
               f"Bearer {key.swapcase()}", "Bearer \xff\xfe"]  # fmt: skip
    nobody = world.client()

    for header in refused:
        reply = nobody.get(route.path, headers={"authorization": header.encode("latin-1")})
        assert reply.status_code == 401, header
        problem(reply)
    assert nobody.get(route.path, headers={"authorization": f"bearer {key}"}).status_code == 200
    assert nobody.get(route.path, params={"api_key": key}).status_code == 401, "a key does not go into a URL"


def test_one_customer_never_sees_anothers_receipt(world: World):
    owner, other = world.customer(), world.customer()
    receipt = owner.ask(**QUESTION)["receipt"]["id"]
    foreign = other.client.get(f"/v1/receipts/{receipt}")
    absent = other.client.get("/v1/receipts/000000000000")

    assert owner.client.get(f"/v1/receipts/{receipt}").status_code == 200
    assert (foreign.status_code, absent.status_code) == (404, 404)
    problem(foreign)
    assert foreign.text.replace(receipt, "X") == absent.text.replace("000000000000", "X"), "it does not say it exists"
    owner.usage()
    assert other.client.get(f"/v1/receipts/{receipt}").status_code == 404, "also when it has moved to the log"
    assert other.client.get("/v1/usage").json()["data"] == []


def test_a_customer_sees_own_usage_only(world: World):
    owner, other = world.customer(), world.customer()
    owner.ask(**QUESTION)
    other.ask(**QUESTION)
    other.ask(**QUESTION)

    assert sum(row["queries"] for row in owner.usage()) == 1
    assert owner.client.get("/v1/account").json()["id"] == owner.id


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_contributor_never_reaches_anothers_document(world: World, method: str):
    foreign = world.contributor("bo").request(method, "/v1/documents/mary/light")
    absent = world.contributor("bo").request(method, "/v1/documents/mary/none")

    assert (foreign.status_code, absent.status_code) == (404, 404)
    problem(foreign)
    assert foreign.text.replace("light", "X") == absent.text.replace("none", "X"), "it does not say that it exists"
    assert world.contributor("mary").get("/v1/documents/mary/light").json()["state"] == "active"


def test_a_contributor_never_replaces_anothers_document(world: World):
    before = world.contributor("mary").get("/v1/documents/mary/light").json()
    reply = world.contributor("bo").post("/v1/documents", json={"id": "mary/light", "text": "Bo was here."})

    assert reply.status_code == 409
    problem(reply)
    assert world.contributor("mary").get("/v1/documents/mary/light").json() == before


def test_a_contributor_never_brings_a_document_in_anothers_name(world: World):
    body = {"id": "bo/forged", "text": "Mary said it.", "contributor": "mary"}
    reply = world.contributor("bo").post("/v1/documents", json=body)

    assert reply.status_code == 403
    assert problem(reply)["error"]["param"] == "contributor"
    assert world.contributor("mary").get("/v1/documents/bo/forged").status_code == 404
    assert world.contributor("bo").get("/v1/documents/bo/forged").status_code == 404


@pytest.mark.parametrize("name", ["mary", "bo", "cleo"])
def test_a_contributor_lists_own_documents_only(world: World, name: str):
    listed: list[dict[str, Any]] = []
    after = ""
    while after is not None:
        page = world.contributor(name).get("/v1/documents", params={"limit": 2, "after": after}).json()
        listed += page["data"]
        after = page["next"]

    assert {each["contributor"] for each in listed} == {name}
    assert len({each["id"] for each in listed}) == len(listed) >= 3


def test_a_contributor_never_sees_who_asked_or_what(world: World):
    """Everything that a contributor can read after a query of theirs was used."""
    account = world.customer()
    question = "How many kilograms of honey does a zanzibar hive on Osk Island give a year?"
    answer = account.ask(question)
    assert answer["sources"][0]["contributor"] == "bo"
    account.usage()
    bo = world.contributor("bo")
    wait_for(lambda: bo.get("/v1/earnings").json()["documents"])
    paths = ["/v1/earnings", "/v1/documents", "/v1/documents/bo/bees", "/v1/statements", "/metrics"]
    seen = "\n".join(bo.get(path).text for path in paths)

    assert "bo/bees" in seen
    for secret in (account.id, account.id.title(), account.key.split("-")[2], "zanzibar", answer["id"]):
        assert secret not in seen
