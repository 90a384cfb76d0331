"""Jobs over HTTP: large uploads and closes that are followed, cancelled, and survive what ends the server."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest

from serving.jobs.runner import AT_ONCE
from serving.store.jobs import Kind
from tests.e2e.world import World, open_world, problem
from tests.servers import cli, this_period, wait_for

LINE = "The keeper of the lighthouse on Osk Island writes down the weather every morning. "
SHORT, LONG = LINE * 2, LINE * 60
"""Below and above what is taken in at once here."""
HUGE = "".join(f"{LINE} It was day {number}. " for number in range(1_200))
"""Some 120 passages: seconds of work."""
ASYNC = {"prefer": "respond-async"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[World]:
    """A server of its own, on which small documents are large; it is killed."""
    env = {**e2e_env, "PATRONAGE_JOB_CHARS": "1000", "PATRONAGE_CONCURRENT_UPLOADS": "3"}
    with open_world(tmp_path_factory.mktemp("jobs") / "data", env) as found:
        yield found


def upload(client: httpx.Client, name: str, text: str, **headers: str) -> dict[str, Any]:
    """Send a document that is taken in by a job, and give the job."""
    reply = client.post("/v1/documents", json={"id": name, "text": text}, headers=headers)
    assert reply.status_code == 202, reply.text
    job: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    assert reply.headers["retry-after"] == "1"
    return job


def follow(client: httpx.Client, job: dict[str, Any], *states: str) -> dict[str, Any]:
    """The job, once it is in one of these states."""

    def reached() -> dict[str, Any] | None:
        reply = client.get(f"/v1/jobs/{job['id']}")
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        assert ("retry-after" in reply.headers) == (found["ended"] is None)
        return found if found["state"] in states else None

    return wait_for(reached)


def follow_once(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    return follow(client, job, "queued", "running", "done", "failed")


def in_work(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    return wait_for(lambda: (found := follow(client, job, "running"))["progress"]["total"] > 0 and found)


def test_a_short_document_is_taken_at_once_and_a_long_one_by_a_job(world: World):
    mary = world.contributor("mary")
    assert mary.post("/v1/documents", json={"id": "mary/short", "text": SHORT}).status_code == 201
    job = upload(mary, "mary/long", LONG)
    assert (job["kind"], job["subject"], job["state"], job["result"]) == ("document", "mary/long", "queued", None)
    done = follow(mary, job, "done", "failed")
    assert done["state"] == "done", done
    assert done["result"] == mary.get("/v1/documents/mary/long").json()
    assert done["ended"] is not None
    assert done in mary.get("/v1/jobs").json()["data"]
    answer = world.customer().ask("What does the keeper of the lighthouse on Osk Island write down?")
    assert any(source["document_id"] in ("mary/long", "mary/short") for source in answer["sources"])


def test_who_prefers_not_to_wait_has_a_job_for_a_short_one(world: World):
    mary = world.contributor("mary")
    document = {"id": "mary/preferred", "text": SHORT}
    reply = mary.post("/v1/documents", json=document, headers={"prefer": "handling=lenient, Respond-Async; x=1"})
    assert (reply.status_code, reply.headers["preference-applied"]) == (202, "respond-async")
    assert follow(mary, reply.json(), "done")["result"]["id"] == "mary/preferred"
    reply = mary.post("/v1/documents", json=document, headers={"prefer": "wait=10"})
    assert reply.status_code == 200, "it is there"


@pytest.mark.parametrize(
    ("document", "status", "code"),
    [
        ({"id": "bo/not-mine", "text": LONG, "contributor": "bo"}, 403, "wrong_contributor"),
        ({"id": "mary/nobody", "text": LONG, "splits": [{"contributor": "nobody", "role": "x", "share": 1_000_000}]},
         422, "invalid"),
        ({"id": "mary/taken", "text": LONG}, 409, "document_conflict"),
        ({"id": "mary/gone", "text": LONG}, 409, "document_conflict"),
        ({"id": "mary/large", "text": "a" * 10_000_001}, 422, "invalid"),
    ],
    ids=["of another", "split for nobody", "taken", "withdrawn", "too large"],
)  # fmt: skip
def test_what_cannot_be_taken_is_refused_before_it_is_promised(world: World, document, status: int, code: str):
    mary, bo = world.contributor("mary"), world.contributor("bo")
    bo.post("/v1/documents", json={"id": "mary/taken", "text": "Taken."})
    mary.post("/v1/documents", json={"id": "mary/gone", "text": "Gone."})
    mary.delete("/v1/documents/mary/gone")
    before = mary.get("/v1/jobs").json()["data"]
    reply = mary.post("/v1/documents", json=document)
    assert (reply.status_code, problem(reply)["error"]["code"]) == (status, code), reply.text
    assert mary.get("/v1/jobs").json()["data"] == before


def test_a_job_in_work_is_followed_and_cancelled_and_leaves_nothing(world: World):
    mary = world.contributor("mary")
    job = upload(mary, "mary/cancelled", HUGE)
    seen = in_work(mary, job)
    assert seen["progress"]["unit"] == "passages"
    assert seen["progress"]["total"] > 60
    reply = mary.delete(f"/v1/jobs/{job['id']}")
    assert (reply.status_code, reply.json()["state"]) == (200, "cancelled")
    assert upload(mary, "mary/after", LONG)["state"] == "queued"
    wait_for(lambda: mary.get("/v1/documents/mary/after").status_code == 200, 20)
    assert mary.get("/v1/documents/mary/cancelled").status_code == 404
    assert mary.delete(f"/v1/jobs/{job['id']}").json() == reply.json(), "again"


def test_a_job_is_nobody_elses(world: World):
    mary = world.contributor("mary")
    job = upload(mary, "mary/own", LONG)
    for other in (world.contributor("bo"), world.customer().client, world.operator()):
        for method in ("GET", "DELETE"):
            reply = other.request(method, f"/v1/jobs/{job['id']}")
            assert (reply.status_code, problem(reply)["error"]["code"]) == (404, "not_found")
        assert job["id"] not in other.get("/v1/jobs").text
    assert follow(mary, job, "done")


def test_the_last_word_counts_whoever_was_asked_first(world: World):
    """A withdrawal or another text while the job works is not undone by it."""
    mary = world.contributor("mary")
    for name in ("mary/replaced", "mary/withdrawn-later"):
        assert mary.post("/v1/documents", json={"id": name, "text": SHORT}).status_code == 201
    withdrawn = upload(mary, "mary/withdrawn-later", HUGE)
    in_work(mary, withdrawn)
    assert mary.delete("/v1/documents/mary/withdrawn-later").json()["state"] == "withdrawn"
    failed = follow(mary, withdrawn, "failed")
    assert failed["error"]["code"] == "document_conflict"
    assert mary.get("/v1/documents/mary/withdrawn-later").json()["state"] == "withdrawn"

    replaced = upload(mary, "mary/replaced", HUGE)
    in_work(mary, replaced)
    version = mary.post("/v1/documents", json={"id": "mary/replaced", "text": "The last word."}).json()["version"]
    assert follow(mary, replaced, "failed")["error"]["code"] == "document_conflict"
    assert mary.get("/v1/documents/mary/replaced").json()["version"] == version


def test_short_uploads_of_its_owner_do_not_hold_up_what_was_promised(world: World):
    """They fill its queue all the time, and each piece of the job needs a place there."""
    mary = world.contributor("mary")
    job = upload(mary, "mary/promised", LONG)
    refused: list[int] = []
    over = threading.Event()

    def send(number: int) -> None:
        with world.server.client(world.keys["mary"]) as client:
            while not over.is_set():
                document = {"id": f"mary/beside-{number}", "text": f"{time.time()} {SHORT}"}
                refused.append(client.post("/v1/documents", json=document).status_code)

    with ThreadPoolExecutor(8) as threads:
        for number in range(8):
            threads.submit(send, number)
        try:
            done = wait_for(lambda: follow(mary, job, "done", "failed"), 120)
        finally:
            over.set()
    assert done["state"] == "done", done
    assert 503 in refused, "the queue was full"
    (database,) = world.data_dir.glob("*.sqlite3")
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT attempts FROM jobs WHERE id = ?", (job["id"],)).fetchone() == (1,)
    assert "a job failed" not in world.server.log.read_text()


def test_a_large_upload_again_is_the_same_job_and_others_have_a_bound(world: World):
    cleo = world.contributor("cleo")
    jobs = [upload(cleo, f"cleo/{number}", HUGE + str(number)) for number in range(3)]
    assert upload(cleo, "cleo/0", HUGE + "0")["id"] == jobs[0]["id"]
    reply = cleo.post("/v1/documents", json={"id": "cleo/3", "text": LONG})
    assert (reply.status_code, problem(reply)["error"]["code"]) == (503, "overloaded")
    assert "3 may" in problem(reply)["detail"]
    assert cleo.post("/v1/documents", json={"id": "cleo/short", "text": SHORT}).status_code == 201, "beside them"
    assert world.customer().ask("When do spring tides come?")["answer"]
    for job in jobs:
        assert cleo.delete(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_job_outlives_the_server(world: World, end: str):
    mary = world.contributor("mary")
    job = upload(mary, f"mary/outlives-{end}", HUGE)
    in_work(mary, job)
    getattr(world.server, end)()
    world.server.start()
    mary = world.contributor("mary")
    done = wait_for(lambda: follow(mary, job, "done", "failed"), 120)
    assert done["state"] == "done", done
    assert mary.get(f"/v1/documents/mary/outlives-{end}").json()["state"] == "active"
    (database,) = world.data_dir.glob("*.sqlite3")
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT attempts, request FROM jobs LEFT JOIN job_requests USING (number) WHERE id = ?"
        assert connection.execute(query, (job["id"],)).fetchone() == ({"kill": 2, "stop": 1}[end], None)


def test_a_close_is_a_job_for_who_prefers_that(tmp_path, e2e_env: dict[str, str]):
    period = this_period()
    with open_world(tmp_path / "data", e2e_env) as world:
        world.customer().ask("When was the Vellmar lighthouse built?")
        operator = world.operator()
        close = f"/v1/admin/periods/{period}/close"
        reply = operator.post(close, json={}, headers=ASYNC)
        assert (reply.status_code, problem(reply)["error"]["code"]) == (409, "period"), "it is not over"
        assert operator.post("/v1/admin/periods/2026-13/close", headers=ASYNC).status_code == 422
        reply = operator.post(close, json={"early": True}, headers=ASYNC)
        assert reply.status_code == 202, reply.text
        job = reply.json()
        assert (job["kind"], job["subject"]) == ("close", period)
        assert operator.get(reply.headers["location"]).json()["id"] == job["id"]
        done = follow(operator, job, "done", "failed")
        assert (done["state"], done["result"]["period"], done["result"]["records"]) == ("done", period, 1), done
        assert done["progress"]["unit"] == "records"
        reply = operator.post(close, json={"early": True}, headers=ASYNC)
        assert (reply.status_code, problem(reply)["error"]["code"]) == (409, "period"), "it is closed"
        assert world.contributor("mary").get(f"/v1/statements/{period}").status_code == 200
        assert cli(world.data_dir, "audit", env=world.env)["balanced"] is True


def test_a_close_does_not_wait_for_documents(tmp_path, e2e_env: dict[str, str]):
    places = AT_ONCE[Kind.DOCUMENT]
    with open_world(tmp_path / "data", e2e_env) as world:
        operator = world.operator()
        uploads = []
        for number in range(places):
            reply = operator.post("/v1/admin/contributors", json={"name": f"Author {number}"})
            author = world.client(reply.json()["api_key"])
            text = f"Volume {number}. {HUGE}"
            uploads.append((author, upload(author, f"{number}/huge", text, **ASYNC)))
        wait_for(lambda: all(follow_once(*each)["state"] == "running" for each in uploads))
        period = this_period()
        reply = operator.post(f"/v1/admin/periods/{period}/close", json={"early": True}, headers=ASYNC)
        assert follow(operator, reply.json(), "done")
        assert {follow_once(*each)["state"] for each in uploads} == {"running"}, "it was not first"


def test_beside_a_held_lock_a_job_waits_and_nobody_else(world: World):
    mary, customer = world.contributor("mary"), world.customer()
    customer.ask("When do spring tides come?")
    job = upload(mary, "mary/locked", LONG + "Locked.")
    (database,) = world.data_dir.glob("*.sqlite3")
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        while time.monotonic() - began < 2:
            customer.ask("When do spring tides come?")
            assert mary.get(f"/v1/jobs/{job['id']}").json()["state"] in ("queued", "running", "done")
        other.execute("ROLLBACK")
    assert follow(mary, job, "done")
