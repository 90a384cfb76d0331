"""Webhooks: signatures that others can check, and calls that lead nowhere but where they should."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from serving.notify import webhooks
from serving.notify.webhooks import WebhookError
from tests.tls_proxy import certificate

pytestmark = pytest.mark.anyio


def test_the_signature_is_that_of_standard_webhooks():
    """The example of its specification."""
    signed = webhooks.headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        datetime.fromtimestamp(1614265330, UTC),
        '{"test": 2432232314}',
    )
    assert signed == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("body", ['{"a":1}', '{"a":"Zoë \u2028"}', "{}"])
def test_a_receiver_verifies_it_with_the_library_and_nothing_else_passes(body):
    secret, now = webhooks.new_secret(), datetime.now(UTC)
    signed = webhooks.headers(secret, "msg_1", now, body)
    assert Webhook(secret).verify(body.encode(), signed) == json.loads(body)
    for other, data, sent in (
        (webhooks.new_secret(), body, signed),
        (secret, body + " ", signed),
        (secret, body, signed | {"webhook-id": "msg_2"}),
        (secret, body, signed | {"webhook-timestamp": str(int(now.timestamp()) - 1)}),
        (secret, body, webhooks.headers(secret, "msg_1", now - timedelta(minutes=6), body)),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(other).verify(data, sent)


def test_secrets_are_long_and_differ():
    made = {webhooks.new_secret() for _ in range(10)}
    assert len(made) == 10
    assert {len(base64.b64decode(each.removeprefix("whsec_"))) for each in made} == {32}


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "10.1.2.3", "0x7f.1", "localhost"])
def test_a_private_host_may_be_called_only_if_the_setting_says_so(host):
    url = f"https://{host}/x"
    assert webhooks.check_url(url, private=True) == url
    with pytest.raises(WebhookError, match="not a public address"):
        webhooks.check_url(url, private=False)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a?b=c", "http://example.org:8080/", "https://8.8.8.8/x", "https://example.org./x",
        "http://my_service.example.org/", f"https://{'a' * 63}.org/", "https://xn--mnchen-3ya.example/",
        f"https://{'.'.join(['a' * 63] * 3)}.{'b' * 57}.org/", "https://[2606:4700::1111]/x",
    ],
)  # fmt: skip
def test_public_urls_are_kept_as_they_are(url):
    assert webhooks.check_url(url, private=False) == url


def test_a_name_in_another_script_is_kept_as_it_is_looked_up():
    assert webhooks.check_url("https://münchen.example/ä", private=False) == "https://xn--mnchen-3ya.example/%C3%A4"


@pytest.mark.parametrize(
    "url",
    [
        # Names that no resolver takes.
        "http://a..b/", "http://.a/", "http://.../", "http://a../", f"http://{'a' * 64}.org/", "http://-a.org/", "http://a-.org/",
        f"https://{'.'.join(['a' * 63] * 3)}.{'b' * 58}.org/", "http://a+b.org/", "http://%61.org/", "http://a,b/", "http://a:b/",
        "http://1.2.3.4.5/", "http://256.1.1.1/", "http://a.1/", "http://[1::2::3]/", "http://[v1.a]/", "http://[]/",
        # Names of other scripts that cannot be written in ASCII.
        "http://xn--a/", "http://a.xn--a.org/", "http://é..org/", "http://☃.org/", f"http://{'é' * 60}.org/", "http://ab--é.org/",
        # Ports.
        "http://a.org:0/", "http://a.org:65536/", "http://a.org:99999/", "http://a.org:-1/", "http://a.org:x/",
        # What no encoding carries, what nobody sees, what ends a header.
        "http://\ud800.org/", "http://a.org/\udcff", "http://a.org/\x00", "http://a.org/\r\nhost: b",
        "http://a.org/a b", "http://a b.org/", " http://a.org/", "http://a.org/\u00a0", "http://a.org/\u200b", "http://a.org/\u2028",
        "http://a.org/\u202e", "http://a.org/\x7f", "http://a.org/\t",
        # Longer than it looks.
        f"http://a.org/{'€' * 1000}", f"http://a.org/{'x' * 2000}",
        # No URL, or none of the web.
        "", "http:", "http:///x", "//a.org/", "a.org", "ftp://a.org/", "unix:///x", "http://u@a.org/", 7, None,
    ],
)  # fmt: skip
def test_what_can_never_be_called_is_refused_when_it_is_set(url):
    """Whatever the setting: it is not a matter of trust."""
    for private in (True, False):
        with pytest.raises(WebhookError, match=r"^webhook: ") as refused:
            webhooks.check_url(url, private=private)
        assert str(refused.value).isprintable(), "it goes to a terminal and into JSON"
        assert len(str(refused.value)) < 400


async def test_a_name_that_resolves_to_a_private_address_is_not_called():
    """Whatever it resolved to when it was set: what is looked at is what is called."""
    called = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://localhost:{server.sockets[0].getsockname()[1]}/"

    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("localhost", server.sockets[0].getsockname()[1])
        return ["127.0.0.1"]

    async with server:
        with pytest.raises(WebhookError, match="not a public address"):
            await webhooks.call(url, webhooks.new_secret(), "msg_1", "{}", private=False, resolve=resolve)
        assert not called.is_set()
        await webhooks.call(url, webhooks.new_secret(), "msg_1", "{}", private=True, resolve=resolve)
        assert called.is_set()


async def said(*parts: bytes, for_ever: bool = False, body: str = "{}") -> bytes:
    """Call an endpoint that answers with these, the last of them again and again if it is for ever; what it was sent.

    Raises:
        WebhookError: as the call.
    """
    sent = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sent.set_result(head + await reader.readexactly(len(body.encode())))
        with suppress(OSError):
            for part in parts:
                writer.write(part)
            while for_ever:
                await writer.drain()
                writer.write(parts[-1])
            await writer.drain()
        writer.transport.abort() if for_ever else writer.close()

    async def resolve(_: str, __: int) -> list[str]:
        return ["127.0.0.1"]

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://tell.example:{server.sockets[0].getsockname()[1]}/low?a=b%20c"
        await webhooks.call(url, webhooks.new_secret(), "msg_1", body, private=True, resolve=resolve)
    return await sent


@pytest.mark.parametrize(
    "parts",
    [
        [b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000],
        [b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 1_000],
        [b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 10_000],
        [b"HTTP/1.1 200 OK\r\na: ", b"a" * 100_000],
    ],
)
async def test_an_answer_without_end_ends_the_call_and_keeps_nobody_busy(parts):
    with pytest.raises(WebhookError, match="the head of the answer is longer"):
        await said(*parts, for_ever=True)


async def test_of_an_answer_only_the_head_is_read_however_it_comes():
    await said(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2", b"04 \r\n\r", b"\n")
    await said(b"HTTP/1.0 200\r\n\r\n")
    await said(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000000\r\n\r\n", b"a" * 100_000, for_ever=True)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n"], "status 302"),
        ([b"HTTP/1.1 410 Gone\r\n\r\n"], "status 410"),
        ([b"HTTP/1.1 101 Switching Protocols\r\n\r\n"], "IncompleteReadError"),
        ([b"\x00\xff\r\n\r\n"], "not an HTTP server"),
        ([b"HTTP/1.1 20\r\n\r\n"], "not an HTTP server"),
        ([b"HTTP/1.1 200 OK\r\n"], "IncompleteReadError"),
        ([], "IncompleteReadError"),
    ],
)
async def test_what_is_no_success_fails_and_says_why(parts, why):
    with pytest.raises(WebhookError, match=why):
        await said(*parts)


async def test_the_request_is_one_that_any_server_reads():
    sent = await said(b"HTTP/1.1 204 No Content\r\n\r\n", body='{"who":"Zoë"}')
    head, _, body = sent.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    assert first == "POST /low?a=b%20c HTTP/1.1"
    assert fields["host"].startswith("tell.example:")
    assert (fields["content-type"], fields["content-length"]) == ("application/json", str(len(body)))
    assert {"webhook-id", "webhook-timestamp", "webhook-signature"} <= fields.keys()
    assert json.loads(body) == {"who": "Zoë"}


async def test_https_is_called_under_the_name_that_its_certificate_must_carry(tmp_path, monkeypatch):
    pem = certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(pem))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    async def resolve(_: str, __: int) -> list[str]:
        return ["127.0.0.1"]

    async def call(host: str, port: int) -> None:
        url = f"https://{host}:{port}/"
        await webhooks.call(url, webhooks.new_secret(), "msg_1", "{}", private=True, resolve=resolve)

    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(pem)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=own) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(WebhookError, match="CERTIFICATE_VERIFY_FAILED"):
            await call("127.0.0.1", port)
        monkeypatch.setattr(webhooks, "trusted", lambda: context)
        with pytest.raises(WebhookError, match="CERTIFICATE_VERIFY_FAILED"):
            await call("tell.example", port)
        await call("127.0.0.1", port)
