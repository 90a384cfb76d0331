"""The edge: request ids, size limits, metrics, and no error without a JSON body.

Plain ASGI, so that streams stay streams.
"""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.errors import ApiError, respond
from serving.telemetry.metrics import Metrics

_log = structlog.get_logger()
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,100}")


class _TooLarge(HTTPException):
    """The body is above the limit. An HTTPException, because FastAPI hides every other error of reading a body."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body is above the limit of {limit} bytes")


class Edge:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, body_bytes_max: int) -> None:
        self._app = app
        self._metrics = metrics
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._body_bytes_max)
        began = time.perf_counter()
        try:
            exchange.check_length()
            await self._app(scope, exchange.receive, exchange.send)
        except _TooLarge as error:
            await exchange.fail(ApiError(413, "too_large", str(error.detail)))
        except Exception:  # noqa: BLE001 # the client gets a clear error whatever it was
            _log.exception("request failed", path=scope["path"], request_id=exchange.id)
            await exchange.fail(ApiError(500, "internal", f"something went wrong; the log has it as {exchange.id}"))
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(scope["method"], route, exchange.status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limit = limit
        self._received = 0
        self.status = 0
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        self.id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self._length = headers.get(b"content-length", b"0")

    def check_length(self) -> None:
        """Refuse a body that says it is too large before reading it."""
        if self._length.isdigit() and int(self._length) > self._limit:
            raise _TooLarge(self._limit)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._limit:
                raise _TooLarge(self._limit)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Send an error, unless a response has begun: then the connection just ends."""
        if self.status == 0:
            await respond(error, self._scope["path"])(self._scope, self._receive, self.send)
