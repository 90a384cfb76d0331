"""Commands that run things: serve and demo."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from importlib.util import find_spec
from typing import Annotated

import typer

from serving.assembly import open_books
from serving.terminal.console import CommandError, current


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("serve", epilog="Example: patronage serve --port 8080")(serve)
    app.command("demo")(demo)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")] = 8080,
) -> None:
    """Run the server until it is told to stop."""
    import uvloop  # noqa: PLC0415 # no other command waits for the web framework

    from serving import server  # noqa: PLC0415

    settings, out = current()
    with open_books(settings) as books, _listen(host, port) as listener:
        address = listener.getsockname()
        url = f"http://{f'[{host}]' if ':' in host else host}:{address[1]}"
        with books.directory.serving({"pid": os.getpid(), "url": url}):
            out.aside.print(f"Patronage {url}  data {books.directory.path}", markup=False, soft_wrap=True)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(server.serve(books, listener))


def demo() -> None:
    """The whole story on real input: documents, a paying customer, cited answers, statements, and the proof."""
    if find_spec("openai") is None:
        raise CommandError(
            "the demo asks with the official openai client, which is not installed: run `make demo` in the checkout, "
            "or pip install --no-deps -r requirements-demo.lock"
        )
    from serving.demo import story  # noqa: PLC0415 # no other command waits for the openai client

    _, out = current()
    out.result(story.tell(out, out.data_dir))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise CommandError(f"port {port} is in use: choose another with --port") from error
        raise CommandError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener
