"""The edge: a key before a body, size limits, request ids, headers, metrics, and no error without a JSON body.

Plain ASGI, so that streams stay streams.
"""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from functools import partial

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metering.meter import KeyRevoked
from serving.api.connections import site_of
from serving.api.dependencies import admitted
from serving.api.errors import TRANSLATED, ApiError, respond, translate
from serving.api.health import PATHS, Health
from serving.api.pace import Pace
from serving.api.paid import REPLAYED
from serving.people.identity import Caller
from serving.service import Service
from serving.settings import Settings
from serving.telemetry.metrics import Metrics

_log = structlog.get_logger()
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_LARGE = ("/v1/documents", "/v1/embeddings")
_PAID = ("/v1/chat/", "/v1/responses", "/v1/query", "/v1/embeddings")
_CONVERSATIONS = ("/v1/chat/", "/v1/responses", "/v1/query")
_BAD_REQUEST, _SERVER_ERROR = 400, 500
_BODY_BYTES_OTHER = 1_000_000
_CHARACTER_BYTES_MAX = 12
"""A character in JSON, written as two escapes."""
_DISCARDED_BYTES_MAX = 65_536
"""Of a body that nobody wants so much is read all the same, so that the client can read why."""
_LARGEST_HELD = 4
"""Of how many of the largest bodies one caller's may be in memory together."""
_TURN_BYTES = 262_144
"""So much of a body, which is read in the event loop, is as much work there as a call with a short one."""
_ID, _REPLAYED = b"x-request-id", REPLAYED.encode()
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_POLICY_NAME = b"content-security-policy"
_POLICY_PAGE = (
    b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_POLICY = b"default-src 'none'; frame-ancestors 'none'"
_NOT_STORED = (b"cache-control", b"no-store")


def body_bytes_max(path: str, settings: Settings) -> int:
    """The largest body of a route."""
    if path.startswith(_LARGE):
        return settings.body_bytes
    other = _BODY_BYTES_OTHER
    if path.startswith(_CONVERSATIONS):
        other += _CHARACTER_BYTES_MAX * max(settings.conversation_chars, settings.question_chars)
    return min(other, settings.body_bytes)


class _TooLarge(HTTPException):
    """The body is above the limit. An HTTPException, because FastAPI hides every other error of reading a body."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body is above the limit of {limit} bytes")


class _TooMuch(HTTPException):
    """The caller's bodies that are in memory are above the limit; see :class:`_TooLarge`."""

    def __init__(self, limit: int) -> None:
        detail = f"your requests in progress have bodies of {limit} bytes together; send fewer at once"
        super().__init__(429, detail, headers={"retry-after": "1"})


class Edge:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, service: Service, health: Health) -> None:
        """``health`` is answered here, before the application."""
        self._app = app
        self._metrics = metrics
        self._service = service
        self._health = health
        self._unpaid = Pace(service.books.settings.unpaid_per_second, "calls that are replays or refused")
        self._others = Pace(service.books.settings.calls_per_second, "calls")
        self._held: Counter[str] = Counter()
        """Bytes of bodies in memory, by caller; nobody is in it who has none."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server, which has the request itself, leaves out the body
        exchange = _Exchange(scope, receive, send, body_bytes_max(scope["path"], self._service.books.settings))
        began = time.perf_counter()
        try:
            if scope["path"] in PATHS:
                await self._answer_health(scope, exchange)
                return
            await self._in_turn(scope, exchange)
        except _TooLarge as error:
            await exchange.fail(ApiError(413, "too_large", str(error.detail)))
        except ApiError as error:
            await exchange.fail(error)
        except TRANSLATED as error:
            await exchange.fail(translate(error))
        except Exception:  # noqa: BLE001 # the client gets a clear error whatever it was
            _log.exception("request failed", path=scope["path"], request_id=exchange.id)
            await exchange.fail(ApiError(500, "internal", f"something went wrong; the log has it as {exchange.id}"))
        finally:
            route = scope["path"] if scope["path"] in PATHS else getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(scope["method"], route, exchange.status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    async def _in_turn(self, scope: Scope, exchange: _Exchange) -> None:
        """Serve a request at the pace of its caller; of whom nobody knows, all at one address are one."""
        paid = scope["method"] == "POST" and scope["path"].startswith(_PAID)
        caller: Caller | None = None
        refusal: ApiError | KeyRevoked | None = None
        try:
            if paid or exchange.has_body or "authorization" in exchange.headers:
                caller = await admitted(self._service, exchange.headers)
        except (ApiError, KeyRevoked) as error:
            refusal = error
        pays = paid and caller is not None and caller.role == "customer"
        pace = self._unpaid if pays else self._others
        name = f"{caller.role} {caller.id}" if caller else f"at {site_of((scope['client'] or ('',))[0])}"
        counted = await pace.turn(name)
        try:
            # Nobody without a key brings a body: reading and parsing it is work.
            if refusal is not None and (paid or exchange.has_body):
                raise refusal
            exchange.check_length()
            await self._app(scope, partial(self._receive, name, exchange), exchange.send)
        finally:
            self._held[name] -= exchange.held
            if not self._held[name]:
                del self._held[name]
            pace.ended(name, exchange.unpaid if pays else abs(exchange.unpaid), counted=counted)

    async def _receive(self, name: str, exchange: _Exchange) -> Message:
        """The next part of a body, unless its caller has as much in memory already as a few of the largest."""
        message = await exchange.receive()
        if message["type"] == "http.request":
            part = len(message.get("body", b""))
            self._held[name] += part
            exchange.held += part
            limit = _LARGEST_HELD * self._service.books.settings.body_bytes
            if self._held[name] > limit:
                raise _TooMuch(limit)
        return message

    async def _answer_health(self, scope: Scope, exchange: _Exchange) -> None:
        if scope["method"] != "GET":
            raise ApiError(405, "method_not_allowed", "Method Not Allowed", headers={"allow": "GET"})
        response = await self._health.answer(scope["path"])
        await response(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limit = limit
        self._received = 0
        self.held = 0
        """Bytes of its body that are counted as its caller's."""
        self.status = 0
        self._earned: bool | None = False
        """Whether it was paid, which nothing is until a response is sent; None where we failed."""
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        length = self.headers.get("content-length", "0")
        self._length = int(length) if length.isdecimal() else 0
        self._chunked = "transfer-encoding" in self.headers
        self.has_body = self._unread = self._length > 0 or self._chunked

    @property
    def unpaid(self) -> int:
        """As :meth:`serving.api.pace.Pace.ended` takes it: a large body is more work, and counts for more."""
        if self._earned is None:
            return 0
        return -1 if self._earned else 1 + self._received // _TURN_BYTES

    def check_length(self) -> None:
        """Refuse a body that says it is too large before reading it."""
        if self._length > self._limit:
            raise _TooLarge(self._limit)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._unread = message.get("more_body", False)
            if self._received > self._limit:
                raise _TooLarge(self._limit)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = dict(message.get("headers", ()))
            if self.status >= _SERVER_ERROR:
                self._earned = None
            elif self.status < _BAD_REQUEST and _REPLAYED not in given:
                self._earned = True
            page = given.get(b"content-type", b"").startswith(b"text/html")
            added = (_ID, self.id.encode()), *_ALWAYS, (_POLICY_NAME, _POLICY_PAGE if page else _POLICY), _NOT_STORED
            message["headers"] = [*message.get("headers", ()), *(each for each in added if each[0] not in given)]
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Send an error, unless a response has begun: then the connection just ends."""
        if self.status == 0:
            if self._unread and (self._chunked or self._length - self._received > _DISCARDED_BYTES_MAX):
                error.headers["connection"] = "close"
            await respond(error, self._scope["path"])(self._scope, self._receive, self.send)
