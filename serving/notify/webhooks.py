"""Webhooks: signed as Standard Webhooks says (https://www.standardwebhooks.com), and never a way into the network.

A URL comes from outside, so it is called with care: http and https only, no credentials in it, no redirects followed,
nothing read of the response but its status. Unless a setting allows it, every address that its host resolves to must be
public, and the call goes to the address that was looked at, not to what a second look-up would say.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import secrets
import socket
import time
from contextlib import suppress
from typing import Any, Final

import httpx

URL_CHARS_MAX: Final = 2_000
_PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32
TIMEOUT_S: Final = 10
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class WebhookError(ValueError):
    """A URL that may not be called, or a call that failed; the message says why."""


def check_url(url: object, *, private: bool) -> str:
    """``url`` if it may be a webhook; what its host resolves to is looked at when it is called.

    Raises:
        WebhookError: it may not.
    """
    try:
        parsed = httpx.URL(url) if isinstance(url, str) and len(url) <= URL_CHARS_MAX else None
    except httpx.InvalidURL:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise WebhookError(
            f"webhook: {str(url)[:80]!r} is not an http or https URL of at most {URL_CHARS_MAX} characters"
        )
    if parsed.userinfo:
        raise WebhookError("webhook: a URL with a user or password is not called; the signature says who sends")
    address = _address(parsed.host)
    if not private and (parsed.host == "localhost" or (address is not None and not _public(address))):
        raise WebhookError(_refused(parsed.host))
    return str(parsed)


def new_secret() -> str:
    """A secret to sign with, in the form that verifying libraries take."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def headers(secret: str, identifier: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that sign a call: HMAC-SHA256 over id, seconds since the epoch and body, joined by dots."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    digest = hmac.digest(key, f"{identifier}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


async def call(client: httpx.AsyncClient, url: str, secret: str, identifier: str, body: str, *, private: bool) -> None:
    """Send one event.

    Raises:
        WebhookError: the URL may not be called, or nothing answered with 2xx in time.
    """
    data = body.encode()
    signed = headers(secret, identifier, int(time.time()), data)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            target = httpx.URL(url)
            *others, last = await _resolve(target, private=private)
            for address in others:
                with suppress(httpx.ConnectError):
                    status = await _post(client, target, address, data, signed)
                    break
            else:
                status = await _post(client, target, last, data, signed)
    except (httpx.HTTPError, OSError, TimeoutError) as error:
        raise WebhookError(f"{type(error).__name__}: {error}"[:200]) from error
    if not httpx.codes.is_success(status):
        raise WebhookError(f"status {status}")


async def _post(client: httpx.AsyncClient, target: httpx.URL, address: str, data: bytes, signed: dict[str, str]) -> int:
    request = client.build_request(
        "POST",
        target.copy_with(host=address),
        content=data,
        headers={"host": target.netloc.decode(), "content-type": "application/json", **signed},
        extensions={"sni_hostname": target.host},
    )
    response = await client.send(request, stream=True)
    await response.aclose()
    return response.status_code


async def _resolve(target: httpx.URL, *, private: bool) -> list[str]:
    port = target.port or (443 if target.scheme == "https" else 80)
    found: list[Any] = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
    for each in found:
        address = _address(str(each[4][0]))
        if not private and (address is None or not _public(address)):
            raise WebhookError(_refused(target.host))
    return [str(each[4][0]) for each in found]


def _address(host: str) -> _Address | None:
    """The address that a host is written as, also in the short forms that resolvers take; None if it is a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _public(address: _Address) -> bool:
    """Not even behind an IPv6 address that carries an IPv4 one."""
    if isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped or address.sixtofour or address.teredo or address in _NAT64
    ):
        return False
    return address.is_global and not address.is_multicast


def _refused(host: str) -> str:
    return f"webhook: {host} is not a public address; PATRONAGE_WEBHOOK_PRIVATE_HOSTS=true allows such hosts"
