"""The embedded Redis: it is reached where it lies, and what it keeps on disk follows what it holds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from redis import Redis

from metering.redis.server import RedisServer
from tests.faults.accident import redis_of
from tests.servers import wait_for

_MEGABYTE = 1024 * 1024


@pytest.mark.parametrize("name", ["a b", "a%20b", "a?b", "a#b", "a%2Fb", "a&b=c", "%", "é@:!", "[a]*"])
def test_it_is_reached_in_a_folder_of_any_name(name: str):
    """In a short path, where the socket lies in the folder itself."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short) / name
        with RedisServer(folder, fsync="no") as server, Redis.from_url(server.url) as redis:
            assert server.socket.parent == folder.resolve()
            assert redis.config_get("dir") == {"dir": str(folder.resolve())}
            redis.set("kept", "money")
        assert [path.name for path in Path(short).iterdir()] == [name]


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_a_log_that_has_grown_long_is_written_anew_at_the_next_start(tmp_path: Path, *, killed: bool):
    log = tmp_path / "redis" / "appendonly.aof"

    def start() -> RedisServer:
        return RedisServer(log.parent, fsync="everysec")

    with start() as server, Redis.from_url(server.url) as redis:
        if int(redis.info("server")["redis_version"].split(".")[0]) > 6:
            pytest.skip("Redis 7 looks after its log itself")
        redis.config_set("auto-aof-rewrite-percentage", 0)  # or a new log is written anew while this looks
        redis.set("kept", "money")
        for _ in range(70):
            redis.set("overwritten", "x" * _MEGABYTE)
        redis.delete("overwritten")
        wait_for(lambda: log.stat().st_size > 64 * _MEGABYTE)  # with everysec it may be behind
        if killed:
            redis_of(log.parent).kill()
            wait_for(lambda: log.stat().st_size < _MEGABYTE)
    with start() as server, Redis.from_url(server.url) as redis:
        wait_for(lambda: log.stat().st_size < _MEGABYTE)
        redis.set("later", "too")
    with start() as server, Redis.from_url(server.url) as redis:
        assert (redis.get("kept"), redis.get("later")) == (b"money", b"too")
        assert log.stat().st_size < _MEGABYTE
