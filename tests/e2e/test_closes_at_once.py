"""Closes of one period at once, over HTTP and on the command line: one closes it, the others are refused in words."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.commands import refused
from tests.e2e.world import World, open_world, problem
from tests.servers import cli, process, this_period

_WORDS = ("already closed by", "being closed at this moment")


def over_http(world: World, period: str) -> bool:
    reply = world.operator().post(f"/v1/admin/periods/{period}/close", json={"early": True})
    if reply.status_code == 200:
        return True
    body = problem(reply)
    assert (reply.status_code, body["error"]["code"]) == (409, "period"), reply.text
    assert any(word in body["detail"] for word in _WORDS), reply.text
    return False


def by_command(world: World, period: str) -> bool:
    done = process(world.data_dir, "period", "close", period, "--early", env=world.env)
    if done.returncode == 0:
        return True
    said = refused(done)
    assert any(word in said for word in _WORDS), said
    return False


@pytest.mark.parametrize(
    "callers",
    [[over_http] * 4, [by_command] * 4, [over_http, by_command] * 2],
    ids=["over HTTP", "on the command line", "both"],
)
def test_of_four_closes_at_once_one_closes(tmp_path: Path, e2e_env: dict[str, str], callers):
    period, barrier = this_period(), threading.Barrier(len(callers))
    with open_world(tmp_path / "data", e2e_env) as world:
        account = world.customer()
        for question in ("When was the Vellmar lighthouse built?", "How tall is the Tarn Point lighthouse?"):
            account.ask(question)

        def close(caller) -> bool:
            barrier.wait()
            return caller(world, period)

        with ThreadPoolExecutor(len(callers)) as pool:
            assert sorted(pool.map(close, callers)) == [False, False, False, True]
        statement = world.contributor("mary").get(f"/v1/statements/{period}")
        assert statement.status_code == 200
        assert cli(world.data_dir, "audit", env=world.env)["balanced"] is True
