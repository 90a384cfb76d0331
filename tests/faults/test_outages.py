"""Redis, the server or both go away in the middle of an answer: what was delivered is charged once, or nothing is."""

from __future__ import annotations

import sqlite3
import subprocess
import threading
from contextlib import closing, contextmanager, suppress
from decimal import Decimal

import httpx
import psutil
import pytest
from redis import Redis
from redis.exceptions import RedisError

from metering.redis.server import find_redis_server
from metering.spool import state_of
from tests.faults.shop import PATH, PLAIN, STREAM, events, open_shop, spent_by, text_of
from tests.processes import ended
from tests.servers import PATIENCE_SECONDS, cli, run, this_period, wait_for
from tests.upstream import PIECES, Script

_STALLS = Script(stall_after=4)
_SAID = "".join(PIECES[:4])
_WHOLE = "".join(PIECES)


class RedisProcess:
    """A ``redis-server`` that nobody starts again but the test."""

    def __init__(self, folder):
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.process = None

    @property
    def url(self):
        return f"unix://{self.socket}"

    def start(self):
        command = [
            find_redis_server(), "--port", "0", "--unixsocket", self.socket, "--dir", self.folder, "--save", "",
            "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(self.answers)

    def answers(self):
        try:
            with Redis(unix_socket_path=str(self.socket)) as client:
                return client.ping()
        except RedisError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def redis(tmp_path_factory):
    found = RedisProcess(tmp_path_factory.mktemp("redis"))
    found.start()
    yield found
    found.kill()


@pytest.fixture
def env(model_cache):
    return {"PATRONAGE_MODEL_CACHE": str(model_cache)}


@pytest.fixture
def shop(tmp_path, env, embedder):
    with open_shop(tmp_path / "data", env, embedder) as found:
        found.upstream.reset(script=_STALLS)
        yield found


@pytest.fixture
def apart(tmp_path, env, embedder, redis):
    """A shop on the Redis of the test."""
    with open_shop(tmp_path / "data", {**env, "PATRONAGE_REDIS_URL": redis.url}, embedder) as found:
        found.upstream.reset(script=_STALLS)
        yield found


@contextmanager
def asking(shop, account, body, **headers):
    """One request in a thread, up to where the model stalls; gives the list that its reply comes into."""
    replies = []
    thread = threading.Thread(
        target=lambda: replies.append(account.client.post(PATH, json=body, headers=headers)), daemon=True
    )
    thread.start()
    assert shop.upstream.stalled.wait(PATIENCE_SECONDS)
    yield replies
    shop.upstream.go.set()
    thread.join(60)
    assert not thread.is_alive()


def renewed(shop, account):
    """The account's client, at the server's new address."""
    account.client = shop.world.client(account.key)


def spooled(shop):
    return len(state_of(shop.world.data_dir / "spool").waiting)


def assert_books_hold(shop, env):
    shop.world.server.stop()
    audit = cli(shop.world.data_dir, "audit", env=env)
    assert audit["balanced"], audit


@pytest.mark.parametrize("body", [STREAM, PLAIN], ids=["stream", "plain"])
def test_redis_gone_before_the_charge_is_charged_when_it_is_back(apart, redis, env, body):
    account, other = apart.world.customer(), apart.world.customer()
    with asking(apart, account, body) as replies:
        redis.kill()
    reply = replies[0]
    assert reply.status_code == 200
    receipt = reply.json()["receipt"] if body is PLAIN else events(reply.content)[-1]["receipt"]
    assert Decimal(receipt["charge"]["amount"]) == apart.price(_WHOLE)
    assert spooled(apart) == 1
    assert account.client.get(f"/v1/receipts/{receipt['id']}").json()["charge"] == receipt["charge"]
    wait_for(lambda: "patronage_spool_captures 1.0" in apart.world.client().get("/metrics").text)

    refused = account.client.post(PATH, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "metering_unavailable")
    assert other.client.post(PATH, json=body).status_code == 503
    wait_for(lambda: "patronage_holds_abandoned 1.0" in apart.world.client().get("/metrics").text)

    redis.start()
    wait_for(lambda: "patronage_holds_abandoned 0.0" in apart.world.client().get("/metrics").text)
    assert account.client.post("/v1/query", json={"question": "Who built it?"}).status_code == 200
    assert spooled(apart) == 0, "what is owed comes before anything new"
    rows = account.usage(2)
    charged = {row["model"]: Decimal(row["charge"]["amount"]) for row in rows}
    assert sum(row["queries"] for row in rows) == 2
    assert charged["writer-1"] == apart.price(_WHOLE)
    assert spent_by(account) == sum(charged.values())
    assert_books_hold(apart, {**env, "PATRONAGE_REDIS_URL": redis.url})


def test_a_charge_in_the_spool_survives_the_server_too(apart, redis, env):
    account = apart.world.customer()
    with asking(apart, account, STREAM, **{"Idempotency-Key": "order-1"}) as replies:
        redis.kill()
    assert spooled(apart) == 1
    apart.world.server.kill()
    redis.start()
    apart.world.server.start()
    renewed(apart, account)

    assert spooled(apart) == 0
    assert spent_by(account) == apart.price(_WHOLE)
    again = account.client.post(PATH, json=STREAM, headers={"Idempotency-Key": "order-1"})
    assert events(again.content)[-1]["receipt"] == events(replies[0].content)[-1]["receipt"]
    assert spent_by(account) == apart.price(_WHOLE)
    assert_books_hold(apart, {**env, "PATRONAGE_REDIS_URL": redis.url})


def test_a_charge_that_redis_took_and_could_not_answer_is_not_taken_twice(apart, redis, env):
    """Redis hangs, takes the charge when it goes on, and is sent it again from the spool."""
    account = apart.world.customer()
    with asking(apart, account, STREAM) as replies:
        psutil.Process(redis.process.pid).suspend()
    assert events(replies[0].content)[-1]["receipt"]
    assert spooled(apart) == 1
    psutil.Process(redis.process.pid).resume()
    wait_for(lambda: spooled(apart) == 0)

    assert spent_by(account) == apart.price(_WHOLE)
    assert sum(row["queries"] for row in account.usage()) == 1
    assert_books_hold(apart, {**env, "PATRONAGE_REDIS_URL": redis.url})


def test_a_job_waits_for_redis_however_long_it_is_away(apart, redis, env):
    """Five attempts are for what a job does to the server, not for what happens to the server."""
    operator, period = apart.world.operator(), this_period()
    apart.world.customer()
    redis.kill()
    close = f"/v1/admin/periods/{period}/close"
    reply = operator.post(close, json={"early": True}, headers={"prefer": "respond-async"})
    assert reply.status_code == 202, reply.text
    wait_for(lambda: apart.world.server.log.read_text().count("a job failed") >= 2)
    with closing(sqlite3.connect(apart.world.data_dir / "patronage.sqlite3")) as database:
        assert database.execute("SELECT attempts FROM jobs").fetchone()[0] <= 1
    redis.start()
    wait_for(lambda: operator.get(reply.headers["location"]).json()["state"] == "done")
    assert_books_hold(apart, {**env, "PATRONAGE_REDIS_URL": redis.url})


def test_neither_redis_nor_disk_takes_the_charge_so_nothing_is_sold(apart, redis, env):
    account = apart.world.customer()
    spool = apart.world.data_dir / "spool"
    spool.write_text("a file where the folder would be: the disk refuses")
    with asking(apart, account, STREAM) as replies:
        redis.kill()
    last = events(replies[0].content)[-1]
    assert last["error"]["code"] == "metering_unavailable"
    assert "receipt" not in last
    spool.unlink()
    redis.start()
    assert_books_hold(apart, {**env, "PATRONAGE_REDIS_URL": redis.url})


def test_a_damaged_spool_file_is_named_and_never_skipped(apart, redis, env):
    account = apart.world.customer()
    with asking(apart, account, STREAM):
        redis.kill()
    apart.world.server.kill()
    (name,) = state_of(apart.world.data_dir / "spool").waiting
    path = apart.world.data_dir / "spool" / name
    path.write_bytes(path.read_bytes()[:-1])
    redis.start()
    env = {**env, "PATRONAGE_REDIS_URL": redis.url}

    audit = cli(apart.world.data_dir, "audit", env=env, status=1)
    failed = [check for check in audit["checks"] if not check["ok"]]
    assert [check["name"] for check in failed] == ["every spooled charge is charged"]
    assert path.stem in failed[0]["detail"]
    doctor = run(apart.world.data_dir, "--json", "doctor", env=env)
    assert doctor.returncode == 1
    assert "1 charges are damaged" in doctor.stdout


def test_a_server_killed_in_the_middle_charges_nothing_and_what_it_held_is_free(shop, env):
    account = shop.world.customer()
    named = {"Idempotency-Key": "order-1"}
    with account.client.stream("POST", PATH, json=STREAM, headers=named) as reply:
        next(reply.iter_raw())
        assert shop.upstream.stalled.wait(PATIENCE_SECONDS)
        assert account.money()[1] > 0
        shop.world.server.kill()
    shop.world.server.start()
    renewed(shop, account)

    assert account.money() == (1, 0)
    assert account.client.get("/v1/usage").json()["data"] == []
    shop.upstream.reset()
    again = account.client.post(PATH, json=STREAM, headers=named)
    assert text_of(events(again.content)) == _WHOLE
    assert spent_by(account) == shop.price(_WHOLE)
    assert_books_hold(shop, env)


def test_a_server_that_is_told_to_stop_finishes_what_it_delivers(shop, env):
    account = shop.world.customer()
    with asking(shop, account, STREAM) as replies:
        shop.world.server.process.terminate()
        wait_for(lambda: not ready(shop))
    assert text_of(events(replies[0].content)) == _WHOLE
    assert ended(shop.world.server.process) == 0
    shop.world.server.start()
    renewed(shop, account)

    assert spent_by(account) == shop.price(_WHOLE)
    assert_books_hold(shop, env)


def ready(shop):
    try:
        with shop.world.server.client() as client:
            return client.get("/health/ready").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("body", [STREAM, PLAIN], ids=["stream", "plain"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_a_server_that_cannot_wait_is_paid_for_what_it_delivered(tmp_path, env, embedder, body, twice):
    """After its time to finish, or told a second time: a stream is paid as far as it came, a plain answer is void."""
    limits = {"PATRONAGE_FINISH_SECONDS": "60" if twice else "1"}
    with open_shop(tmp_path / "data", {**env, **limits}, embedder) as shop:
        shop.upstream.reset(script=_STALLS)
        account = shop.world.customer()
        client = threading.Thread(target=ask_and_be_left, args=(account, body))
        client.start()
        assert shop.upstream.stalled.wait(PATIENCE_SECONDS)
        shop.world.server.process.terminate()
        if twice:
            wait_for(lambda: not ready(shop))
            shop.world.server.process.terminate()
        assert ended(shop.world.server.process) == 0
        client.join(10)
        shop.world.server.start()
        renewed(shop, account)

        assert spent_by(account) == (shop.price(_SAID) if body is STREAM else 0)
        assert_books_hold(shop, env)


def ask_and_be_left(account, body):
    with suppress(httpx.HTTPError), account.client.stream("POST", PATH, json=body) as reply:
        reply.read()
