"""A real server on loopback that scores tokens as vLLM does, without a model: what was said before is probable."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.tokenizers import merging

_RUN = 4
_SAID, _NEW = -0.02, -4.0


@dataclass
class Scorer:
    """The server, in a thread of its own, and the folder of its tokenizer, which is the model's name."""

    folder: Path
    fails: bool = False
    go: threading.Event = field(default_factory=threading.Event)
    """While it is not set, nothing is answered."""
    asked: int = 0

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        merging().save(str(self.folder / "tokenizer.json"))
        self.go.set()
        scorer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                scorer.asked += 1
                scorer.go.wait(60)
                choices = [_choice(index, tokens) for index, tokens in enumerate(body["prompt"])]
                data = json.dumps({"choices": choices}).encode()
                self.send_response(503 if scorer.fails else 200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def env(self) -> dict[str, str]:
        """What a process is started with to use it."""
        return {
            "PATRONAGE_LIKELIHOOD_URL": f"http://127.0.0.1:{self._server.server_port}/v1",
            "PATRONAGE_LIKELIHOOD_MODEL": str(self.folder),
        }


def _choice(index: int, tokens: list[int]) -> dict[str, Any]:
    said: set[tuple[int, ...]] = set()
    logs: list[Any] = [None]
    for place in range(1, len(tokens)):
        run = tuple(tokens[max(0, place + 1 - _RUN) : place + 1])
        logs.append({str(tokens[place]): {"logprob": _SAID if run in said else _NEW}})
        said.add(run)
    return {"index": index, "prompt_logprobs": logs}
