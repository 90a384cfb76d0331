"""The key layout is written in one place: what the scripts declare, and what the documentation says, is in it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from metering.redis import keys

ROOT = Path(__file__).parents[3]
SCRIPTS = [path for path in sorted((ROOT / "metering/redis/lua").glob("*.lua")) if not path.name.startswith("_")]
MADE = {
    name: function(*[3, "ID", "HASH"][: len(inspect.signature(function).parameters)])
    for name, function in inspect.getmembers(keys, inspect.isfunction)
    if function.__module__ == keys.__name__ and name not in ("tag", "shard_of")
}
"""A key of each kind, by the name of the function that makes it."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_declares_its_keys_by_the_names_that_make_them(path):
    head = re.search(r"^-- KEYS +(.*)$", path.read_text(), re.MULTILINE)
    declared = re.findall(r"(\d+)(?:\.\.\.)? (\w+)", head[1])
    assert [number for number, _ in declared] == [str(number) for number in range(1, len(declared) + 1)]
    names = [name for _, name in declared]
    assert names[0] == "deployment"
    assert set(names) <= set(MADE)
    assert len(names) == len(set(names))


def test_every_key_of_a_shard_has_its_tag_and_a_name_of_its_own():
    assert len(set(MADE.values())) == len(MADE)
    assert {key.partition(":")[0] for key in MADE.values()} == {"{s03}"}


def test_every_key_is_documented_and_nothing_else():
    documented = re.findall(r"^    \{sNN\}:([\w:]+)", keys.__doc__, re.MULTILINE)
    patterns = {re.sub(r"[0-9a-f]{32}", "HASH", key).partition(":")[2] for key in MADE.values()}
    assert sorted(documented) == sorted(pattern.replace("done:ID", "done:HOLD") for pattern in patterns)


def test_nothing_else_makes_the_name_of_a_key():
    made = re.compile(r"\{s\d|\{s\*|tag\(.*\}:|" + "|".join(f":{key.split(':')[1]}:" for key in MADE.values()))
    sources = [
        path
        for part in ("metering", "serving")
        for path in (ROOT / part).rglob("*.*")
        if path.suffix in (".py", ".lua")
    ]
    assert [path.name for path in sources if made.search(path.read_text())] == ["keys.py"]
