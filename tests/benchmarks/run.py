"""A whole run, from segments on disk to the roots and sums of a period: records a second, and how much memory it takes.

``python -m tests.benchmarks.run [RECORDS...]`` measures runs of other sizes, such as 5000000.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from attribution.apportionment import apportion
from attribution.runs.run import owen_shares
from metering.records import PPM, UsageRecord
from metering.usage_log import UsageLog, records
from serving.assembly import open_books
from serving.closing import closing
from serving.settings import Settings
from tests.benchmarks.measure import Result, rates
from tests.many import write_many

SIZES = (100_000, 1_000_000)
NEW = 5_000
LOOPED = 1_000
MIB = 1024


def measured(count: int) -> dict[str, float]:
    """Seconds of a first run, of a preview when ``NEW`` records have come since, and peak memory, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with open_books(Settings(data_dir=data / "data")) as books:
            log = UsageLog(data / "segments")
            made = write_many(log, count)
            before = made[:-1]
            began = time.perf_counter()
            closing.compute_run(books, log, before, "2026-01", 1, data / "parts")
            first = time.perf_counter()
            found = closing.compute_run(books, log, made, "2026-01", 1, data / "parts", rows=False)
            again = time.perf_counter()
        assert found.tally.totals.records == count
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / MIB
    return {"first_s": first - began, "again_s": again - first, "rss_mib": mine, "worker_rss_mib": worker}


def plain(record: UsageRecord) -> int:
    """One record, as one would write it."""
    numerators, denominator = owen_shares(record)
    cells = [
        numerator * split.ppm
        for use, numerator in zip(record.uses, numerators, strict=False)
        for split in use.splits
    ]  # fmt: skip
    return sum(apportion(record.royalty, [*cells, denominator * PPM - sum(cells)], record.leaf())[:-1])


def apart(count: int) -> dict[str, float]:
    """As :func:`measured`, in a process of its own, so that the peak is its own."""
    command = [sys.executable, "-m", "tests.benchmarks.run", "--measure", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run() -> Iterator[Result]:
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        log = UsageLog(Path(folder))
        (segment,) = write_many(log, LOOPED)
        (theirs,) = rates(
            LOOPED, lambda: [plain(record) for record in records(log.read(segment.name, segment.sha256))], rounds=2
        )
    for count in SIZES:
        found = apart(count)
        ours = count / found["first_s"] / cores
        what = (
            f"a run of {count:,} records, a core ({found['rss_mib']:,.0f} MiB, {found['worker_rss_mib']:,.0f} a worker)"
        )
        yield Result(what, ours, "one record after the other", theirs, "records/s")
        what = f"a preview of {count:,} records, {NEW:,} of them new"
        yield Result(what, found["again_s"], "the first run", found["first_s"], "s", more_is_better=False)


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        print(json.dumps(measured(int(sys.argv[2]))))  # noqa: T201 # it is what the parent reads
    else:
        for size in sys.argv[1:]:
            sys.stdout.write(f"{int(size):,} records: {apart(int(size))}\n")
