"""Webhooks: signatures that others can check, and calls that lead nowhere but where they should."""

from __future__ import annotations

import asyncio
import base64

import httpx
import pytest

from serving.notify import webhooks
from serving.notify.webhooks import WebhookError

pytestmark = pytest.mark.anyio


def test_the_signature_is_that_of_standard_webhooks():
    """The example of its specification."""
    signed = webhooks.headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signed == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


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


@pytest.mark.parametrize("url", ["https://example.org/a?b=c", "http://example.org:8080/", "https://8.8.8.8/x"])
def test_public_urls_are_kept_as_they_are(url):
    assert webhooks.check_url(url, private=False) == url


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
    async with server, httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(WebhookError, match="not a public address"):
            await webhooks.call(client, url, webhooks.new_secret(), "msg_1", "{}", private=False)
        assert not called.is_set()
        await webhooks.call(client, url, webhooks.new_secret(), "msg_1", "{}", private=True)
        assert called.is_set()
