"""A real OpenAI-compatible server on loopback, whose model says what a test tells it to, and fails where it is told."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
import uvicorn

from metering.money import Currency
from metering.pricing import ModelPrice, PriceBook
from serving.assembly import open_books
from serving.rules.rulebook import price_books
from serving.settings import Settings

MODEL = "writer-1"
PIECES = ("The ", "Vellmar ", "light", "house ", "was ", "built ", "in ", "1847 ", "[1].")
_USD = Currency.of("USD")
PRICE = ModelPrice(
    request=_USD.parse("0.0010"),
    input_per_1k=_USD.parse("0.0020"),
    output_per_1k=_USD.parse("0.0300"),
    passage=_USD.parse("0.0001"),
    cost_output_per_1k=_USD.parse("0.0100"),
)


@dataclass
class Script:
    """How the model answers one request."""

    pieces: tuple[str, ...] = PIECES
    finish: str = "stop"
    status: int = 200
    stall_after: int | None = None
    """The pieces after which it waits until :attr:`UpstreamServer.go` is set."""
    close_at: int | None = None
    """The byte of the event stream at which the connection is closed."""
    raw: bytes | None = None
    """The event stream itself, instead of the pieces."""


@dataclass
class UpstreamServer:
    """The server, in a thread of its own."""

    script: Script = field(default_factory=Script)
    """What every request gets that has none in ``scripts``."""
    scripts: list[Script] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a request was given up before its answer was complete."""

    def __enter__(self) -> Self:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        config = uvicorn.Config(self._app, log_config=None, access_log=False, lifespan="off", interface="asgi3")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)

    def reset(self, *scripts: Script, script: Script | None = None) -> None:
        """Forget what was, and follow these scripts, then ``script``."""
        self.go.set()
        self.script, self.scripts = script or Script(), list(scripts)
        self.requests.clear()
        for each in (self.go, self.stalled, self.left):
            each.clear()

    @property
    def env(self) -> dict[str, str]:
        """What a server is started with to sell this model."""
        return {
            "PATRONAGE_UPSTREAM_URL": self.url,
            "PATRONAGE_UPSTREAM_KEY": "upstream-secret",
            "PATRONAGE_UPSTREAM_MODEL": MODEL,
        }

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.requests.append(json.loads(body))
        self.keys.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        script = self.scripts.pop(0) if self.scripts else self.script
        gone = asyncio.ensure_future(_gone(receive))
        answering = asyncio.ensure_future(self._answer(script, send))
        await asyncio.wait({gone, answering}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.left.set()
        for each in (gone, answering):
            each.cancel()
        await asyncio.gather(answering, return_exceptions=script.close_at is None)

    async def _answer(self, script: Script, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": script.status, "headers": headers})
        sent = 0
        for number, event in enumerate(_events(script)):
            if number == script.stall_after:
                self.stalled.set()
                while not self.go.is_set():  # noqa: ASYNC110 # it is set by another thread
                    await asyncio.sleep(0.005)
            data = event if script.close_at is None else event[: max(0, script.close_at - sent)]
            sent += len(data)
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if len(data) < len(event):
                raise ConnectionAbortedError("as the script says")
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _events(script: Script) -> list[bytes]:
    if script.status != 200:
        return [b'{"error": {"message": "no"}}']
    if script.raw is not None:
        return [script.raw]
    chunks: list[dict[str, Any]] = [{"delta": {"content": piece}, "finish_reason": None} for piece in script.pieces]
    chunks.append({"delta": {}, "finish_reason": script.finish})
    events = [
        b"data: "
        + json.dumps({"object": "chat.completion.chunk", "choices": [{"index": 0, **chunk}]}).encode()
        + b"\n\n"
        for chunk in chunks
    ]
    return [*events, b"data: [DONE]\n\n"]


def stream_bytes(script: Script) -> int:
    """The length of a script's event stream."""
    return sum(map(len, _events(script)))


def set_price(data_dir: Path, model: str = MODEL, price: ModelPrice = PRICE) -> None:
    """Put a price book in force that also prices ``model``."""
    with open_books(Settings(data_dir=data_dir)) as books:
        book = books.rulebook.prices
        body = PriceBook(book.version + 1, {**book.models, model: price}).to_json()
        with books.engine.begin() as connection:
            row = {"version": book.version + 1, "body": json.dumps(body), "created_ms": time.time_ns() // 1_000_000}
            connection.execute(sa.insert(price_books), row)
