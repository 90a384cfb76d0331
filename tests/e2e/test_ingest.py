"""Ingest as an operator runs it: what is not read is said, and who stops it keeps what is done."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.e2e.commands import refused
from tests.e2e.files import write_jsonl
from tests.processes import ended, start
from tests.servers import cli, process, run, wait_for

_INGEST = ("ingest", "--contributor", "mary", "--create-contributors")


def stored(data_dir: Path, env: dict[str, str]) -> list[str]:
    return [each["id"] for each in cli(data_dir, "documents", "list", env=env)["documents"]]


def prose(seed: int, words: int) -> str:
    drawn = random.Random(seed)
    return " ".join(f"w{drawn.randrange(10_000)}" for _ in range(words)) + "."


def test_a_long_ingest_that_is_stopped_keeps_what_is_done_and_goes_on_there(tmp_path: Path, e2e_env: dict[str, str]):
    """By Ctrl-C, by SIGTERM, and in the middle of one large document."""
    data_dir = tmp_path / "data"
    cli(data_dir, "contributor", "add", "Mary", "--id", "mary", env=e2e_env)
    rows = [{"id": f"d{i:03}", "text": prose(i, 10)} for i in range(60)]
    large = {"id": "large", "text": prose(-1, 100_000)}
    kept = 0
    for number, small in ((signal.SIGINT, 20), (signal.SIGTERM, 60)):
        output = tmp_path / f"{number}.txt"
        file = write_jsonl(tmp_path / f"{number}.jsonl", [*rows[:small], large, {"id": "later", "text": "Later."}])
        arguments = ("--data-dir", str(data_dir), "--json", "ingest", str(file), "--contributor", "mary")
        ingest = start("serving.cli", *arguments, env=e2e_env, output=output)
        wait_for(lambda small=small: len(stored(data_dir, e2e_env)) == small)
        assert ingest.pid is not None
        os.kill(ingest.pid, number)
        assert ended(ingest) == 130
        printed, said = output.read_text().splitlines()
        report = json.loads(printed)
        assert report["stopped"]
        assert (report["unchanged"], report["documents"]) == (kept, small - kept)
        kept = small
        assert stored(data_dir, e2e_env) == [f"d{i:03}" for i in range(kept)]
        assert f"{kept} documents are stored" in said
        assert said.endswith(f"patronage ingest {file} --contributor mary --data-dir {data_dir}")


def test_what_a_folder_has_that_is_not_read_is_said(tmp_path: Path, e2e_env: dict[str, str]):
    folder, data_dir = tmp_path / "folder", tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("Not offered.")
    (folder / "note.txt").write_text("The otter of Lund swims at night.")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "endless.txt").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.txt")
    (folder / ".hidden").write_text("x")
    for i in range(12):
        (folder / f"{i:02}.png").write_bytes(b"\x89PNG")
    told = cli(data_dir, *_INGEST, str(folder), env=e2e_env)
    assert (told["documents"], told["stopped"]) == (1, False)
    assert {(Path(each["path"]).name, each["reason"]) for each in told["rejected"]} == {
        ("out.txt", "a link that leads out of the folder"),
        ("endless.txt", "a link that leads out of the folder"),
        ("pipe.txt", "a pipe, not a regular file"),
    }
    skipped = {each["reason"]: (each["count"], [Path(path).name for path in each["paths"]]) for each in told["skipped"]}
    assert skipped == {
        "hidden: its name begins with a dot": (1, [".hidden"]),
        "files of type .png are not read": (12, [f"{i:02}.png" for i in range(10)]),
    }
    people = run(data_dir, *_INGEST, str(folder), env=e2e_env)
    assert people.returncode == 0
    assert "1 unchanged, 3 rejected, 13 skipped" in people.stdout
    assert "and 2 more: files of type .png are not read" in people.stderr


def test_where_nothing_is_read_it_says_why_and_the_status_is_1(
    tmp_path: Path, e2e_env: dict[str, str], subtests: pytest.Subtests
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "nothing.jsonl").write_text("\n\n")
    for name, word in {"empty": "no document", "pictures": ".png", "nothing.jsonl": "no document"}.items():
        with subtests.test(name):
            done = run(tmp_path / "data", "--json", *_INGEST, str(tmp_path / name), env=e2e_env)
            assert word in refused(done)
            assert json.loads(done.stdout)["documents"] == 0
    done = run(tmp_path / "data", *_INGEST, str(tmp_path / "pictures"), env=e2e_env)
    assert done.returncode == 1
    assert "a.png: files of type .png are not read" in done.stderr


def test_names_that_no_encoding_carries_give_valid_json_and_the_work_is_told(tmp_path: Path, e2e_env: dict[str, str]):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (b"caf\xe9.txt", b"line\nend.txt", b"escape\x1b[31m.png", "Käse.txt".encode(), b"\xff.png"):
        try:
            Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_text(f"The text of {name!r}.")  # noqa: PTH118 # bytes
        except OSError:
            pytest.skip("this file system takes only UTF-8 names")
    told = cli(tmp_path / "data", *_INGEST, str(folder), env=e2e_env)
    assert told["documents"] == 2
    assert [each["path"] for each in told["rejected"]] == [f"{folder}/caf\\xe9.txt"]
    assert [path for each in told["skipped"] for path in each["paths"]] == [
        f"{folder}/escape\\x1b[31m.png", f"{folder}/\\xff.png",
    ]  # fmt: skip
    ascii_only = process(tmp_path / "data", "--json", "documents", "list", env=e2e_env | {"PYTHONIOENCODING": "ascii"})
    assert json.loads(ascii_only.stdout)["documents"][0]["id"] == "mary/folder/Käse.txt"
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9")))  # noqa: PTH118 # bytes
    missing = cli(tmp_path / "data", *_INGEST, str(path), env=e2e_env, status=1)
    assert missing["rejected"] == [{"path": f"{tmp_path}/caf\\xe9", "line": None, "reason": "no such file or folder"}]


def test_another_file_that_would_have_the_id_is_refused_with_both_ways_out(tmp_path: Path, e2e_env: dict[str, str]):
    for name in "ab":
        (tmp_path / name / "docs").mkdir(parents=True)
        (tmp_path / name / "docs" / "readme.md").write_text(f"The mill of {name}.")
    assert cli(tmp_path / "data", *_INGEST, str(tmp_path / "a" / "docs"), env=e2e_env)["documents"] == 1
    other = (*_INGEST, str(tmp_path / "b" / "docs"))
    reason = cli(tmp_path / "data", *other, env=e2e_env, status=1)["rejected"][0]["reason"]
    assert f"was read from {tmp_path}/a/docs/readme.md" in reason
    assert "name a folder further up" in reason
    assert cli(tmp_path / "data", *other, "--moved", env=e2e_env)["replaced"] == 1
