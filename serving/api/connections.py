"""Connections: what a caller may cost before there is a request. Whoever holds one open without asking is sent away.

Uvicorn's protocol over ``httptools`` reads heads of any length and waits for them for ever.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, NoReturn, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from serving.api.errors import ApiError, body_of

HEAD_BYTES_MAX: Final = 32_768
"""The longest request line with its headers."""
HEADERS_MAX: Final = 1_000
"""How many headers; small ones are as much work each as large ones."""
FRAMING_BYTES_MAX: Final = 32_768
"""What may come beside a body in chunks, and as much again as the body has: sizes, extensions, trailers."""
_CHUNK_BYTES_MIN: Final = 5
"""What a chunk has beside what is in it: its size, and the ends of two lines."""
READ_BYTES_PER_SECOND: Final = 10_000
"""The least rate at which a response is read: what is not read lies in memory, such as 16 MB of vectors for a cent."""
PIPELINED_MAX: Final = 16
"""How many requests of a connection may wait for the answer to one before them. Few clients send any."""
_OF_A_BODY: Final = (b"content-length", b"transfer-encoding")
"""What a parser passes over where a connection might be upgraded, so that the body would be another request."""
_SITE_BITS: Final = 64
"""What one customer of a provider has of IPv6 addresses counts as one address."""


@dataclass(slots=True)
class Door:
    """The limits of a server's connections, and how many are open from where."""

    address_max: int
    """Connections from one address."""
    head_seconds: float
    """From the connection, or from a request's first byte, to the end of its headers."""
    body_seconds: float
    """Between two parts of a body, and for all of one, beside what its size takes at the least rate.

    So often it is looked at how much of a response was read, too.
    """
    body_bytes_per_second: float
    """That rate."""
    trusted: tuple[IPv4Network | IPv6Network, ...] = ()
    """Proxies: their connections are many people's."""
    open: dict[str, dict[GuardedProtocol, None]] = field(default_factory=dict)
    """By site, the oldest first."""

    def site(self, host: str) -> str | None:
        """What the connections of ``host`` are counted under; None where they are not counted."""
        address = _address(host)
        if address is None or any(address in network for network in self.trusted):
            return None
        return site_of(host)

    def admit(self, connection: GuardedProtocol, site: str) -> bool:
        """Count a new connection; False if there are too many that are busy. The oldest idle one makes room."""
        there = self.open.setdefault(site, {})
        there[connection] = None
        if len(there) <= self.address_max:
            return True
        idle = next((each for each in there if each is not connection and each.is_idle()), None)
        if idle is not None:
            idle.transport.close()
        return idle is not None

    def forget(self, connection: GuardedProtocol, site: str) -> None:
        """Count a connection no longer."""
        self.open[site].pop(connection, None)
        if not self.open[site]:
            del self.open[site]

    def protocol(self) -> Callable[..., asyncio.Protocol]:
        """What uvicorn makes for each connection."""

        def make(config: Config, server_state: ServerState, app_state: dict[str, Any], **more: Any) -> GuardedProtocol:
            made = GuardedProtocol(config, server_state, app_state, **more)
            made.door = self
            return made

        return make


def site_of(host: str) -> str:
    """What an address counts as one caller with; empty for a socket of this machine."""
    address = _address(host)
    if isinstance(address, IPv6Address):
        return str(ip_network((address, _SITE_BITS), strict=False))
    return "" if address is None else str(address)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Addresses and networks, with commas between them.

    Raises:
        ValueError: one of them is neither.
    """
    return tuple(ip_network(each.strip(), strict=False) for each in text.split(",") if each.strip())


class _Stop(Exception):
    """Raised in a callback of the parser: what is left of the bytes that it was given is not read."""


class GuardedProtocol(HttpToolsProtocol):
    """Uvicorn's connection with limits on heads, on what waits, on silence, and on connections from one address."""

    door: Door
    _site: str | None = None
    _timer: asyncio.TimerHandle | None = None
    _reading = False
    """A request has begun and is not read to its end."""
    _in_head = False
    _head_bytes = 0
    """Of the head that is being read; what came together with the end of another request is not counted."""
    _new_bytes = 0
    _framing = 0
    """Bytes that came beside the body that is being read, less those of the body."""
    _chunks = 0
    """The least of them that the chunks must have had which were read, less the bytes of the body."""
    _body_until = 0.0
    """When the body that is being read must have come, by what has come of it; in seconds of the loop's clock."""
    _paused_at: float | None = None
    """Since when it is the application that does not read."""
    _refused: ApiError | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Take the connection, unless its address has too many."""
        super().connection_made(transport)
        self._site = self.door.site(self.client[0]) if self.client else None
        if self._site is not None and not self.door.admit(self, self._site):
            limit = f"{self.door.address_max} connections from this address are busy; come again when some have ended"
            self._refuse(ApiError(429, "too_many_connections", limit, headers={"retry-after": "1"}))
            return
        self._wait(self.door.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection no longer."""
        self._stop_waiting()
        self._stop_looking()
        if self._site is not None:
            self.door.forget(self, self._site)
            self._site = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came, as long as it is within the limits."""
        if self._refused is not None:
            return
        if self._paused_at is not None:
            self._body_until += self.loop.time() - self._paused_at
            self._paused_at = None
        if self._in_head:
            self._head_bytes += len(data)
        elif self._reading:
            self._framing += len(data)
        elif not self._reading:
            self._new_bytes = len(data)
        self._refused = self._parse(data)
        if self._refused is not None:
            self._refuse(self._refused)
        elif self._reading and not self._in_head:
            now = self.loop.time()
            self._paused_at = now if self.flow.read_paused else None
            self._wait(max(0.0, min(self.door.body_seconds, self._body_until - now)))

    def on_message_begin(self) -> None:
        """A request's first byte."""
        if len(self.pipeline) >= PIPELINED_MAX:
            self._stop(_too_many_pipelined())
        super().on_message_begin()
        self._reading = self._in_head = True
        self._head_bytes, self._new_bytes = self._new_bytes, 0
        self._wait(self.door.head_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; what stands after the body instead is no part of the request, which is being answered."""
        if self._in_head:
            if len(self.headers) >= HEADERS_MAX:
                self._stop(_head_too_large())
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The end of a head: the request goes to the application."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > HEAD_BYTES_MAX:
            self._stop(_head_too_large())
        if self.parser.should_upgrade() and any(name in _OF_A_BODY for name, _ in self.headers):
            self._stop(_not_upgraded())
        self._in_head = False
        self._framing = self._chunks = 0
        self._body_until = self.loop.time() + self.door.body_seconds
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """The size of a chunk. Tiny ones are work, so they are counted while they are read."""
        self._chunks += _CHUNK_BYTES_MIN
        if self._chunks > FRAMING_BYTES_MAX:
            self._stop(_framing_too_large())

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._framing -= 2 * len(body)
        self._chunks -= len(body)
        self._body_until += len(body) / self.door.body_bytes_per_second
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request: now it is we who let wait."""
        self._reading = False
        self._paused_at = None
        self._stop_waiting()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """There is more of a response than the client reads."""
        super().pause_writing()
        self._look_at_unread()

    def resume_writing(self) -> None:
        """It has read nearly all of it."""
        self._stop_looking()
        super().resume_writing()

    def is_idle(self) -> bool:
        """Whether it is open, and nothing is asked and nothing answered on it."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # there is none before the first request
        answered = cycle is None or cycle.response_complete
        return answered and not self._reading and not self.transport.is_closing()

    def _parse(self, data: bytes) -> ApiError | None:
        """Read bytes, which calls the methods above, and say what is wrong with them.

        Uvicorn's own writes a line into the log for whatever anybody sends.
        """
        self._unset_keepalive_if_required()
        try:
            # Nothing here is upgraded: who would like to is answered as if it had not said so.
            with suppress(httptools.HttpParserUpgrade):
                self.parser.feed_data(data)
        except httptools.HttpParserError:
            return self._refused or _not_http()
        if self._in_head and self._head_bytes > HEAD_BYTES_MAX:
            return _head_too_large()
        if self._reading and not self._in_head and self._framing > FRAMING_BYTES_MAX:
            return _framing_too_large()
        return None

    def _stop(self, error: ApiError) -> NoReturn:
        """Refuse, in a callback of the parser."""
        self._refused = error
        raise _Stop

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._silent)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _silent(self) -> None:
        """Nothing came for too long."""
        if self.flow.read_paused:
            self._wait(self.door.body_seconds)  # it is the application that does not read
        elif not self._reading or self._response_begun() or self._is_answered():
            self.transport.close()
        else:
            self._refuse(ApiError(408, "request_timeout", "the request did not come to its end in time; send it again"))

    def _look_at_unread(self) -> None:
        seconds = self.door.body_seconds
        left = self.transport.get_write_buffer_size() - round(seconds * READ_BYTES_PER_SECOND)
        self._stop_looking()
        self._unread = self.loop.call_later(seconds, self._not_read, left)

    def _stop_looking(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _not_read(self, bytes_max: int) -> None:
        """Hang up if more than so much is still unread: to close would wait for it to be read."""
        if self.transport.get_write_buffer_size() > bytes_max:
            self.transport.abort()
        else:
            self._look_at_unread()

    def _response_begun(self) -> bool:
        """Whether the application is in the middle of a response, which nothing may be written into."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and cycle.response_started and not cycle.response_complete

    def _is_answered(self) -> bool:
        """Whether the request whose body is being read has its response: it was refused before all of it came."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return not self._in_head and cycle is not None and cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, which may be in the middle of another request, and hang up."""
        self._refused = error
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if not self._response_begun():
            body = body_of(error, "")
            sent = json.dumps(body, separators=(",", ":")).encode()
            headers = {
                "content-type": "application/problem+json",
                "content-length": str(len(sent)),
                "connection": "close",
                **error.headers,
            }
            lines = [f"HTTP/1.1 {error.status} {body['title']}", *(f"{name}: {is_}" for name, is_ in headers.items())]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + sent)
        self.transport.close()


def _not_http() -> ApiError:
    return ApiError(400, "not_http", "what came on this connection is not an HTTP/1.1 request")


def _not_upgraded() -> ApiError:
    return ApiError(400, "not_upgraded", "no connection is upgraded here: send what has a body without `Upgrade`")


def _too_many_pipelined() -> ApiError:
    limit = f"more than {PIPELINED_MAX} requests of this connection wait for an answer"
    return ApiError(429, "too_many_pipelined", f"{limit}: read the answers first", headers={"retry-after": "1"})


def _head_too_large() -> ApiError:
    return ApiError(
        431,
        "headers_too_large",
        f"the request line and headers are above the limit of {HEAD_BYTES_MAX} bytes, or of {HEADERS_MAX} headers",
    )


def _framing_too_large() -> ApiError:
    limit = (
        f"the chunks of the body have more than {FRAMING_BYTES_MAX} bytes beside what is in them, and more than that"
    )
    return ApiError(400, "framing_too_large", f"{limit}: send larger chunks, without extensions and trailers")
