"""The shared connection to Redis: everybody gets his own reply, whoever leaves, and it ends when it must."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import uvloop
from redis.asyncio import Connection, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from metering.meter import MeterUnavailable
from metering.redis.connection import connect, unavailable_on_failure
from metering.redis.pipe import Pipe
from tests.redis_servers import external
from tests.tls_proxy import certificate, tls

pytestmark = pytest.mark.anyio
TIMEOUT_S = 2.0


@pytest.fixture
def server():
    with external() as found:
        yield found


@pytest.fixture
async def pipe(server):
    async with Redis(port=server.port) as client:
        yield Pipe(client.connection_pool.get_available_connection(), TIMEOUT_S)


async def echo(pipe, text):
    return await (await pipe.wire()).send("ECHO", text)


async def test_a_thousand_at_once_get_their_own_replies_also_when_every_third_leaves(pipe):
    texts = [f"{i} " * (i % 50 + 1) for i in range(1_000)]
    tasks = [asyncio.create_task(echo(pipe, text)) for text in texts]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    replies = await asyncio.gather(*tasks, return_exceptions=True)

    for i, (text, reply) in enumerate(zip(texts, replies, strict=True)):
        assert reply == text.encode() or (i % 3 == 0 and isinstance(reply, asyncio.CancelledError))
    assert sum(isinstance(reply, bytes) for reply in replies) >= 666
    assert await echo(pipe, "after") == b"after"


async def test_they_share_one_connection(pipe, server):
    before = len(server.client.client_list())
    await asyncio.gather(*(echo(pipe, str(i)) for i in range(100)))
    assert len(server.client.client_list()) == before + 1


async def test_an_error_that_redis_replies_is_given_to_the_one_who_asked(pipe):
    wire = await pipe.wire()
    good, bad, also = await asyncio.gather(wire.send("ECHO", "a"), wire.send("GET"), wire.send("ECHO", "b"))
    assert (good, also) == (b"a", b"b")
    assert isinstance(bad, Exception)
    assert not wire.lost


async def test_a_large_value_comes_whole(pipe):
    text = "x" * 3_000_000
    assert await asyncio.gather(echo(pipe, text), echo(pipe, "y")) == [text.encode(), b"y"]


async def test_a_server_that_hangs_is_given_up_after_the_time_out(pipe, server):
    wire = await pipe.wire()
    pid = server.client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        found = await asyncio.gather(*(wire.send("ECHO", str(i)) for i in range(10)), return_exceptions=True)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert all(isinstance(each, RedisTimeoutError) for each in found)
    assert wire.lost
    assert await echo(pipe, "again") == b"again"


async def test_a_slow_reply_before_does_not_make_the_next_ones_late(pipe):
    """Each has its own time-out, though one timer does for all."""
    wire = await pipe.wire()
    for number in range(6):
        assert await wire.send("ECHO", str(number)) == str(number).encode()
        await asyncio.sleep(TIMEOUT_S / 4)


async def test_who_waits_when_the_server_dies_hears_so_and_the_next_connects_anew(pipe, server):
    wire = await pipe.wire()
    waiting = [asyncio.create_task(wire.send("BLPOP", "nothing", "0")) for _ in range(3)]
    await asyncio.sleep(0.05)
    server.kill()
    assert [type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)] == [RedisConnectionError] * 3
    with pytest.raises(RedisConnectionError):
        await wire.send("PING")
    with pytest.raises(RedisConnectionError):
        await pipe.wire()
    server.start()
    assert await echo(pipe, "again") == b"again"


async def test_many_that_come_while_it_is_connected_make_one_connection(pipe, server):
    before = len(server.client.client_list())
    first = asyncio.create_task(pipe.wire())
    others = [asyncio.create_task(pipe.wire()) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    assert len({id(wire) for wire in await asyncio.gather(*others)}) == 1
    assert len(server.client.client_list()) == before + 1


async def test_what_is_no_reply_ends_the_connection():
    async def talk(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, Redis(port=port, protocol=2, driver_info=None) as client:
        wire = await Pipe(client.connection_pool.get_available_connection(), TIMEOUT_S).wire()
        found = await asyncio.gather(*(wire.send("PING") for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in found] == [RedisConnectionError] * 3
        assert wire.lost


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_it_goes_through_tls_and_a_login(loop, tmp_path):
    async def talk(port):
        async with tls(port, certificate(tmp_path)) as secured:
            client = connect(f"rediss://:open-sesame@127.0.0.1:{secured}?ssl_ca_certs={tmp_path / 'redis.pem'}")
            wire = await client.wire(())
            assert await asyncio.gather(*(wire.send("ECHO", str(i)) for i in range(50))) == [
                b"%d" % i for i in range(50)
            ]
            assert await wire.send("ECHO", "x" * 500_000) == b"x" * 500_000
            await client.aclose()
            assert wire.lost

    with external() as server, asyncio.Runner(loop_factory=loop) as runner:
        server.client.config_set("requirepass", "open-sesame")
        runner.run(talk(server.port))


async def test_a_connection_that_redis_py_closes_under_a_command_is_an_outage():
    """Seen in a cluster whose slots move: its stream is None then."""
    with pytest.raises(MeterUnavailable), unavailable_on_failure():
        await Connection()._send_packed_command([b"PING"])


def test_a_defect_of_ours_is_no_outage():
    stream = None
    with pytest.raises(AttributeError), unavailable_on_failure():
        stream.writelines([b"PING"])
