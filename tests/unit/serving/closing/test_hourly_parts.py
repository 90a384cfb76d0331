"""A part is of the code that made it: a change of any file that decides makes another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metering.usage_log import Segment, UsageLog
from serving.closing import hourly_parts
from serving.closing.hourly_parts import code_of, jobs_of

ROOT = Path(hourly_parts.__file__).parents[2]
PACKAGES = ("attribution", "metering", "retrieval", "serving")


def imported() -> list[str]:
    """Every file of the program that dividing hours loads; the packages themselves, which hold nothing, left out."""
    code = (
        "import json, sys; import serving.closing.hourly_parts\n"
        f"print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] in {PACKAGES!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return sorted(str(Path(name).relative_to(ROOT)) for name in json.loads(done.stdout) if name)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The program's files, for a test to change."""
    folder = tmp_path_factory.mktemp("program")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_every_file_that_decides_is_in_the_name_of_a_part(copy):
    before, decides = code_of(copy), imported()
    assert {"attribution/apportionment.py", "metering/records.py", "serving/closing/crediting.py"} <= {*decides}
    for name in decides:
        if name == "serving/__init__.py":  # the version
            continue
        source = copy / name
        was = source.read_bytes()
        source.write_bytes(was + b"# another\n")
        code_of.cache_clear()
        assert code_of(copy) != before, name
        source.write_bytes(was)
    code_of.cache_clear()
    assert code_of(copy) == before == code_of(ROOT)


def test_a_new_or_moved_file_makes_other_parts(copy):
    code_of.cache_clear()
    before = code_of(copy)
    new = copy / "attribution" / "runs" / "rounding.py"
    new.write_text("")
    code_of.cache_clear()
    assert code_of(copy) != before
    new.rename(copy / "serving" / "closing" / "rounding.py")
    code_of.cache_clear()
    assert code_of(copy) != before
    (copy / "serving" / "closing" / "rounding.py").unlink()


def test_other_code_rules_and_segments_have_other_parts(tmp_path, monkeypatch):
    def path(sha256="0" * 64):
        segment = Segment(0, "1-0", "2-0", 1, sha256, ((490_000, 1),))
        (job,) = jobs_of(UsageLog(tmp_path), [segment], tmp_path)
        return job.path

    first = path()
    assert path() == first
    assert path("1" * 64) != first
    monkeypatch.setattr(hourly_parts, "code_of", lambda _: "another")
    assert path() != first
