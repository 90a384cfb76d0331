"""A model is looked for where it may lie, and the hub is asked once."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from retrieval.model_files import ModelMissing, Place, locate, tokenizer_file

KNOWN = "people/known"


class _Hub(BaseHTTPRequestHandler):
    """What the hub says of a model that it has, and of one that it has not."""

    asked: list[str]

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):  # the client also asks, once a process, what it should call itself
            self.asked.append(self.path)
        found = self.path == f"/api/models/{KNOWN}"
        body = json.dumps({"id": KNOWN} if found else {"error": "Repository not found"}).encode()
        self.send_response(200 if found else 404)
        if not found:
            self.send_header("x-error-code", "RepoNotFound")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache on this machine, empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that answers; the paths that it was asked for."""
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"asked": asked})) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, daemon=True).start()
        yield asked
        server.shutdown()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody answers where the hub should be."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        yield


def keep(cache: Path, name: str, file: str) -> Path:
    """A file of a model in the cache, laid as the hub's client lays it."""
    folder = cache / f"models--{name.replace('/', '--')}"
    kept = folder / "snapshots" / "f00d" / file
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("f00d")
    return kept


@pytest.mark.parametrize("mark", ["modules.json", "config.json", "tokenizer.json"])
def test_a_folder_that_holds_a_model_is_found_without_the_hub(hub: list[str], tmp_path: Path, mark: str):
    (tmp_path / mark).write_text("{}")

    assert locate(str(tmp_path)) is Place.FOLDER
    assert hub == []


def test_a_folder_that_holds_none_is_said_to(tmp_path: Path):
    with pytest.raises(ModelMissing, match=r"holds no model: it has none of modules\.json"):
        locate(str(tmp_path))


def test_a_model_of_the_hub_is_found_by_asking_once(hub: list[str]):
    assert locate(KNOWN) is Place.HUB
    assert hub == [f"/api/models/{KNOWN}"]


def test_a_model_that_the_hub_has_not_is_missing(hub: list[str]):
    with pytest.raises(ModelMissing, match="no model of that name on the hub"):
        locate("people/unknown")
    assert len(hub) == 1


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "two words"])
def test_what_can_be_no_name_is_missing_without_asking(hub: list[str], name: str):
    with pytest.raises(ModelMissing, match="no name of a model"):
        locate(name)
    assert hub == []


@pytest.mark.usefixtures("no_hub")
def test_without_the_hub_what_is_in_its_cache_is_found_there(cache: Path):
    kept = keep(cache, KNOWN, "tokenizer.json")

    assert locate(KNOWN) is Place.CACHE
    assert tokenizer_file(KNOWN) == kept


@pytest.mark.usefixtures("no_hub")
def test_without_the_hub_what_is_not_in_its_cache_is_missing():
    with pytest.raises(ModelMissing, match="the hub does not answer"):
        locate(KNOWN)


def test_the_tokenizer_of_a_folder_is_its_own(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")

    assert tokenizer_file(str(tmp_path)) == tmp_path / "tokenizer.json"
