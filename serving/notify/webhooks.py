"""Webhooks: signed as Standard Webhooks says (https://www.standardwebhooks.com), and never a way into the network.

A URL comes from outside, so it is called with care: http and https only, no credentials in it, no redirects followed,
nothing read of the response but its status. Unless a setting allows it, every address that its host resolves to must be
public, and the call goes to the address that was looked at, not to what a second look-up would say.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, partial
from typing import Final

import httpx
import idna
from standardwebhooks import Webhook

URL_CHARS_MAX: Final = 2_000
_PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32
TIMEOUT_S: Final = 10
_PORT_MAX: Final = 65_535
_ANSWER_BYTES_MAX: Final = 65_536
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)[ \r]")
_NAME_CHARS_MAX: Final = 253
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
Addresses = list[str]
Resolve = Callable[[str, int], Awaitable[Addresses]]
"""Looks up the addresses of a host for a port; raises OSError or UnicodeError where there are none."""
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class WebhookError(ValueError):
    """A URL that may not be called, or a call that failed; the message says why."""


def check_url(url: object, *, private: bool) -> str:
    """``url`` if it may be a webhook and can be called; what its host resolves to is looked at when it is called.

    Raises:
        WebhookError: it may not, or no call could ever reach it.
    """
    if not isinstance(url, str) or len(url) > URL_CHARS_MAX:
        raise WebhookError(_no_url(url))
    if any(not each.isprintable() or each.isspace() for each in url):  # unpaired surrogates are not printable either
        raise WebhookError(f"webhook: {url[:80]!r} has blanks or characters that no URL has")
    try:
        parsed = httpx.URL(url)
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError) as error:
        raise WebhookError(f"webhook: {url[:80]!r} is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not host:
        raise WebhookError(_no_url(url))
    if parsed.userinfo:
        raise WebhookError("webhook: a URL with a user or password is not called; the signature says who sends")
    if parsed.port is not None and not 1 <= parsed.port <= _PORT_MAX:
        raise WebhookError(f"webhook: port {parsed.port} is not between 1 and {_PORT_MAX}")
    if len(str(parsed)) > URL_CHARS_MAX:  # it is longer once it is written in ASCII
        raise WebhookError(_no_url(url))
    address = _address(host)
    if address is None:
        _check_name(parsed.raw_host.decode("ascii"))
    if not private and (host.rstrip(".").lower() == "localhost" or (address is not None and not _public(address))):
        raise WebhookError(_refused(host))
    return str(parsed)


def _check_name(host: str) -> None:
    """Refuse a name that no resolver takes (RFC 1123; underscores are common and resolve).

    Raises:
        WebhookError: with what is wrong with it.
    """
    name = host.removesuffix(".")
    labels = name.split(".")
    if len(name) > _NAME_CHARS_MAX:
        raise WebhookError(
            f"webhook: the name of the host has {len(name)} characters; at most {_NAME_CHARS_MAX} resolve"
        )
    for label in labels:
        if _LABEL.fullmatch(label) is None:
            raise WebhookError(
                f"webhook: {host[:80]} is not the name of a host: {label[:80]!r} is not 1 to 63 letters, digits and "
                "hyphens, with a hyphen neither first nor last"
            )
        if label.lower().startswith("xn--"):
            try:
                idna.decode(label)
            except UnicodeError as error:
                raise WebhookError(f"webhook: {host[:80]} is not the name of a host: {error}") from None
    if labels[-1].isdigit():
        raise WebhookError(f"webhook: {host[:80]} is neither the name of a host nor an address")


def _no_url(url: object) -> str:
    return f"webhook: {str(url)[:80]!r} is not an http or https URL of at most {URL_CHARS_MAX} characters"


@cache
def trusted() -> ssl.SSLContext:
    """The certificates of authorities that vouch for endpoints, read once."""
    return httpx.create_ssl_context(trust_env=False)


def new_secret() -> str:
    """A secret to sign with, in the form that verifying libraries take."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def headers(secret: str, identifier: str, at: datetime, body: str) -> dict[str, str]:
    """The headers that sign a call made at a time of UTC."""
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(identifier, at, body),
    }


async def call(
    url: str,
    secret: str,
    identifier: str,
    body: str,
    *,
    private: bool,
    resolve: Resolve,
) -> None:
    """Send one event, over a connection of its own: accounts share neither connections nor cookies.

    Raises:
        WebhookError: the URL may not be called, or nothing answered with 2xx in time.
    """
    signed = headers(secret, identifier, datetime.now(UTC), body)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            target = httpx.URL(url)
            reader, writer = await _connected(target, await _resolved(target, resolve, private=private))
            try:
                writer.write(_request(target, body.encode(), signed))
                status = await _status(reader)
            finally:
                writer.transport.abort()
    except (httpx.InvalidURL, OSError, TimeoutError, UnicodeError, asyncio.IncompleteReadError) as error:
        raise WebhookError(f"{type(error).__name__}: {error}"[:200]) from error
    if not httpx.codes.is_success(status):
        raise WebhookError(f"status {status}")


async def _connected(target: httpx.URL, addresses: Addresses) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first of the addresses that takes one; nothing between it and us, as no proxy is used."""
    secure = target.scheme == "https"
    name = target.raw_host.decode("ascii").removesuffix(".") if secure else None
    connect = partial(
        asyncio.open_connection,
        port=_port(target),
        limit=_ANSWER_BYTES_MAX,
        ssl=trusted() if secure else None,
        server_hostname=name,
    )
    *others, last = addresses
    for address in others:
        with suppress(OSError):
            return await connect(address)
    return await connect(last)


def _request(target: httpx.URL, body: bytes, signed: dict[str, str]) -> bytes:
    given = {
        "host": target.netloc.decode("ascii"),
        "user-agent": "patronage",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **signed,
    }
    lines = [f"POST {target.raw_path.decode('ascii')} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of the answer, of which no more is read than its head.

    Raises:
        WebhookError: it is none, or longer than any has reason to be. A client that reads whatever comes would be kept
            busy, and the event loop with it, by an endpoint that only ever says "100 Continue".
    """
    left = _ANSWER_BYTES_MAX
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            head = bytes(_ANSWER_BYTES_MAX + 1)
        left -= len(head)
        if left < 0:
            raise WebhookError(f"the head of the answer is longer than {_ANSWER_BYTES_MAX} bytes")
        found = _STATUS.match(head)
        if found is None:
            raise WebhookError("what answered is not an HTTP server")
        if (status := int(found[1])) >= httpx.codes.OK:
            return status


async def _resolved(target: httpx.URL, resolve: Resolve, *, private: bool) -> Addresses:
    found = await resolve(target.raw_host.decode("ascii"), _port(target))
    for each in found:
        address = _address(each)
        if not private and (address is None or not _public(address)):
            raise WebhookError(_refused(target.host))
    if not found:
        raise WebhookError(f"{target.host} has no address")
    return found


def _port(target: httpx.URL) -> int:
    return target.port or (443 if target.scheme == "https" else 80)


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
