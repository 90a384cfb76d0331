"""Attribution hour by hour: a pure function of an hour's segments, mapped over every core, kept on disk.

What an hour gives is a part: its records and credits in the order of record ids, and their sums. A part lies in a
file that is named after everything it was computed from (the hour, its segments' hashes, the rules, the code), and
carries its own hash. So a run that was killed finds what it had done, a preview computes the hours that have new
records, and nothing that is stale or damaged is ever used. A job is small and picklable: any engine that maps
functions can run it.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from attribution.runs.adopted import NEW_RUNS, Rules
from attribution.runs.inputs import Hour
from attribution.runs.run import RunError
from attribution.runs.tally import Totals
from metering import merkle
from metering.periods import HOUR_MS, hour_name
from metering.usage_log import Segment, SegmentError, UsageLog
from serving.closing.crediting import COLUMNS, Divided, digest, divided

_SUFFIX: Final = ".part"
_HASH_BYTES: Final = 32
_LENGTH_BYTES: Final = 8
_HEADER: Final = b"part"
_BATCH_RECORDS: Final = 20_000
"""Fewer new records than this are divided sooner than processes are started."""
_STALE_SECONDS: Final = 3600
_ROOT: Final = Path(__file__).parents[2]
# Whatever this module imports of the program is in one of these; a test looks.
_DECIDING: Final = ("attribution", "metering", "serving/closing")

Progress = Callable[[int, int], None]
"""Called with the records done and their total."""


@dataclass(frozen=True, slots=True)
class Job:
    """One hour to attribute."""

    hour: int
    records: int
    segments: tuple[tuple[str, str], ...]
    """Name and SHA-256, in order."""
    log: Path
    folder: Path
    """Where the part goes."""
    rules: Rules = NEW_RUNS

    @property
    def path(self) -> Path:
        """The file of the part."""
        made_of = [code_of(_ROOT), self.rules.names, self.hour, self.segments]
        key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        return self.folder / f"{hour_name(self.hour)}-{key[:32]}{_SUFFIX}"


@dataclass(frozen=True, slots=True)
class Rows:
    """The records of an hour and their credits, as in :class:`serving.closing.crediting.Divided`, records by id."""

    records: pa.Table
    credits: pa.Table

    @property
    def named_credits(self) -> pa.Table:
        """The credits with the ids of their records."""
        return self.credits.set_column(0, "record", self.records["id"].combine_chunks().take(self.credits["record"]))


@dataclass(frozen=True, slots=True)
class Part:
    """What one hour gave."""

    hour: Hour
    totals: Totals
    policy_version: int
    """The newest policy of its records."""
    value_functions: dict[str, int]
    """How many of its records were valued by each."""
    credits_digest: str
    lines: pa.Table
    credited: pa.Table
    rows: Rows | None
    """Read only where they are asked for: sums are a small part of a part."""


def jobs_of(log: UsageLog, segments: Iterable[Segment], folder: Path, rules: Rules = NEW_RUNS) -> list[Job]:
    """The hours of some segments, in order.

    Raises:
        SegmentError: a segment's hours do not hold all of its records.
    """
    found: dict[int, list[tuple[str, str]]] = defaultdict(list)
    records: dict[int, int] = defaultdict(int)
    for segment in sorted(segments, key=lambda each: each.name):
        if sum(count for _, count in segment.hours) != segment.records:
            raise SegmentError(f"segment {segment.name} has {segment.records} records, and other hours are registered")
        for hour, count in segment.hours:
            found[hour].append((segment.name, segment.sha256))
            records[hour] += count
    return [Job(hour, records[hour], tuple(found[hour]), log.folder, folder, rules) for hour in sorted(found)]


def attribute_hours(jobs: Sequence[Job]) -> None:
    """Attribute some hours by the same rules, and store their parts. The result depends on their segments only.

    A segment is read once, however many of the hours it reaches into.

    Raises:
        SegmentError: a segment is missing or altered.
        RunError: a record cannot be attributed, or is there twice.
    """
    uses = Counter(name for job in jobs for name, _ in job.segments)
    tables: dict[str, pa.Table] = {}
    found: list[pa.Table] = []
    for job in jobs:
        before = sum(map(len, found))
        for name, sha256 in job.segments:
            if name not in tables:
                tables[name] = UsageLog(job.log).read(name, sha256, COLUMNS)
            found.append(tables[name].filter(pc.equal(pc.divide(tables[name]["finished_ms"], HOUR_MS), job.hour)))
            uses[name] -= 1
            if not uses[name]:
                del tables[name]
        read = sum(map(len, found)) - before
        if read != job.records:
            raise SegmentError(f"{hour_name(job.hour)} has {job.records} registered records, {read} in the log")
    whole, begin = divided(pa.concat_tables(found), jobs[0].rules), 0
    for job in jobs:
        _store(job.path, _stored(job, whole.part(begin, begin + job.records)))
        begin += job.records


def parts_of(
    jobs: Sequence[Job], progress: Progress | None = None, *, rows: bool = True, workers: int | None = None
) -> Iterator[Part]:
    """The parts of all jobs, those that are stored first; each is computed once, on every core.

    Args:
        jobs: which hours.
        progress: is told how far it is.
        rows: whether their rows are needed.
        workers: how many processes; as many as there are cores if it is not said.

    Raises:
        SegmentError, RunError: as :func:`attribute_hours`.
    """
    done, total = 0, sum(job.records for job in jobs)
    pending = []
    say = progress or (lambda _done, _total: None)
    for job in jobs:
        stored = load(job.path, rows=rows)
        if stored is None:
            pending.append(job)
            continue
        done += job.records
        say(done, total)
        yield stored
    for job in _computed(_batches(pending), workers or os.cpu_count() or 1):
        part = load(job.path, rows=rows)
        if part is None:
            raise SegmentError(f"{job.path} cannot be read back: does another program write there?")
        done += job.records
        say(done, total)
        yield part


def load(path: Path, *, rows: bool) -> Part | None:
    """The part in a file, with its rows or without; None if it is not there, not whole, or not the one of that name."""
    try:
        with path.open("rb") as file:
            sums = _body(file, file.read(_HASH_BYTES))
            if sums is None:
                return None
            lines, credited = _tables(sums)
            header = json.loads(lines.schema.metadata[_HEADER])
            rest = _body(file, bytes.fromhex(header["rows"])) if rows else b""
    except FileNotFoundError:
        return None
    if header["name"] != path.name or rest is None:
        return None
    return Part(
        Hour(header["hour"], header["records"], bytes.fromhex(header["root"])),
        msgspec.convert(header["totals"], Totals),
        header["policy_version"],
        header["value_functions"],
        header["credits"],
        lines.replace_schema_metadata(None),
        credited,
        Rows(*_tables(rest)) if rows else None,
    )


def prune(jobs: Iterable[Job], folder: Path) -> None:
    """Remove the parts that none of the jobs uses and that nobody wrote lately."""
    used = {job.path for job in jobs}
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(FileNotFoundError):
            if path not in used and path.stat().st_mtime < time.time() - _STALE_SECONDS:
                path.unlink()


def _batches(jobs: Sequence[Job]) -> list[list[Job]]:
    """Neighbouring hours together, so that each batch takes a second or so, unless one hour takes longer."""
    found: list[list[Job]] = []
    room = 0
    for job in jobs:
        if job.records > room:
            found.append([])
            room = _BATCH_RECORDS
        found[-1].append(job)
        room -= job.records
    return found


def _computed(batches: Sequence[Sequence[Job]], workers: int) -> Iterator[Job]:
    """The jobs as they are done."""
    workers = min(workers, len(batches))
    if workers <= 1:
        for batch in batches:
            attribute_hours(batch)
            yield from batch
        return
    # A server has threads and an index loaded, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        running = {pool.submit(attribute_hours, batch): batch for batch in batches}
        try:
            for future in as_completed(running):
                future.result()
                yield from running.pop(future)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 # this runs in a worker

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _stored(job: Job, found: Divided) -> bytes:
    """The file of a part."""
    order = pc.sort_indices(found.records["id"])
    records = found.records.take(order).drop_columns(["value_function", "cost", "platform", "royalty"])
    ids = records["id"].combine_chunks()
    twice = np.flatnonzero(pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False))
    if len(twice):
        raise RunError(f"record {ids[int(twice[0])].as_py()} is in the log twice")
    place = np.empty(len(records), np.int64)
    place[order.to_numpy()] = np.arange(len(records))
    credits_ = found.credits
    rows = place[credits_["record"].to_numpy()]
    ordered = np.argsort(rows, kind="stable")
    credits_ = credits_.set_column(0, "record", pa.array(rows)).take(pa.array(ordered)).combine_chunks()
    rows = _bytes(records.combine_chunks(), credits_)
    header = {
        "name": job.path.name,
        "hour": job.hour,
        "records": len(records),
        "root": merkle.Tree(records["leaf"].to_pylist()).root.hex(),
        "totals": asdict(found.totals),
        "policy_version": found.policy_version,
        "value_functions": found.value_functions,
        "credits": digest(Rows(records, credits_).named_credits),
        "rows": hashlib.sha256(rows).hexdigest(),
    }
    sums = _bytes(found.lines.replace_schema_metadata({_HEADER: json.dumps(header)}), found.credited)
    lengths = [len(body).to_bytes(_LENGTH_BYTES, "big") for body in (sums, rows)]
    return b"".join([hashlib.sha256(sums).digest(), lengths[0], sums, lengths[1], rows])


def _bytes(*tables: pa.Table) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    for table in tables:
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table)
    return sink.getvalue()


def _tables(data: bytes) -> tuple[pa.Table, pa.Table]:
    source = pa.BufferReader(data)
    return pa.ipc.open_stream(source).read_all(), pa.ipc.open_stream(source).read_all()


def _body(file: IO[bytes], sha256: bytes) -> bytes | None:
    """The next body of a file, if it has that hash."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "big")
    data = file.read(min(length, os.fstat(file.fileno()).st_size))  # a damaged length may be anything
    return data if hashlib.sha256(data).digest() == sha256 else None


def _store(path: Path, data: bytes) -> None:
    """Written without syncing: a file that a crash left incomplete is recognised by its hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@lru_cache(maxsize=1)
def code_of(root: Path) -> str:
    """A hash of the code that decides what a part is: another version's parts are not this one's.

    It is whole folders: to compute an hour again for nothing is cheap, to take one for another is not.
    """
    sha256 = hashlib.sha256(f"pyarrow {pa.__version__} numpy {np.__version__}\n".encode())
    for package in _DECIDING:
        for source in sorted((root / package).rglob("*.py")):
            code = source.read_bytes()
            sha256.update(f"{source.relative_to(root).as_posix()} {len(code)}\n".encode() + code)
    return sha256.hexdigest()
