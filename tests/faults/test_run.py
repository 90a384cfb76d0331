"""A run that is killed is resumed where it stopped, and what it left is used only if it is whole and fits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from attribution.runs.run import RunError
from metering import usage_index
from metering.usage_log import SegmentError, UsageLog
from serving.assembly import open_books
from serving.closing import closing, hourly_parts
from serving.settings import Settings
from tests.databases import new_data_dir
from tests.many import write_many
from tests.servers import PATIENCE_SECONDS, cli, command

PERIOD = "2026-01"
RECORDS, HOURS = 40_000, 80
FILES = ("manifest.json", "hours.json", "records.parquet", "credits.parquet", "outcomes.parquet", "statements.jsonl")


def register(books, segments) -> None:
    """As the drain does, but for the money."""
    with books.engine.begin() as connection:
        for segment in segments:
            row = asdict(segment) | {"name": segment.name, "period": PERIOD, "charge": 0}
            del row["hours"]
            connection.execute(sa.insert(usage_index.segments), row)
            rows = [{"segment": segment.name, "hour": hour, "records": count} for hour, count in segment.hours]
            connection.execute(sa.insert(usage_index.segment_hours), rows)
            mark = sa.update(usage_index.shards).where(usage_index.shards.c.shard == segment.shard)
            connection.execute(mark.values(last=segment.last))


@pytest.fixture
def data_dir(tmp_path, model_cache) -> Path:
    folder = new_data_dir(tmp_path / "data")
    with open_books(Settings(data_dir=folder, model_cache=model_cache)) as books:
        register(books, write_many(books.log, RECORDS, HOURS))
    return folder


def parts(data_dir: Path) -> list[Path]:
    return sorted((data_dir / "parts" / PERIOD).glob("*.part"))


def killed_close(data_dir: Path, when) -> None:
    """Begin a close, and kill it with ``kill -9`` when something holds."""
    closing = command(data_dir, "period", "close", PERIOD)
    process = subprocess.Popen(closing, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None, "the close was over before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = [each for each in psutil.Process(process.pid).children(recursive=True) if "redis" not in each.name()]
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)
    assert alive == [], "workers outlive the run that started them"


def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes(data_dir, tmp_path):
    copy = Path(shutil.copytree(data_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock")))
    for count in (1, HOURS // 2):
        killed_close(data_dir, lambda count=count: len(parts(data_dir)) >= count)
        assert count <= len(parts(data_dir)) < HOURS
    found = cli(data_dir, "period", "close", PERIOD)
    assert found["records"] == RECORDS
    assert found == cli(copy, "period", "close", PERIOD)
    for name in FILES:
        assert (data_dir / "runs" / PERIOD / name).read_bytes() == (copy / "runs" / PERIOD / name).read_bytes(), name
    assert not (data_dir / "parts" / PERIOD).exists()


@pytest.fixture
def few(books):
    """Books with 3,000 records in 30 hours."""
    made = write_many(books.log, 3_000, 30)
    register(books, made)
    return books


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """The hours that were computed, as they are."""
    found: list[int] = []
    real = hourly_parts.attribute_hours

    def counted(jobs):
        found.extend(job.hour for job in jobs)
        real(jobs)

    monkeypatch.setattr(hourly_parts, "attribute_hours", counted)
    return found


def test_a_preview_computes_what_is_new_and_nothing_else(few, computed):
    closing.preview(few, PERIOD)
    assert len(computed) == 30
    first = closing.preview(few, PERIOD)
    assert len(computed) == 30
    more = [replace(each, shard=1) for each in write_many(UsageLog(few.directory.path / "other"), 100, hours=1, seed=2)]
    shutil.copytree(few.directory.path / "other" / "s00", few.log.folder / "s01")
    register(few, more)
    with pytest.raises(RunError, match="is in the log twice"):
        closing.preview(few, PERIOD)
    assert len(computed) == 31
    assert first.tally.totals.records == 3_000


def test_a_damaged_part_is_computed_again(few, computed):
    expected = closing.preview(few, PERIOD)
    damaged = parts(few.directory.path)
    for path, data in ((damaged[0], b""), (damaged[1], b"x" * 100), (damaged[2], damaged[2].read_bytes()[:-1])):
        path.write_bytes(data)
    flipped = bytearray(damaged[3].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    damaged[3].write_bytes(flipped)
    damaged[4].write_bytes(damaged[5].read_bytes())
    found = closing.close(few, PERIOD, early=False)
    assert len(computed) == 30 + 5
    assert found.issue.manifest == expected.issue.manifest


def test_parts_of_other_code_are_not_used(few, computed, monkeypatch):
    closing.preview(few, PERIOD)
    monkeypatch.setattr(hourly_parts, "code_of", lambda _: "another version")
    closing.preview(few, PERIOD)
    assert len(computed) == 60


def test_parts_that_nobody_needs_any_more_are_removed(few):
    closing.preview(few, PERIOD)
    stale = few.directory.parts(PERIOD) / "2026-01-01T00-stale.part"
    lately = few.directory.parts(PERIOD) / "2026-01-01T00-lately.part"
    stale.write_bytes(b"")
    lately.write_bytes(b"")
    os.utime(stale, (0, 0))
    closing.preview(few, PERIOD)
    assert not stale.exists()
    assert lately.exists()
    assert len(parts(few.directory.path)) == 31


def test_one_core_and_many_give_the_same(few, tmp_path):
    jobs = [
        hourly_parts.jobs_of(few.log, closing.segments_of(few.engine, PERIOD), tmp_path / name)
        for name in ("one", "many")
    ]
    one = list(hourly_parts.parts_of(jobs[0], workers=1))
    hourly_parts.attribute_hours(jobs[1][::-1])
    many = [hourly_parts.load(job.path, rows=True) for job in jobs[1]]
    assert one == many


@pytest.mark.parametrize(
    "change", [lambda hours: hours[1:], lambda hours: ((hours[0][0] + 1_000, hours[0][1]), *hours[1:])]
)
def test_records_that_no_hour_names_are_not_left_out_silently(few, tmp_path, change):
    segments = closing.segments_of(few.engine, PERIOD)
    segments[0] = replace(segments[0], hours=change(segments[0].hours))
    with pytest.raises(SegmentError, match="registered"):
        closing.compute_run(few, few.log, segments, PERIOD, 1, tmp_path)
